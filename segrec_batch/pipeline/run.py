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
    Work,
    choose_cluster_engine,
    place_model,
)
from segrec_batch.distributed.resources import Resources, find_resources, log_resources
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
        commit_seconds: time between commits; a crash loses at most the work since the last one.
        gpus: number of GPUs to use; None takes those of the cluster.
        wait_seconds: time to wait for the first of `gpus`.
        engine: engine or auto, see `model.engine_choice`.
        precision: precision or auto, see `model.engine_choice`.
    """

    device: str = "auto"
    batch_size: int = 32
    commit_seconds: float = 300.0
    gpus: int | None = None
    wait_seconds: float = 1800.0
    engine: str = "auto"
    precision: str = "auto"

    def find_resources(self) -> Resources:
        """Return the devices of the joined cluster that the model runs on; may wait for GPUs."""
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
    started = time.monotonic()
    run = resolve_run(request, model, index, rebuild, drop_descriptors)
    if run.base.spec.notice:
        log.warning(run.base.spec.notice)
    with run.plan() as plan:
        run.check(plan)
        stats = _open_stats(run, plan, started)
        publisher = Publisher(run.open_base(), stats, run.commit, run.changes_metadata)
        with cluster.join() if _needs_cluster(run, plan, publisher.current) else nullcontext():
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
        yield from plan.iter_changes()
        log.info(f"{RunStats.of_plan('dry run', plan)}; nothing was done")
        if error := run.build_gone_error(plan):
            log.warning(f"a run would stop: {error}")
    if missing := sum(missing_vectors(run.base).values()):
        log.info(f"{missing:,} vectors of images that stay would be added")


def _open_stats(run: ResolvedRun, plan: Plan, started: float) -> RunStats:
    run_id = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    stats = RunStats.of_plan(run_id, plan)
    stats.images_root = run.images_root
    bind(run_id=run_id)
    stats.seconds["list and plan"] = time.monotonic() - started
    log.info(str(stats), extra={"event": "planned", "listed": stats.listed, "todo": plan.todo})
    return stats


def _needs_cluster(run: ResolvedRun, plan: Plan, base: Snapshot) -> bool:
    """Return whether the run has images to process or vectors to compute."""
    retries = run.request.retry_failed and base.spec.descriptors
    return not plan.is_empty or bool(retries or missing_vectors(base) or unread_parts(base))


def _process(plan: Plan, publisher: Publisher, execution: Execution) -> None:
    """Process the planned images; commit at intervals, and at the end after checking the sums."""
    if plan.is_empty:
        return
    stats, started = publisher.stats, time.monotonic()
    if plan.todo:
        with ProgressMeter("indexed", plan.todo) as meter, publisher.publish_on_error():
            base = publisher.current
            placement = _place_model(Work.of(plan.todo, base.spec), execution)
            stats.engine = placement.engine
            receipt_tables = chain.process_images(
                plan.read_manifest, plan.todo, base, stats.run_id, placement
            )
            with publisher.metrics.export_gauges(plan.todo):
                for receipts in receipt_tables:
                    meter.advance(publisher.add_receipts(receipts))
                    publisher.publish_every(execution.commit_seconds)
    stats.seconds["process"] = time.monotonic() - started
    started = time.monotonic()
    publisher.publish_last(plan.iter_gone())
    stats.seconds["commit"] = time.monotonic() - started


def _place_model(work: Work, execution: Execution) -> Placement:
    resources = execution.find_resources()
    engine = choose_cluster_engine(execution.engine, execution.precision, resources, work)
    placement = place_model(resources, engine, work, execution.batch_size)
    log_resources(placement.resources, execution.device)
    report_engine(engine)
    return placement


def _backfill(run: ResolvedRun, publisher: Publisher, execution: Execution) -> None:
    """Add the vectors that indexed images lack, unless the run has a limit."""
    base, stats, retry = publisher.current, publisher.stats, run.request.retry_failed
    missing, unread = missing_vectors(base), unread_parts(base)
    parts = sorted({f.part for f in base.files["images"]} if retry else missing.keys() | unread)
    if run.request.limit is not None or not parts or not base.spec.descriptors:
        return
    started = time.monotonic()
    log.info(f"descriptors: {', '.join(d.name for d in base.spec.descriptors)}")
    device = _descriptor_device(base, execution)
    precision = _descriptor_precision(base, stats, device, execution)
    roots = run.roots.extend([run.images_root])
    jobs = backfill_parts(base, parts, device, precision, stats.run_id, retry, roots)
    total = sum(missing.values())
    meter = ProgressMeter("vectors added", total)
    with meter if total else nullcontext(), publisher.publish_on_error():
        for part, result in jobs:
            meter.advance(publisher.add_backfill(part, result))
            publisher.publish_every(execution.commit_seconds)
    if stats.outside:
        log.warning(
            f"{stats.outside:,} images have no new vectors, because they lie outside all folders "
            "that were indexed before: run once with --images on a folder that holds them"
        )
    publisher.publish_backfill()
    stats.seconds["describe"] = time.monotonic() - started


def _descriptor_precision(
    base: Snapshot, stats: RunStats, device: str, execution: Execution
) -> str:
    """Return the precision in which the model ran, or in which it would run."""
    if stats.engine:
        return stats.engine.precision
    resources = replace(execution.find_resources(), device=device)
    no_images = Work(0, 0, base.spec.backbone)
    return choose_cluster_engine(
        execution.engine, execution.precision, resources, no_images
    ).precision


def _descriptor_device(base: Snapshot, execution: Execution) -> str:
    """Return cuda if a descriptor with missing vectors can use it and the cluster has it."""
    device = execution.find_resources().device
    if device == "cpu":
        return device
    from segrec_batch.descriptors.runtime import on_device  # imports torch

    images, names = base.rows("images"), on_device(base.spec)
    incomplete = (d.name in names and base.vectors(d.id) < images for d in base.spec.descriptors)
    return device if any(incomplete) else "cpu"
