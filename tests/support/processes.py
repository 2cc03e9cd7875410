"""Processes of a Ray cluster of `ray.cluster_utils`, by their role in an indexing run."""

from typing import Any

import psutil

VICTIMS = ("actor", "task worker", "decoder")


def workers(nodes: list[Any]) -> list[psutil.Process]:
    """Return the children of the nodes' raylets."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    return [p for pid in raylets for p in psutil.Process(pid).children()]


def victims(nodes: list[Any], kind: str) -> list[psutil.Process]:
    """Return the processes of a kind of VICTIMS; decoders are children of task workers."""
    result = workers(nodes)
    if kind == "decoder":
        return [
            c
            for p in result
            for c in p.children()
            if "segrec_batch.images.sandbox_child" in c.cmdline()
        ]
    mark = {"actor": "SegmentStage", "task worker": "ray::MapBatches"}[kind]
    lines = {p: " ".join(p.cmdline()) for p in result}
    is_actor = {p: "MapWorker" in line or "Counted" in line for p, line in lines.items()}
    return [p for p, line in lines.items() if mark in line and is_actor[p] == (kind == "actor")]
