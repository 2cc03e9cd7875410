"""One run of the indexing job: resolve, plan, process, backfill, commit."""

import datetime as dt
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.logs import bind
from segrec_batch.distributed import cluster
from segrec_batch.distributed.placement import (
    Placement,
    Resources,
    Work,
    choose_cluster_engine,
    find_resources,
    log_resources,
    place_model,
)
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.engines import report_engine
from segrec_batch.pipeline import chain
from segrec_batch.pipeline.backfill import backfill_parts, missing_vectors, unread_parts
from segrec_batch.pipeline.commit import Publisher
from segrec_batch.pipeline.plan import Plan, Request
from segrec_batch.pipeline.resolve import ResolvedRun, resolve_run
from segrec_batch.pipeline.run_stats import RunStats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """Devices and batches of a run.

    Attributes:
        device: cpu, cuda or auto.
        batch_size: images that are decoded and segmented together, at most.
        commit_seconds: time between commits; a crash loses at most the work of that long.
        gpus: number of GPUs to use; None takes those of the cluster.
        wait_seconds: time to wait for the first of `gpus`.
        engine, precision: see `model.engine_choice`.
    """

    device: str = "auto"
    batch_size: int = 32
    commit_seconds: float = 300.0
    gpus: int | None = None
    wait_seconds: float = 1800.0
    engine: str = "auto"
    precision: str = "auto"

    def resources(self) -> Resources:
        """Return the devices of the model on the present cluster; may wait for GPUs."""
        return find_resources(self.device, self.gpus, self.wait_seconds)


def index_images(
    request: Request,
    model: str,
    index: str,
    execution: Execution = Execution(),
    rebuild: bool = False,
    drop_descriptors: bool = False,
) -> tuple[RunStats, Snapshot]:
    """Bring an index up to date with images, and compute descriptors that it lacks.

    Args:
        request: images to index, and limits of the run.
        model: URI of the bundle.
        index: URI of the index.
        execution: devices and batches.
        rebuild: make the index anew, with any model; invisible to readers until it is complete.
        drop_descriptors: permit a bundle without some descriptors of the index.

    Returns:
        Counts and costs, and the newest snapshot. `RunStats.check_read_failures` raises an error
        if too many sources could not be read.

    Raises:
        SegrecError: the run stopped; the index is as the last commit left it.
    """
    clock = time.monotonic()
    run = resolve_run(request, model, index, rebuild, drop_descriptors)
    if run.base.spec.notice:
        log.warning(run.base.spec.notice)
    with run.plan() as plan:
        run.check(plan)
        stats = _open_stats(run, plan, clock)
        publisher = Publisher(run.open_base(), stats, run.commit, run.has_news)
        with cluster.join() if _has_work(run, plan, publisher.current) else nullcontext():
            _process(plan, publisher, execution)
            _backfill(run, publisher, execution)
        publisher.publish()
    return stats, run.finish(publisher.current, stats)


def dry_run(
    request: Request, model: str, index: str, drop_descriptors: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield status and URI of each source that `index_images` would process or remove."""
    run = resolve_run(request, model, index, drop_descriptors=drop_descriptors)
    with run.plan() as plan:
        yield from plan.lines()
        log.info(f"{RunStats.open('dry run', plan)}; nothing was done")
        if error := run.gone_error(plan):
            log.warning(f"a run would stop: {error}")
    if missing := sum(missing_vectors(run.base).values()):
        log.info(f"{missing:,} vectors of images that stay would be added")


def _open_stats(run: ResolvedRun, plan: Plan, clock: float) -> RunStats:
    run_id = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    stats = RunStats.open(run_id, plan)
    stats.images_root = run.images_root
    bind(run_id=run_id)
    stats.seconds["list and plan"] = time.monotonic() - clock
    log.info(str(stats), extra={"event": "planned", "listed": stats.listed, "todo": plan.todo})
    return stats


def _has_work(run: ResolvedRun, plan: Plan, base: Snapshot) -> bool:
    """Return whether the run needs the cluster."""
    retries = run.request.retry_failed and base.spec.descriptors
    return not plan.is_empty or bool(retries or missing_vectors(base) or unread_parts(base))


def _process(plan: Plan, publisher: Publisher, execution: Execution) -> None:
    """Process the plan; commit from time to time, and at the end after a check of the sums."""
    if plan.is_empty:
        return
    stats, clock = publisher.stats, time.monotonic()
    if plan.todo:
        with ProgressMeter("indexed", plan.todo) as meter, publisher.publish_on_error():
            base = publisher.current
            placement = _place_model(Work.of(plan.todo, base.spec), execution)
            stats.engine = placement.engine
            parts = chain.process(plan.manifest, plan.todo, base, stats.run_id, placement)
            with publisher.metrics.export_gauges(plan.todo):
                for receipts in parts:
                    meter.advance(publisher.take(receipts))
                    publisher.publish_every(execution.commit_seconds)
    stats.seconds["process"] = time.monotonic() - clock
    clock = time.monotonic()
    publisher.publish_last(plan.gone())
    stats.seconds["commit"] = time.monotonic() - clock


def _place_model(work: Work, execution: Execution) -> Placement:
    where = execution.resources()
    engine = choose_cluster_engine(execution.engine, execution.precision, where, work)
    placement = place_model(where, engine, work, execution.batch_size)
    log_resources(placement.where, execution.device)
    report_engine(engine)
    return placement


def _backfill(run: ResolvedRun, publisher: Publisher, execution: Execution) -> None:
    """Add the vectors that indexed images lack, unless the run has a limit."""
    base, stats, retry = publisher.current, publisher.stats, run.request.retry_failed
    missing, unread = missing_vectors(base), unread_parts(base)
    parts = sorted({f.part for f in base.files["images"]} if retry else missing.keys() | unread)
    if run.request.limit is not None or not parts or not base.spec.descriptors:
        return
    clock = time.monotonic()
    log.info(f"descriptors: {', '.join(d.name for d in base.spec.descriptors)}")
    device = _descriptor_device(base, execution)
    precision = _descriptor_precision(stats, device, execution)
    roots = run.roots.extended([run.images_root])
    jobs = backfill_parts(base, parts, device, precision, stats.run_id, retry, roots)
    total = sum(missing.values())
    meter = ProgressMeter("vectors added", total)
    with meter if total else nullcontext(), publisher.publish_on_error():
        for part, result in jobs:
            meter.advance(publisher.move(part, result))
            publisher.publish_every(execution.commit_seconds)
    if stats.outside:
        log.warning(
            f"{stats.outside:,} images have no new vectors, since they lie below no folder "
            "that the index was made from: run once with --images over theirs"
        )
    publisher.publish_backfill()
    stats.seconds["describe"] = time.monotonic() - clock


def _descriptor_precision(stats: RunStats, device: str, execution: Execution) -> str:
    """Return the precision of the run's model, or of the model it would choose."""
    if stats.engine:
        return stats.engine.precision
    where = replace(execution.resources(), device=device)
    none = Work(0, 0)
    return choose_cluster_engine(execution.engine, execution.precision, where, none).precision


def _descriptor_device(base: Snapshot, execution: Execution) -> str:
    """Return cuda only if a descriptor with missing vectors computes on a device."""
    device = execution.resources().device
    if device == "cpu":
        return device
    from segrec_batch.descriptors.runtime import on_device  # imports torch

    images, names = base.rows("images"), on_device(base.spec)
    incomplete = (d.name in names and base.vectors(d.id) < images for d in base.spec.descriptors)
    return device if any(incomplete) else "cpu"
