"""Placement of the model on the Ray cluster: its engine, actors and threads.

Measured with benchmarks.throughput: an actor with several threads, each with whole images, is as
fast as as many actors with one thread, and has the weights once. A few hundredths of the work on an
image hold the interpreter lock, so an actor has 8 threads at most.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segrec_batch.common.errors import EngineError
from segrec_batch.common.host import read_processor, usable_memory
from segrec_batch.distributed.cluster import ray_errors
from segrec_batch.distributed.resources import Resources, work_nodes
from segrec_batch.model import engine_choice, engines
from segrec_batch.model.backbones import DEFAULT_BACKBONE, backbone_of
from segrec_batch.model.engines import Candidate, EngineChoice
from segrec_batch.model.spec import ModelSpec

T = TypeVar("T")

_THREADS = 8  # of an actor, at most
_WORTH = 2**25  # pixels per actor, at least: some seconds of its cores, as much as its start takes
_NETWORK = 450 * 2**20  # bytes of an actor: Python, its libraries and the weights, transformed
_PART_ROWS = 4_096
_PART_ROWS_PER_CORE = 64
_ROUND = 65_536  # images per GPU or per 8 cores that one Ray Data execution takes


@dataclass(frozen=True)
class Work:
    """The size of a run: `images` of at most `pixels` pixels each, as the model sees them."""

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
    """Actors, engine and batches of a run. batch_size: images decoded and segmented together."""

    where: Resources
    engine: EngineChoice
    batch_size: int

    @property
    def part_rows(self) -> int:
        """Rows of a part, at most.

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


def place_model(
    where: Resources, engine: EngineChoice, work: Work, batch_size: int, memory: float | None = None
) -> Placement:
    """Distribute the model over the nodes of `where`.

    `memory` is what Ray has on the smallest node, in bytes; None asks the cluster.
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
    # less than the share of one actor per node, and not that of a task, see `resources`
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

    See `model.engine_choice`; a processor that would emulate decides for all nodes. Raises
    EngineError, also if a node lacks the engine.
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
        return EngineChoice(*common[0], where.device, "as asked for")
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
