"""(b) of throughput.py: the whole job on Ray, or its stages one behind the other without Ray."""

import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
from throughput_case import CORES, Case

from segrec_batch.decode import Shape
from segrec_batch.errors import AccountingError
from segrec_batch.model.spec import read_spec
from segrec_batch.pipeline.stages import SegmentBatch, decode_batch, describe_batch, write_batch

WAITING = 2  # batches for each process that decodes


def job(case: Case) -> dict[str, float]:
    """Index the pictures into a new index, with a Ray of its own."""
    from segrec_batch.pipeline.plan import Request
    from segrec_batch.pipeline.run import Execution, index_pictures

    execution = Execution(case.device, case.batch_size)
    account, _ = index_pictures(Request(case.images), case.model, case.output, execution)
    _check(account.indexed, case)
    return account.seconds


def chained(case: Case) -> dict[str, float]:
    """The same stages without Ray, and without the commit: processes that decode, the model here,
    a process that writes.
    """
    import torch  # here, so that the processes do without

    from segrec_batch.model.segmenter import resolve_device

    spec, model_id = read_spec(case.model)
    device = resolve_device(case.device)
    clock = time.perf_counter()
    segment = SegmentBatch(case.model, device, CORES if device == "cpu" else None)
    loaded = time.perf_counter() - clock
    context = multiprocessing.get_context("spawn")
    write = partial(write_batch, index=case.output, spec=spec, model_id=model_id, run_id="bench")
    finish = partial(_finish, write=write, describe=partial(describe_batch, spec=spec))
    clock = time.perf_counter()
    with (
        ProcessPoolExecutor(max(CORES - 2, 1), context) as decoders,
        ProcessPoolExecutor(1, context) as writer,
    ):
        decoded = _decoded(decoders, case.blocks(), spec.shapes)
        written = [writer.submit(finish, segment(b), case.model) for b in decoded]
        receipts = pa.concat_tables([future.result() for future in written]).to_pylist()
    _check(sum(r["rows"] for r in receipts if r["table"] == "images"), case)
    seconds = {"load": loaded, "process": time.perf_counter() - clock}
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {**seconds, "peak device bytes": peak}


def _decoded(pool: Executor, blocks: Sequence[pa.Table], shapes: Sequence[Shape]) -> Iterator[Any]:
    """Decoded batches in order; a few wait, so that memory does not grow with the pictures."""
    running: deque[Future[pa.Table]] = deque()
    for block in blocks:
        running.append(pool.submit(decode_batch, block, shapes))
        if len(running) >= WAITING * CORES:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _finish(segmented: pa.Table, model: str, write: Any, describe: Any) -> pa.Table:
    spec = describe.keywords["spec"]
    return write(describe(segmented, model=model) if spec.descriptors else segmented)


def _check(indexed: int, case: Case) -> None:
    if indexed != case.count:
        raise AccountingError(f"{indexed} of {case.count} pictures indexed")
