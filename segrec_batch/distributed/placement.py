"""Placement of the model on the Ray cluster: devices, engine, actors and threads.

Measured with benchmarks.throughput: an actor with several threads, each with whole images, is as
fast as as many actors with one thread, and has the weights once. A few hundredths of the work on an
image hold the interpreter lock, so an actor has 8 threads at most.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segrec_batch.common.errors import DeviceError, EngineError
from segrec_batch.common.host import read_processor, usable_memory
from segrec_batch.distributed.cluster import ray_errors
from segrec_batch.model import engine_choice, engines
from segrec_batch.model.backbones import DEFAULT_BACKBONE, backbone_of
from segrec_batch.model.engines import Candidate, EngineChoice
from segrec_batch.model.spec import ModelSpec

log = logging.getLogger(__name__)

T = TypeVar("T")

_LEAST_CPUS = 0.4  # per actor; with the CPUs of a task, Ray would fuse both into the actor
_POLL = 1.0  # seconds
_THREADS = 8  # maximum per actor
_WORTH = 2**25  # minimum pixels per actor: some seconds of its cores, as much as its start takes
_NETWORK = 450 * 2**20  # bytes per actor: Python, its libraries and the weights, transformed
_PART_ROWS = 4_096
_PART_ROWS_PER_CORE = 64
_ROUND = 65_536  # images per GPU or per 8 cores that one Ray Data execution takes


@dataclass(frozen=True)
class Resources:
    """Devices of the model.

    Attributes:
        device: cpu or cuda.
        actors: copies of the model, on a GPU each or on CPU threads.
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


@dataclass(frozen=True)
class Work:
    """Size of a run: `images` of at most `pixels` pixels each, after resizing for the model."""

    images: int
    pixels: int
    backbone: str = DEFAULT_BACKBONE.name

    @classmethod
    def of(cls, images: int, spec: ModelSpec) -> "Work":
        """Return the work of a number of images for a model."""
        pixels = max(height * width for height, width in spec.shapes)
        return cls(images, pixels, spec.backbone)

    @property
    def total(self) -> int:
        """Pixels of all images."""
        return self.images * self.pixels


@dataclass(frozen=True)
class Placement:
    """Actors, engine and batches of a run.

    Attributes:
        where: actors of the model and their devices.
        engine: engine and precision of the model.
        batch_size: number of images that are decoded and segmented together.
    """

    where: Resources
    engine: EngineChoice
    batch_size: int

    @property
    def part_rows(self) -> int:
        """Maximum number of rows of a part.

        Progress, metrics and commits proceed by parts, so a part is about half a minute of work: 64
        images per core. On GPUs memory is the limit, because a task holds all rows of a part.
        """
        if self.where.device == "cuda":
            return _PART_ROWS
        return min(_PART_ROWS_PER_CORE * self._cores, _PART_ROWS)

    @property
    def round_rows(self) -> int:
        """Images that one Ray Data execution takes."""
        if self.where.device == "cuda":
            return _ROUND * self.where.actors
        return _ROUND * -(-self._cores // 8)

    @property
    def _cores(self) -> int:
        return self.where.actors * (self.where.threads or 1)


def find_resources(device: str, gpus: int | None = None, wait: float = 0) -> Resources:
    """Return the devices of the cluster that the model runs on.

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
    """Log the devices of the model; warn when `--device auto` falls back to the CPU."""
    text, level = f"device: {where} (--device {device})", logging.INFO
    if (device, where.device) == ("auto", "cpu"):
        text = f"device: CPU, for the cluster has no GPU (--device auto); model on {where}"
        level = logging.WARNING
    values = {"device": where.device, "actors": where.actors, "requested": device}
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


def place_model(
    where: Resources, engine: EngineChoice, work: Work, batch_size: int, memory: float | None = None
) -> Placement:
    """Distribute the model over the nodes of `where`.

    `memory` is the memory of Ray on the smallest node in bytes; None reads it from the cluster.
    """
    if where.device == "cpu" and engine.engine == "ncnn":
        memory = _least_memory() if memory is None else memory
        where = _spread(where, work, memory)
    if where.device == "cpu":  # each actor gets some batches
        batch_size = min(batch_size, max(-(-work.images // (2 * where.actors)), 1))
    return Placement(where, engine, batch_size)


def _spread(where: Resources, work: Work, memory: float) -> Resources:
    """Return several actors per node, as far as cores, memory and work suffice."""
    nodes, cores = where.actors, where.threads or 1
    actors = max(min(-(-cores // _THREADS), work.total // (_WORTH * nodes)), 1)
    fit = int((memory / actors - _NETWORK) // (engines.PER_PIXEL * work.pixels))
    threads = max(min(cores // actors, fit), 1)
    # less than the share of one actor per node, and not that of a task, see `find_resources`
    share = where.cpus if actors == 1 else round(0.99 * where.cpus / actors, 3)
    return replace(where, actors=nodes * actors, cpus=share, threads=threads)


def _least_memory() -> float:
    """Return the memory of Ray on the smallest node in bytes; of this machine if unknown."""
    sizes = [node["Resources"]["memory"] for node in work_nodes() if "memory" in node["Resources"]]
    return min(sizes, default=float(usable_memory()))


def choose_cluster_engine(
    engine: str, precision: str, where: Resources, work: Work
) -> EngineChoice:
    """Choose engine and precision for the nodes that the model runs on.

    See `model.engine_choice`. If the processor of a node would emulate the precision, it decides
    for all nodes.

    Raises:
        EngineError: the engine or precision is unknown, or a node lacks it.
    """
    engine = engines.engine_of(engine, backbone_of(work.backbone))
    nodes = [node["NodeID"] for node in work_nodes()]
    alone = nodes == [ray.get_runtime_context().get_node_id()]
    is_clear = work.total < engine_choice.LONG or "auto" not in (engine, precision)
    if where.device == "cuda" or (alone and is_clear):
        return engine_choice.choose_engine(engine, precision, where.device)
    answers = _run_on(nodes, _match_candidates, engine, precision)
    if emulating := [processor for processor, candidates in answers if not candidates]:
        return engine_choice.choose_emulated(emulating[0])
    common = [c for c in answers[0][1] if all(c in supported for _, supported in answers)]
    if not common:
        raise EngineError(
            "the nodes of the cluster have no engine and precision in common: "
            + "; ".join(f"{processor}: {candidates}" for processor, candidates in answers)
        )
    if "auto" not in (engine, precision):
        return EngineChoice(*common[0], where.device, "as requested")
    if len(common) == 1 or work.total < engine_choice.LONG:
        reason = f"by the features of the processors of {len(nodes)} nodes"
        return EngineChoice(*common[0], where.device, reason)
    return engine_choice.choose_fastest(_run_on(nodes, engine_choice.measure_candidates, common))


def _match_candidates(engine: str, precision: str) -> tuple[str, list[Candidate]]:
    """Return the processor of this node and the candidates that it supports."""
    engine_choice.check_names(engine, precision)
    processor = read_processor()
    return processor.name, engine_choice.match_candidates(engine, precision, processor)


def _run_on(nodes: list[str], function: Callable[..., T], *arguments: object) -> list[T]:
    """Return the result of a function on each node, in a new process there."""
    task = ray.remote(num_cpus=0, max_calls=1)(function)
    with ray_errors():
        results: list[T] = ray.get(
            [
                task.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
                ).remote(*arguments)
                for node in nodes
            ]
        )
    return results
