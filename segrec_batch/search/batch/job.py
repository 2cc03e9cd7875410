"""Job that writes recommendations for many images: select, search on Ray, write, check counts."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import AccountingError, InputError
from segrec_batch.distributed import cluster
from segrec_batch.distributed.resources import Resources, find_resources
from segrec_batch.distributed.scratch import scratch_folder
from segrec_batch.distributed.tasks import SharedValue, run_tasks
from segrec_batch.index.snapshot import Snapshot, open_snapshot
from segrec_batch.search.batch.choice import Choice, choose, expand_queries, to_table
from segrec_batch.search.batch.output import Output, Receipt, read_receipt, write_part
from segrec_batch.search.batch.search import Block, BlockSizes, Candidates, Search, block_sizes
from segrec_batch.search.batch.selection import NOTHING_LEFT, Request, Selection
from segrec_batch.sources import storage

log = logging.getLogger(__name__)

FORMAT = 1  # of the output; part of the identity of a request


@dataclass(frozen=True)
class Execution:
    """Resources of a run; the results do not depend on them.

    device: cpu, cuda or auto. memory: bytes of a worker in addition to Python and PyTorch.
    """

    device: str = "auto"
    memory: int = 2**30


@dataclass(frozen=True)
class _Task:
    """One part of the queries, with the inputs of its worker."""

    uri: str
    queries: SharedValue[Block]
    blocks: list[SharedValue[Block]]
    sizes: list[int]
    choice: Choice
    expand: int | None
    block_sizes: BlockSizes
    resources: Resources


def recommend_all(
    index: str,
    request: Request,
    choice: Choice,
    output: str,
    execution: Execution = Execution(),
    version: int | None = None,
    part_size: int = 4096,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the recommendations for many images of one snapshot; return the counts of the output.

    The function resumes an interrupted run. Raises SegrecError; written parts stay.
    """
    snapshot = open_snapshot(storage.absolute(index), version)
    request.filters.check(snapshot.spec)
    if request.filters.method != "pearson":
        raise InputError(f"neighbours has only the method pearson, not {request.filters.method}")
    choice.check()
    if request.filters.expand and choice.near_duplicates is not None:
        raise InputError(
            "--near-duplicates compares with the query, which --expand moves: omit one of them"
        )
    target = Output(storage.absolute(output), request.filters.cls)
    with (
        scratch_folder("segrec-recommend-") as folder,
        Selection(snapshot, request, folder) as selection,
    ):
        target.begin(_identity(snapshot, request, choice, part_size, selection), overwrite)
        counts = target.success()
        if counts:
            log.info(f"{target.uri} is complete; nothing to do")
            return counts
        return _run(selection, target, choice, execution, part_size)


def _identity(
    snapshot: Snapshot, request: Request, choice: Choice, part_size: int, selection: Selection
) -> dict[str, Any]:
    """Return the fields that two runs must have in common to share an output."""
    low, high = request.filters.coverage
    return {
        "format": FORMAT,
        "index": snapshot.index,
        "version": snapshot.version,
        "model_id": snapshot.model_id,
        "class": request.filters.cls,
        "coverage": [low, high],
        "expand": request.filters.expand,
        **asdict(choice),
        "queries": selection.fingerprint(),
        "part_size": part_size,
    }


def _run(
    selection: Selection, target: Output, choice: Choice, execution: Execution, part_size: int
) -> dict[str, Any]:
    counts = selection.prepare()
    usable = counts.pop("")
    parts = set(range(-(-usable // part_size)))
    finished = target.finished_parts() & parts
    log.info(
        f"{usable:,} queries in {len(parts):,} parts, {len(finished):,} of them finished; "
        f"{sum(counts.values()):,} without a usable vector"
    )
    with cluster.join():
        uris = (target.part_uri(number) for number in sorted(finished))
        receipts = [receipt for _, receipt in run_tasks(read_receipt, uris)]
        if missing := parts - finished:
            remaining = usable - sum(receipt.queries for receipt in receipts)
            tasks = _tasks(selection, target, choice, execution, missing, part_size)
            receipts += _search(tasks, remaining)
    summary = _account(selection.fingerprint()["count"], usable, counts, receipts)
    unanswered = selection.unanswered([name for r in receipts for name in r.nothing_left])
    if summary["answered"] + len(unanswered) != summary["queries"]:
        raise AccountingError(f"{len(unanswered)} unanswered queries are not {summary}")
    target.finish(unanswered, summary)
    return summary


def _tasks(
    selection: Selection,
    target: Output,
    choice: Choice,
    execution: Execution,
    missing: set[int],
    part_size: int,
) -> Iterator[_Task]:
    """Put the candidates into shared memory, and yield a task for each missing part."""
    resources = find_resources(execution.device)
    expand = selection.request.filters.expand
    listed = max(choice.candidates, expand or 0)
    sizes = block_sizes(execution.memory, part_size, selection.width, listed)
    blocks: list[SharedValue[Block]] = []
    rows: list[int] = []
    with ProgressMeter("candidates") as meter:
        for block in selection.candidates(sizes.block):
            blocks.append(SharedValue(block))
            rows.append(len(block))
            meter.advance(len(block))
    log.info(f"scores on {resources} (--device {execution.device})")
    for number, queries in selection.queries(missing, part_size):
        uri = target.part_uri(number)
        yield _Task(uri, SharedValue(queries), blocks, rows, choice, expand, sizes, resources)


def _search(tasks: Iterator[_Task], queries: int) -> list[Receipt]:
    first = next(tasks)  # puts the candidates into shared memory
    cpus, gpus = (0, 1) if first.resources.device == "cuda" else (first.resources.threads or 1, 0)
    receipts = []
    with ProgressMeter("recommended for", queries) as meter:
        for _, receipt in run_tasks(_process, itertools.chain([first], tasks), cpus, gpus):
            meter.advance(receipt.queries)
            receipts.append(receipt)
    log.info(f"{sum(r.swept for r in receipts):,} queries took a second pass")
    return receipts


def _process(task: _Task) -> Receipt:
    """Search for one part of the queries, and write the part."""
    if task.resources.threads:
        torch.set_num_threads(task.resources.threads)
    candidates = Candidates([shared.get for shared in task.blocks], task.sizes)
    queries = task.queries.get()
    search = Search(
        queries,
        candidates,
        task.choice.exclusions,
        task.block_sizes,
        task.resources.device,
    )
    if task.expand:
        search = expand_queries(search, task.expand)
    rows = to_table(search, choose(search, task.choice))
    receipt = write_part(task.uri, rows, queries.rows["image_id"].to_pylist())
    return replace(receipt, swept=search.swept)


def _account(
    queries: int, usable: int, counts: Mapping[str, int], receipts: Sequence[Receipt]
) -> dict[str, Any]:
    """Return the counts of an output.

    Raises AccountingError unless every query is answered or has a reason.
    """
    nothing_left = sum(len(receipt.nothing_left) for receipt in receipts)
    answered = sum(receipt.queries for receipt in receipts) - nothing_left
    unanswered = {**counts, **({NOTHING_LEFT: nothing_left} if nothing_left else {})}
    if queries != answered + sum(unanswered.values()) or usable != answered + nothing_left:
        raise AccountingError(
            f"{queries} queries, but {answered} answered and {unanswered} do not add up to that; "
            "the output is not complete"
        )
    return {
        "queries": queries,
        "answered": answered,
        "unanswered": dict(sorted(unanswered.items())),
        "recommendations": sum(receipt.rows for receipt in receipts),
    }
