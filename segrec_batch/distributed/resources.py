"""Resources of the Ray cluster for the model: GPUs or CPU threads."""

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from segrec_batch.common.errors import DeviceError

log = logging.getLogger(__name__)

_LEAST_CPUS = 0.4  # of an actor; with as many as a task, Ray would fuse both into the actor
_POLL = 1.0  # seconds


@dataclass(frozen=True)
class Resources:
    """Devices of the model: `actors` copies of it, on a GPU each or on CPU threads."""

    device: str
    actors: int
    cpus: float
    threads: int | None

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        what = "GPU" if self.device == "cuda" else f"CPU, {threads}"
        return f"{self.actors} × {what}"


def find_resources(device: str, gpus: int | None = None, wait: float = 0) -> Resources:
    """Return where the model runs on this cluster.

    Args:
        device: cpu, cuda or auto.
        gpus: number of GPUs, some of which may join later; None takes all GPUs of the cluster.
        wait: seconds to wait for the first of `gpus`.

    Raises:
        DeviceError: the cluster lacks the device.
    """
    if gpus:
        _await_gpu(gpus, wait)
    gpus = gpus or _gpus()
    if gpus and device != "cpu":
        return Resources("cuda", gpus, 0, None)
    if device == "cuda":
        raise DeviceError(
            "--device cuda, but the Ray cluster has no GPU; say --device cpu or auto, or have its "
            "autoscaler start N of them by --gpus N of segrec index"
        )
    nodes = work_nodes()
    if not nodes:
        raise DeviceError(
            "no node of the Ray cluster has CPUs for work; start one, or have its autoscaler start "
            "N with a GPU by --gpus N of segrec index"
        )
    cores = int(min(node["Resources"]["CPU"] for node in nodes))
    # part of a core stays free on each node for tasks that decode
    return Resources("cpu", len(nodes), max(cores - 1, _LEAST_CPUS), cores)


def log_resources(where: Resources, device: str) -> None:
    """Log where the model runs; warn when `--device auto` falls back to the CPU."""
    text, level = f"device: {where} (--device {device})", logging.INFO
    if (device, where.device) == ("auto", "cpu"):
        text = f"device: CPU, for the cluster has no GPU (--device auto); model on {where}"
        level = logging.WARNING
    values = {"device": where.device, "actors": where.actors, "asked": device}
    log.log(level, text, extra={"event": "device", **values})


def work_nodes() -> list[dict[str, Any]]:
    """Return the nodes of the cluster that are alive and have CPUs, as `ray.nodes` lists them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _await_gpu(number: int, seconds: float) -> None:
    """Request GPUs of the autoscaler, and return as soon as the cluster has any.

    Without RAY_ADDRESS nothing can join the cluster, so it does not wait.

    Raises:
        DeviceError: the cluster has none after `seconds`.
    """
    if _gpus():
        return
    seconds = seconds if os.environ.get("RAY_ADDRESS") else 0
    log.info(f"the Ray cluster has no GPU; {number} asked for, waiting up to {seconds:,.0f} s")
    request_resources(bundles=[{"GPU": 1}] * number)
    try:
        end = time.monotonic() + seconds
        while not _gpus():
            if time.monotonic() >= end:
                raise DeviceError(
                    f"no GPU joined the Ray cluster within {seconds:,.0f} s (--wait); what its "
                    "autoscaler, if it has one, makes of the request is in `ray status`"
                )
            time.sleep(_POLL)
    finally:
        request_resources(
            bundles=[]
        )  # withdraws the request; from now on actors request their GPUs


def _gpus() -> int:
    """Return the number of GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))
