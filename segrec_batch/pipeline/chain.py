"""The Ray Data chain: read → decode → segment → describe → write. Only it, `nodes` and `metrics`
import ray.

Workers, actors and nodes may die at any time: Ray runs their tasks again, which is harmless, since
a part that nobody has a receipt of is invisible. What would kill a worker each time, a picture that
breaks its decoder, dies in the sandbox instead.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

# Before ray is imported: no usage reports, no progress bars beside ours, no token asked of a
# cluster that never had one, and no report of how Ray Data starts its actors as an error of ours.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import pyarrow as pa
import ray
import ray.data

from segrec_batch import messages
from segrec_batch.errors import ClusterError, DeviceError, SegrecError
from segrec_batch.pipeline.nodes import await_gpu, present_gpus
from segrec_batch.pipeline.segment import SegmentBatch, TimedSegmentBatch
from segrec_batch.pipeline.stages import decode_batch, describe_batch, write_batch
from segrec_batch.sandbox import PICTURE_SECONDS
from segrec_batch.store.index import Snapshot

Item = TypeVar("Item")
Result = TypeVar("Result")

# Rows of a part, at most. Progress, metrics and commits go by parts, so one is about half a minute
# of work, in which a core does 64 pictures or so. On GPUs memory is the bound: a task has them all.
_PART_ROWS = 4_096
_PART_ROWS_PER_CORE = 64
_ROUND = 65_536  # pictures per actor that one Ray Data execution takes
_TASK_CPUS = 0.5  # of decode and write tasks: two a core, since they wait for storage at times
_LEAST_CPUS = 0.4  # of an actor on a CPU; with those of a task, Ray would decode inside the actor
_ADDED = "\nFailed to apply UDF"  # by Ray Data, to the text of an error: how it retries
_ANSWER = 10.0  # seconds for a cluster to take a connection
_BESIDE = 4  # tasks of `each` on a node beside the chain: a part in memory may take a gigabyte


@dataclass(frozen=True)
class Resources:
    """Where the model runs: `actors` copies of it, on a GPU each or on CPU threads."""

    device: str
    actors: int
    cpus: float
    threads: int | None

    @property
    def part_rows(self) -> int:
        """How many rows a part may have."""
        if self.device == "cuda":
            return _PART_ROWS
        return min(_PART_ROWS_PER_CORE * self.actors * (self.threads or 1), _PART_ROWS)

    def __str__(self) -> str:
        what = "GPU" if self.device == "cuda" else f"CPU, {self.threads} threads"
        return f"{self.actors} × {what}"


@contextmanager
def cluster() -> Iterator[None]:
    """The Ray cluster that `RAY_ADDRESS` names, else one of its own, for the time of a run.

    Left to itself, Ray would join one that another program has started on this machine, and go
    down with it. A cluster that this process has joined already is used, and left as it is.
    Raises ClusterError if it cannot be joined, or runs another version of Ray.
    """
    if ray.is_initialized():
        yield
        return
    _join(os.environ.get("RAY_ADDRESS") or "local")
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            include_dashboard=False,
        )
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if address == "local":
            raise ClusterError(f"Ray cannot be started on this machine: {error}") from error
        raise ClusterError(
            f"the Ray cluster of RAY_ADDRESS={address} cannot be joined: {error}; give HOST:PORT "
            "of its head (and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, if it wants one), or unset "
            "RAY_ADDRESS to run on this machine alone"
        ) from error


def resources(device: str, gpus: int | None = None, wait: float = 0) -> Resources:
    """Where the model runs on this cluster, for `device` cpu, cuda or auto.

    On all GPUs that there are, or on `gpus` of them, of which some may be still to come: for the
    first one it waits up to `wait` seconds. Raises DeviceError if the cluster lacks the device.
    """
    if gpus:
        await_gpu(gpus, wait)
    gpus = gpus or present_gpus()
    if gpus and device != "cpu":
        return Resources("cuda", gpus, 0, None)
    if device == "cuda":
        raise DeviceError(
            "--device cuda, but the Ray cluster has no GPU; say --device cpu or auto, or have its "
            "autoscaler start N of them by --gpus N of jobs/index.py"
        )
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise DeviceError(
            "no node of the Ray cluster has CPUs for work; start one, or have its autoscaler start "
            "N with a GPU by --gpus N of jobs/index.py"
        )
    cores = int(min(node["Resources"]["CPU"] for node in nodes))
    # some of a core stays free on each node, or nothing would ever be decoded
    return Resources("cpu", len(nodes), max(cores - 1, _LEAST_CPUS), cores)


@contextmanager
def _errors() -> Iterator[None]:
    """Errors of the stages as they were raised; those of Ray itself as ClusterError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            # Ray makes a class of its own that is both, with a stack trace for its text
            if isinstance(cause, SegrecError) and not isinstance(cause, ray.exceptions.RayError):
                raise type(cause)(str(cause).partition(_ADDED)[0]) from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise ClusterError(f"Ray ended the run: {error}") from error
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise ClusterError(f"the run hangs: {error}") from error


class Shared(Generic[Item]):
    """A value in the object store of the cluster, for as long as this object lives.

    Tasks read its arrays in place, without a copy. What does not fit goes to disk.
    """

    def __init__(self, value: Item) -> None:
        with _errors():
            self._ref: ray.ObjectRef[Item] = ray.put(value)

    def get(self) -> Item:
        """The value."""
        value: Item = ray.get(self._ref)
        return value


def each(
    function: Callable[[Item], Result], items: Iterable[Item], cpus: float = 0, gpus: float = 0
) -> Iterator[tuple[Item, Result]]:
    """Apply a function to items on the cluster; items with their results as they come.

    Without `cpus` and `gpus`, which a task then has to itself, it can run beside the chain, which
    leaves none free: a few tasks on each node. Items are taken as tasks end, twice as many as run.
    """
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD", max_retries=-1)(
        function
    )
    running: dict[ray.ObjectRef[Result], Item] = {}
    waiting = iter(items)
    with _errors():
        while True:
            for item in islice(waiting, max(_at_once(cpus, gpus) - len(running), 0)):
                running[task.remote(item)] = item
            if not running:
                return
            done, _ = ray.wait(list(running))
            for ref in done:
                yield running.pop(ref), ray.get(ref)


def _at_once(cpus: float, gpus: float) -> int:
    """How many tasks Ray has at a time, of the nodes that there are now: they come and go. Without
    any that can run one, it has a few all the same: an autoscaler starts nodes for them.
    """
    if not (cpus or gpus):
        return _BESIDE * sum(node["Alive"] for node in ray.nodes())
    name, need = ("GPU", gpus) if gpus else ("CPU", cpus)
    fit = int(ray.cluster_resources().get(name, 0) / need)
    if not fit:
        messages.say(f"no node of the Ray cluster has {need:g} {name}; waiting for one", "warning")
    return 2 * fit or _BESIDE


def process(
    manifest: Callable[[int, int], pa.Table],
    total: int,
    snapshot: Snapshot,
    run_id: str,
    where: Resources,
    batch_size: int,
) -> Iterator[pa.Table]:
    """Process MANIFEST rows 0 to `total`; yields RECEIPTS of parts in place, as they are written.

    Goes in rounds, so that neither the driver nor Ray holds more than the rows of one.
    """
    context = ray.data.DataContext.get_current()
    # longer than it takes to give up every picture of a batch
    context.execution_no_progress_timeout_s = 300 + 2 * PICTURE_SECONDS * batch_size
    context.max_consecutive_actor_init_deaths = 3
    context.raise_original_map_exception = True  # in place of one that loses its cause on the way
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs its plan as a warning
    messages.adopt("ray", "ray.data")
    rows_per_part = min(max(total // 100, 2 * batch_size), where.part_rows)
    step = _ROUND * where.actors
    with _errors():
        for start in range(0, total, step):
            rows = manifest(start, start + step)
            chain = _chain(rows, snapshot, run_id, where, batch_size, rows_per_part)
            yield from chain.iter_batches(batch_size=None, batch_format="pyarrow")


def _chain(
    manifest: pa.Table,
    snapshot: Snapshot,
    run_id: str,
    where: Resources,
    batch_size: int,
    rows_per_part: int,
) -> ray.data.Dataset:
    blocks = [manifest.slice(i, batch_size) for i in range(0, manifest.num_rows, batch_size)]
    segmented = (
        ray.data.from_arrow(blocks)
        .map_batches(
            partial(decode_batch, shapes=snapshot.spec.shapes),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_TASK_CPUS,
        )
        .map_batches(
            TimedSegmentBatch,
            fn_constructor_kwargs={
                "stage": SegmentBatch,
                "model": snapshot.model_uri,
                "device": where.device,
                "threads": where.threads,
            },
            batch_size=batch_size,  # of a block; Ray Data takes no GPUs without
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=where.actors,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            num_cpus=where.cpus,
            num_gpus=1 if where.device == "cuda" else 0,
        )
    )
    if snapshot.spec.descriptors:
        segmented = segmented.map_batches(
            partial(describe_batch, model=snapshot.model_uri, spec=snapshot.spec),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_TASK_CPUS,
        )
    return segmented.map_batches(
        partial(
            write_batch,
            index=snapshot.index,
            spec=snapshot.spec,
            model_id=snapshot.model_id,
            run_id=run_id,
        ),
        batch_size=rows_per_part,
        batch_format="pyarrow",
        num_cpus=_TASK_CPUS,
    )
