"""The Ray Data chain: read → decode → segment → write. The only place that imports ray."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

# Before ray is imported: no usage reports, no progress bars beside ours, no token asked of a
# cluster that never had one, and no report of how Ray Data starts its actors as an error of ours.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import pyarrow as pa
import ray
import ray.data

from segrec_batch.errors import DeviceError
from segrec_batch.pipeline.stages import SegmentBatch, decode_batch, write_batch
from segrec_batch.store.index import Snapshot, model_uri

BATCH = 32  # pictures that are decoded and segmented together; also the rows of a block
_TASK_CPUS = 0.5  # of decode and write tasks: two a core, since they wait for storage at times


@dataclass(frozen=True)
class Resources:
    """Where the model runs: `actors` copies of it, on a GPU each or on CPU threads."""

    device: str
    actors: int
    cpus: float
    threads: int | None

    def __str__(self) -> str:
        what = "GPU" if self.device == "cuda" else f"CPU, {self.threads} threads"
        return f"{self.actors} × {what}"


@contextmanager
def cluster() -> Iterator[None]:
    """The Ray cluster that `RAY_ADDRESS` names, else one on this machine, for the time of a run.

    A cluster that this process has joined already is used, and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def resources(device: str) -> Resources:
    """Where the model runs on this cluster, for `device` cpu, cuda or auto.

    Raises DeviceError for cuda if the cluster has no GPU.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if device == "cuda" and not gpus:
        raise DeviceError("--device cuda, but the Ray cluster has no GPU; say --device cpu or auto")
    if gpus and device != "cpu":
        return Resources("cuda", gpus, 0, None)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    cores = int(min(node["Resources"]["CPU"] for node in nodes))
    # some of a core stays free on each node, or nothing would ever be decoded
    return Resources("cpu", len(nodes), max(cores - 1, 0.5), cores)


def process(
    manifest: pa.Table, snapshot: Snapshot, run_id: str, where: Resources
) -> Iterator[pa.Table]:
    """Process MANIFEST rows; yields RECEIPTS of files in place, as they are written."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs its plan as a warning
    blocks = [manifest.slice(i, BATCH) for i in range(0, manifest.num_rows, BATCH)]
    rows_per_file = min(max(manifest.num_rows // 100, 64), 4096)  # a receipt is a step of progress
    receipts = (
        ray.data.from_arrow(blocks)
        .map_batches(
            partial(decode_batch, shapes=snapshot.spec.shapes),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_TASK_CPUS,
        )
        .map_batches(
            SegmentBatch,
            fn_constructor_kwargs={
                "model": model_uri(snapshot.index),
                "device": where.device,
                "threads": where.threads,
            },
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=where.actors, max_concurrent_calls_per_actor=2),
            num_cpus=where.cpus,
            num_gpus=1 if where.device == "cuda" else 0,
        )
        .map_batches(
            partial(
                write_batch,
                index=snapshot.index,
                spec=snapshot.spec,
                model_id=snapshot.model_id,
                run_id=run_id,
            ),
            batch_size=rows_per_file,
            batch_format="pyarrow",
            num_cpus=_TASK_CPUS,
        )
    )
    yield from receipts.iter_batches(batch_size=None, batch_format="pyarrow")
