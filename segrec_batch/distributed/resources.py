"""Devices and memory that the Ray cluster has for the model."""

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from segrec_batch.common.errors import DeviceError
from segrec_batch.common.host import usable_memory

log = logging.getLogger(__name__)

MIN_ACTOR_CPUS = 0.4
"""CPUs of an actor at least. With those of a task, Ray would fuse the task into the actor."""
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Resources:
    """Devices on which a run executes the model.

    Attributes:
        device: cpu or cuda.
        actors: number of copies of the model, each on one GPU or on CPU threads.
        cpus: CPUs that Ray reserves for an actor.
        threads: CPU threads of an actor; None on GPUs.
    """

    device: str
    actors: int
    cpus: float
    threads: int | None

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        unit = "GPU" if self.device == "cuda" else f"CPU, {threads}"
        return f"{self.actors} × {unit}"


def find_resources(device: str, gpus: int | None = None, wait_seconds: float = 0) -> Resources:
    """Return the devices of the cluster that the model runs on.

    Args:
        device: cpu, cuda or auto.
        gpus: number of GPUs, some of which may join later; None takes all GPUs of the cluster.
        wait_seconds: seconds to wait for the first of `gpus`.

    Raises:
        DeviceError: the cluster lacks the device.
    """
    if gpus:
        _await_gpu(gpus, wait_seconds)
    gpus = gpus or _count_gpus()
    if gpus and device != "cpu":
        return Resources("cuda", gpus, 0, None)
    if device == "cuda":
        raise DeviceError(
            "--device cuda, but the Ray cluster has no GPU; use --device cpu or auto, or let its "
            "autoscaler start N of them by segrec index --gpus N"
        )
    nodes = list_work_nodes()
    if not nodes:
        raise DeviceError(
            "no node of the Ray cluster has CPUs for work; start one, or let its autoscaler start "
            "N with a GPU by segrec index --gpus N"
        )
    cores = int(min(node["Resources"]["CPU"] for node in nodes))
    # part of a core per node stays free for decode tasks
    return Resources("cpu", len(nodes), max(cores - 1, MIN_ACTOR_CPUS), cores)


def log_resources(resources: Resources, device: str) -> None:
    """Log the devices of the model; warn when `--device auto` falls back to the CPU."""
    text, level = f"device: {resources} (--device {device})", logging.INFO
    if (device, resources.device) == ("auto", "cpu"):
        text = f"device: CPU, because the cluster has no GPU (--device auto); model on {resources}"
        level = logging.WARNING
    values = {"device": resources.device, "actors": resources.actors, "requested": device}
    log.log(level, text, extra={"event": "device", **values})


def list_work_nodes() -> list[dict[str, Any]]:
    """Return the nodes of the cluster that are alive and have CPUs, as `ray.nodes` lists them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _await_gpu(number: int, seconds: float) -> None:
    """Request GPUs from the autoscaler, and return as soon as the cluster has one.

    Without RAY_ADDRESS nothing can join the cluster, so this does not wait.

    Raises:
        DeviceError: the cluster has no GPU after `seconds`.
    """
    if _count_gpus():
        return
    seconds = seconds if os.environ.get("RAY_ADDRESS") else 0
    log.info(f"the Ray cluster has no GPU; requested {number}, waiting up to {seconds:,.0f} s")
    request_resources(bundles=[{"GPU": 1}] * number)
    try:
        end = time.monotonic() + seconds
        while not _count_gpus():
            if time.monotonic() >= end:
                raise DeviceError(
                    f"no GPU joined the Ray cluster within {seconds:,.0f} s (--wait); look with "
                    "`ray status` whether an autoscaler has the request"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        request_resources(bundles=[])  # withdraw the request; actors request their own GPUs


def _count_gpus() -> int:
    """Return the number of GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def read_min_memory() -> float:
    """Return the bytes that Ray has on the smallest node; those of this machine if unknown."""
    sizes = [
        node["Resources"]["memory"] for node in list_work_nodes() if "memory" in node["Resources"]
    ]
    return min(sizes, default=float(usable_memory()))
