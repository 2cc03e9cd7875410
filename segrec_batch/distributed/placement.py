"""Placement of the model on the devices of the cluster: engine, actors, threads and batches.

Measured with benchmarks.throughput: one actor with n threads that process whole images is as fast
as n actors with one thread, and holds the weights once. A few per cent of the work on an image hold
the interpreter lock, so an actor has at most 8 threads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segrec_batch.common.errors import EngineError
from segrec_batch.common.host import read_processor
from segrec_batch.distributed.cluster import convert_ray_errors
from segrec_batch.distributed.resources import Resources, list_work_nodes, read_min_memory
from segrec_batch.model import engine_choice, engines
from segrec_batch.model.backbones import DEFAULT_BACKBONE, find_backbone
from segrec_batch.model.engines import Candidate, EngineChoice
from segrec_batch.model.spec import ModelSpec

T = TypeVar("T")

_MAX_THREADS = 8  # maximum per actor
_MIN_ACTOR_PIXELS = 2**25  # with fewer pixels an actor would take longer to start than to work
_ACTOR_BYTES = 450 * 2**20  # memory of an actor for Python, libraries and transformed weights
_PART_ROWS = 4_096
_PART_ROWS_PER_CORE = 64
_ROUND_ROWS = 65_536  # images of one Ray Data execution, per GPU or per 8 cores


@dataclass(frozen=True)
class Work:
    """Size of a run.

    Attributes:
        images: number of images.
        pixels: maximum number of pixels of an image after resizing for the model.
    """

    images: int
    pixels: int
    backbone: str = DEFAULT_BACKBONE.name

    @classmethod
    def of(cls, images: int, spec: ModelSpec) -> "Work":
        """Return the work of a number of images for a model."""
        pixels = max(height * width for height, width in spec.shapes)
        return cls(images, pixels, spec.backbone)

    @property
    def total_pixels(self) -> int:
        """Pixels of all images."""
        return self.images * self.pixels


@dataclass(frozen=True)
class Placement:
    """Actors, engine and batches of a run.

    Attributes:
        resources: actors of the model and their devices.
        engine: engine and precision of the model.
        batch_size: number of images that are decoded and segmented together.
    """

    resources: Resources
    engine: EngineChoice
    batch_size: int

    @property
    def part_rows(self) -> int:
        """Maximum number of rows of a part.

        Progress, metrics and commits advance part by part, so on a CPU a part is about half a
        minute of work: 64 images per core. On GPUs memory is the limit: a task holds all rows of a
        part.
        """
        if self.resources.device == "cuda":
            return _PART_ROWS
        return min(_PART_ROWS_PER_CORE * self._cores, _PART_ROWS)

    @property
    def round_rows(self) -> int:
        """Number of images of one Ray Data execution."""
        if self.resources.device == "cuda":
            return _ROUND_ROWS * self.resources.actors
        return _ROUND_ROWS * -(-self._cores // 8)

    @property
    def _cores(self) -> int:
        return self.resources.actors * (self.resources.threads or 1)


def place_model(
    resources: Resources,
    engine: EngineChoice,
    work: Work,
    batch_size: int,
    memory: float | None = None,
) -> Placement:
    """Decide how many actors run the model, and how many images are in a batch.

    Args:
        resources: devices of the model, with one actor per node or GPU.
        engine: engine and precision of the model.
        work: size of the run.
        batch_size: maximum number of images in a batch.
        memory: bytes for Ray on the smallest node; None reads them from the cluster.
    """
    if resources.device == "cpu" and engine.engine == "ncnn":
        memory = read_min_memory() if memory is None else memory
        resources = _split_actors(resources, work, memory)
    if resources.device == "cpu":  # each actor gets at least two batches
        batch_size = min(batch_size, max(-(-work.images // (2 * resources.actors)), 1))
    return Placement(resources, engine, batch_size)


def _split_actors(resources: Resources, work: Work, memory: float) -> Resources:
    """Return resources with as many actors per node as cores, memory and work suffice for."""
    nodes, cores = resources.actors, resources.threads or 1
    actors = max(
        min(-(-cores // _MAX_THREADS), work.total_pixels // (_MIN_ACTOR_PIXELS * nodes)), 1
    )
    max_threads = int((memory / actors - _ACTOR_BYTES) // (engines.BYTES_PER_PIXEL * work.pixels))
    threads = max(min(cores // actors, max_threads), 1)
    # slightly less, so that all fit and none has the CPUs of a task, see `resources.MIN_ACTOR_CPUS`
    share = resources.cpus if actors == 1 else round(0.99 * resources.cpus / actors, 3)
    return replace(resources, actors=nodes * actors, cpus=share, threads=threads)


def choose_cluster_engine(
    engine: str, precision: str, resources: Resources, work: Work
) -> EngineChoice:
    """Choose engine and precision for the nodes that the model runs on, see `model.engine_choice`.

    If the processor of any node has to emulate the precision, all nodes use what suits that one.

    Raises:
        EngineError: the engine or precision is unknown, or a node lacks it.
    """
    engine = engines.resolve_engine(engine, find_backbone(work.backbone))
    nodes = [node["NodeID"] for node in list_work_nodes()]
    is_single_node = nodes == [ray.get_runtime_context().get_node_id()]
    is_clear = work.total_pixels < engine_choice.LONG_RUN or "auto" not in (engine, precision)
    if resources.device == "cuda" or (is_single_node and is_clear):
        return engine_choice.choose_engine(engine, precision, resources.device)
    candidates_by_node = _run_on(nodes, _match_candidates, engine, precision)
    if emulating := [processor for processor, candidates in candidates_by_node if not candidates]:
        return engine_choice.choose_emulated(emulating[0])
    common = [
        c
        for c in candidates_by_node[0][1]
        if all(c in supported for _, supported in candidates_by_node)
    ]
    if not common:
        raise EngineError(
            "the nodes of the cluster have no engine and precision in common: "
            + "; ".join(
                f"{processor}: {candidates}" for processor, candidates in candidates_by_node
            )
        )
    if "auto" not in (engine, precision):
        return EngineChoice(*common[0], resources.device, "as requested")
    if len(common) == 1 or work.total_pixels < engine_choice.LONG_RUN:
        reason = f"by the features of the processors of {len(nodes)} nodes"
        return EngineChoice(*common[0], resources.device, reason)
    return engine_choice.choose_fastest(
        _run_on(nodes, engine_choice.measure_candidates, common, work.backbone)
    )


def _match_candidates(engine: str, precision: str) -> tuple[str, list[Candidate]]:
    """Return the name of this node's processor and the candidates that it supports."""
    engine_choice.check_names(engine, precision)
    processor = read_processor()
    return processor.name, engine_choice.match_candidates(engine, precision, processor)


def _run_on(nodes: list[str], function: Callable[..., T], *arguments: object) -> list[T]:
    """Return the result of a function on each node, in a new process there."""
    task = ray.remote(num_cpus=0, max_calls=1)(function)
    with convert_ray_errors():
        results: list[T] = ray.get(
            [
                task.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
                ).remote(*arguments)
                for node in nodes
            ]
        )
    return results
