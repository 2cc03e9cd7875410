"""(b) The whole job on Ray, or its stages chained without Ray."""

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from benchmarks.throughput.case import CORES, Case
from segrec_batch.common.errors import AccountingError
from segrec_batch.model.spec import read_spec
from segrec_batch.pipeline.segment import SegmentStage
from segrec_batch.pipeline.stages import decode_batch, describe_batch, write_batch

WAITING = 2  # pending batches per process that decodes


def run_job(case: Case) -> dict[str, float]:
    """Index the images into a new index, on a new Ray."""
    from segrec_batch.pipeline.plan import Request
    from segrec_batch.pipeline.run import Execution, index_images

    execution = Execution(
        case.device,
        case.batch_size,
        engine=case.choice.engine,
        precision=case.choice.precision,
    )
    stats, _ = index_images(Request(case.images), case.model, case.output, execution)
    _check(stats.indexed, case)
    return stats.seconds


def run_chained(case: Case) -> dict[str, float]:
    """Run the same stages without Ray and without the commit.

    Other processes decode and write; the model runs in this process.
    """
    spec, model_id = read_spec(case.model)
    clock = time.perf_counter()
    segment = load_stage(case)
    loaded = time.perf_counter() - clock
    context = multiprocessing.get_context("spawn")
    write = partial(write_batch, index=case.output, spec=spec, model_id=model_id, run_id="bench")
    finish = partial(_finish, write=write, describe=partial(describe_batch, spec=spec))
    clock = time.perf_counter()
    with (
        ProcessPoolExecutor(max(CORES - 2, 1), context) as decoders,
        ProcessPoolExecutor(max(CORES // 8, 1), context) as writers,
        ThreadPoolExecutor(2) as actor,  # two calls at a time, as in Ray's
    ):
        decode = partial(decode_batch, shapes=spec.shapes)
        decoded = _run_ahead(decoders, decode, case.blocks(), WAITING * CORES)
        segmented = _run_ahead(actor, segment, decoded, 2)
        written = [writers.submit(finish, batch, case.model) for batch in segmented]
        receipts = pa.concat_tables([future.result() for future in written]).to_pylist()
    _check(sum(r["rows"] for r in receipts if r["table"] == "images"), case)
    seconds = {"load": loaded, "process": time.perf_counter() - clock}
    return {**seconds, "peak device bytes": _peak_bytes() if case.device == "cuda" else 0}


def _peak_bytes() -> int:
    import torch  # here, so that the other processes do not import it

    return int(torch.cuda.max_memory_allocated())


def load_stage(case: Case) -> SegmentStage:
    """Load the stage that runs the model, on a CPU with all threads."""
    return SegmentStage(case.model, case.choice, CORES if case.device == "cpu" else None)


def _run_ahead(
    pool: Executor, stage: Callable[[pa.Table], pa.Table], batches: Iterable[pa.Table], limit: int
) -> Iterator[pa.Table]:
    """Yield the results of a stage in order, with a bounded number of pending batches."""
    running: deque[Future[pa.Table]] = deque()
    for batch in batches:
        running.append(pool.submit(stage, batch))
        if len(running) >= limit:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _finish(segmented: pa.Table, model: str, write: Any, describe: Any) -> pa.Table:
    spec = describe.keywords["spec"]
    return write(describe(segmented, model=model) if spec.descriptors else segmented)


def _check(indexed: int, case: Case) -> None:
    if indexed != case.count:
        raise AccountingError(f"{indexed} of {case.count} images indexed")
