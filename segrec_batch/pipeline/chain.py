"""The Ray Data chain: read → decode → segment → describe → write.

Workers, actors and nodes may die at any time. Ray runs their tasks again, which is harmless: a part
without a receipt is invisible. An image that crashes its decoder crashes the sandbox, not a worker.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial

import pyarrow as pa
import ray.data

from segrec_batch.common import logs
from segrec_batch.common.errors import ClusterError
from segrec_batch.distributed.cluster import convert_ray_errors
from segrec_batch.distributed.placement import Placement
from segrec_batch.images import sandbox
from segrec_batch.images.sandbox import IMAGE_SECONDS
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.pipeline.segment import SegmentStage, TimedSegmentStage
from segrec_batch.pipeline.stages import decode_batch, describe_batch, write_batch

_TASK_CPUS = 0.5  # per decode or write task: two share a core, since they also wait for storage


def process_images(
    manifest: Callable[[int, int], pa.Table],
    total: int,
    snapshot: Snapshot,
    run_id: str,
    placement: Placement,
) -> Iterator[pa.Table]:
    """Process MANIFEST rows 0 to `total`; yield the RECEIPTS of parts as they are written.

    Each Ray Data execution takes `placement.round_rows` rows: no more rows are in memory at once.
    """
    sandbox.shared().confinement()  # logs which limits of the sandbox the kernel lacks
    context = ray.data.DataContext.get_current()
    # longer than the time limits of all images of a batch
    hang_seconds = int(300 + IMAGE_SECONDS * placement.batch_size)
    context.execution_no_progress_timeout_s = hang_seconds
    # else early tasks may fill a node before its actor starts, and two actors share another node
    context.wait_for_min_actors_s = hang_seconds if placement.resources.device == "cpu" else -1
    context.max_consecutive_actor_init_deaths = 3
    context.raise_original_map_exception = True  # Ray's own exception hides the cause
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # Ray Data logs its plan as a warning
    logs.adopt_loggers("ray", "ray.data")
    rows_per_part = min(max(total // 100, 2 * placement.batch_size), placement.part_rows)
    round_rows = placement.round_rows
    try:
        with convert_ray_errors():
            for start in range(0, total, round_rows):
                rows = manifest(start, start + round_rows)
                chain = _build_chain(rows, snapshot, run_id, placement, rows_per_part)
                yield from chain.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise ClusterError(f"the run hangs: {error}") from error


def _build_chain(
    manifest: pa.Table,
    snapshot: Snapshot,
    run_id: str,
    placement: Placement,
    rows_per_part: int,
) -> ray.data.Dataset:
    resources, batch_size = placement.resources, placement.batch_size
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
            TimedSegmentStage,
            fn_constructor_kwargs={
                "stage": SegmentStage,
                "model": snapshot.model_uri,
                "engine": placement.engine,
                "threads": resources.threads,
            },
            batch_size=batch_size,  # equals the block; Ray Data requires it with GPUs
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=resources.actors,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            num_cpus=resources.cpus,
            num_gpus=1 if resources.device == "cuda" else 0,
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
