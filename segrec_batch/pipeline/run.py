"""One run of the indexing job: list, plan, process, stats, publish."""

import datetime as dt
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import IndexStateError, SegrecError, SourceError
from segrec_batch.common.logs import bind
from segrec_batch.distributed import cluster
from segrec_batch.distributed.placement import Placement, Work, choose_cluster_engine, place_model
from segrec_batch.distributed.resources import Resources, find_resources
from segrec_batch.index import snapshot as store
from segrec_batch.index import staging
from segrec_batch.index.history import choose_roots
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.engines import report_engine
from segrec_batch.model.spec import ModelSpec, read_spec
from segrec_batch.pipeline import chain
from segrec_batch.pipeline.backfill import describe, lacking, unread_parts
from segrec_batch.pipeline.commit import Publisher
from segrec_batch.pipeline.plan import Plan, Request
from segrec_batch.pipeline.rebuild import finish, refuse_to_lose, stage
from segrec_batch.pipeline.run_stats import RunStats
from segrec_batch.sources import storage
from segrec_batch.sources.roots import check_root

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """How a run goes about its work.

    device: cpu, cuda or auto. engine, precision: see `model.engine_choice`. batch_size: images
    that are decoded and segmented together, at most.
    commit_seconds: a crash loses at most the work of that long. gpus, wait_seconds: how many GPUs
    to use if not all, and how long to wait for the first, see `find_resources`.
    """

    device: str = "auto"
    batch_size: int = 32
    commit_seconds: float = 300.0
    gpus: int | None = None
    wait_seconds: float = 1800.0
    engine: str = "auto"
    precision: str = "auto"

    def resources(self) -> Resources:
        """Where the model runs, on the cluster as it is now."""
        return find_resources(self.device, self.gpus, self.wait_seconds)


def index_images(
    request: Request,
    model: str,
    index: str,
    execution: Execution = Execution(),
    rebuild: bool = False,
    drop_descriptors: bool = False,
) -> tuple[RunStats, Snapshot]:
    """Bring an index up to date with images; `rebuild` makes it anew, with any model.

    Descriptors that the bundle has and the index lacks are computed; those of the index that the
    bundle lacks are an error without `drop_descriptors`. A rebuild is invisible to readers until it
    is complete, and goes on where it was interrupted. Raises SegrecError; the index then is as the
    last commit left it. Whether too many sources could not be read says the stats,
    `check_read_failures`.
    """
    check_root(request.images or "/")
    request = replace(request, images=storage.absolute(request.images))
    index = storage.absolute(index)
    clock = time.monotonic()
    exists = store.exists(index)
    rebuild = rebuild and exists
    published = store.open_snapshot(index) if rebuild else _snapshot(index, exists, model)
    spec = read_spec(model)[0]
    _refuse_to_drop(published, spec, drop_descriptors)
    if rebuild:
        base = staging.open_staging(published, _load(model))
    else:
        base = store.adopt(published, spec)
    if base.spec.notice:
        log.warning(base.spec.notice)
    with Plan(request, base, published if rebuild else None) as plan:
        refuse_to_lose(plan, request, published)
        if error := _gone_error(plan, request, index):
            raise error
        stats = RunStats.open(_run_id(), plan)
        root = request.images or "/"
        stats.images_root = root.encode(errors="backslashreplace").decode()
        bind(run_id=stats.run_id)
        stats.seconds["list and plan"] = time.monotonic() - clock
        log.info(str(stats), extra={"event": "planned", "listed": stats.listed, "todo": plan.todo})
        if not exists:  # not earlier: there may have been nothing to list
            base = store.create(index, _load(model))
        changed = base.bundle_id != published.bundle_id and not rebuild
        if changed:
            _load(model).save(base.model_uri)
        pending = changed or (exists and not rebuild and _has_news(published, stats))
        publisher = Publisher(base, stats, stage if rebuild else store.commit, pending)
        with cluster.joined() if _has_work(plan, base, request) else nullcontext():
            if not plan.nothing_to_do:
                _run(plan, publisher, execution)
            if request.limit is None:
                _describe(publisher, execution, request.retry_failed)
        publisher.publish()
        after = publisher.current
    if rebuild:
        after = finish(published, after, stats, request)
    return stats, after


def _has_news(published: Snapshot, stats: RunStats) -> bool:
    """Return whether a commit mends or tells something, though no row changes."""
    roots = choose_roots(published.index)
    return bool(published.ahead) or not roots.admits(stats.images_root)


def dry_run(
    request: Request, model: str, index: str, drop_descriptors: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield what `index_images` would do: status and URI of each source that it would touch."""
    check_root(request.images or "/")
    request = replace(request, images=storage.absolute(request.images))
    index = storage.absolute(index)
    snapshot, spec = _snapshot(index, store.exists(index), model), read_spec(model)[0]
    _refuse_to_drop(snapshot, spec, drop_descriptors)
    with Plan(request, snapshot) as plan:
        yield from plan.lines()
        log.info(f"{RunStats.open('dry run', plan)}; nothing was done")
        if error := _gone_error(plan, request, index):
            log.warning(f"a run would stop: {error}")
    missing = sum(lacking(store.adopt(snapshot, spec)).values())
    if missing:
        log.info(f"{missing:,} vectors of images that stay would be added")


def _load(uri: str) -> "Model":
    """The whole bundle: needed, and torch with it, only where the index takes a copy."""
    from segrec_batch.model.bundle import load_model

    return load_model(uri)


def _run_id() -> str:
    return f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def _snapshot(index: str, exists: bool, model: str) -> Snapshot:
    """The newest snapshot of an index, which must belong to the model; or what it will begin as."""
    spec, model_id = read_spec(model)
    if not exists:
        store.check_place(index)
        return store.empty_snapshot(index, model_id, spec)
    snapshot = store.open_snapshot(index)
    if snapshot.model_id != model_id:
        raise IndexStateError(
            f"{index} belongs to model {snapshot.model_id}, not to {model_id} ({model}); rows of "
            "two models never mix: give the model of the index, a new --index, or --rebuild"
        )
    return snapshot


def _refuse_to_drop(published: Snapshot, spec: ModelSpec, drop: bool) -> None:
    kept = {d.name for d in spec.descriptors}
    lost = [d.name for d in published.spec.descriptors if d.name not in kept]
    if lost and not drop:
        raise IndexStateError(
            f"{published.index} has {', '.join(lost)}, which the model given here lacks: give the "
            f"model of the index, {published.model_uri}, or say --drop-descriptors"
        )


def _gone_error(plan: Plan, request: Request, index: str) -> SourceError | None:
    """That a listing lacks more of the index's sources than the request accepts."""
    if not request.max_gone.is_exceeded(plan.lost, plan.known):
        return None
    return SourceError(
        f"{plan.lost:,} of {plan.known:,} sources that {index} has below {request.images} are "
        f"gone: more than --max-gone {request.max_gone}. Nothing is changed; if the folder is "
        "complete, go on with --max-gone 100%, else mend it (is it mounted?) and run again"
    )


def _has_work(plan: Plan, base: Snapshot, request: Request) -> bool:
    again = request.retry_failed and base.spec.descriptors
    return not plan.nothing_to_do or bool(again or lacking(base) or unread_parts(base))


def _run(plan: Plan, publisher: Publisher, execution: Execution) -> None:
    """Process the plan on Ray; commit on the way, and the last of it once the books are right."""
    stats = publisher.stats
    clock = time.monotonic()
    if plan.todo:
        _process(plan, publisher, execution)
    stats.seconds["process"] = time.monotonic() - clock
    clock = time.monotonic()
    publisher.publish_last(plan.gone())
    stats.seconds["commit"] = time.monotonic() - clock


def _process(plan: Plan, publisher: Publisher, execution: Execution) -> None:
    with ProgressMeter("indexed", plan.todo) as meter, _kept(publisher):
        base, run_id = publisher.current, publisher.stats.run_id
        placement = _place_model(Work.of(plan.todo, base.spec), execution)
        publisher.stats.engine = placement.engine
        parts = chain.process(plan.manifest, plan.todo, base, run_id, placement)
        with publisher.metrics.working(plan.todo):
            for receipts in parts:
                meter.advance(publisher.take(receipts))
                publisher.publish_every(execution.commit_seconds)


def _place_model(work: Work, execution: Execution) -> Placement:
    where = execution.resources()  # may wait for them
    engine = choose_cluster_engine(execution.engine, execution.precision, where, work)
    placement = place_model(where, engine, work, execution.batch_size)
    _say_device(placement.where, execution)
    report_engine(engine)
    return placement


def _describe(publisher: Publisher, execution: Execution, retry: bool) -> None:
    """Add the vectors that images lack, now that the index is as the sources are."""
    base, stats = publisher.current, publisher.stats
    missing, unread = lacking(base), unread_parts(base)
    parts = sorted({f.part for f in base.files["images"]} if retry else missing.keys() | unread)
    if not parts or not base.spec.descriptors:
        return
    clock = time.monotonic()
    log.info(f"descriptors: {', '.join(d.name for d in base.spec.descriptors)}")
    device = _device(base, execution)
    precision = _precision(stats, device, execution)
    total = sum(missing.values())
    meter = ProgressMeter("vectors added", total)
    roots = choose_roots(base.index).extended([stats.images_root])
    with meter if total else nullcontext(), _kept(publisher):
        for part, added in describe(base, parts, device, precision, stats.run_id, retry, roots):
            meter.advance(publisher.move(part, added))
            publisher.publish_every(execution.commit_seconds)
    if stats.outside:
        log.warning(
            f"{stats.outside:,} images have no new vectors, since they lie below no folder "
            "that the index was made from: run once with --images over theirs"
        )
    publisher.publish_described()
    stats.seconds["describe"] = time.monotonic() - clock


def _precision(stats: RunStats, device: str, execution: Execution) -> str:
    """Return that of the run's model, or what it would be if it was not run."""
    if stats.engine:
        return stats.engine.precision
    where = replace(execution.resources(), device=device)
    engine = choose_cluster_engine(execution.engine, execution.precision, where, Work(0, 0))
    return engine.precision


def _device(base: Snapshot, execution: Execution) -> str:
    """Where what is missing is computed: on GPUs only if a descriptor that lacks rows uses one."""
    device = execution.resources().device
    if device == "cpu":
        return device
    from segrec_batch.descriptors.runtime import on_device  # imports torch

    images, names = base.rows("images"), on_device(base.spec)
    lacks = (d.name in names and base.vectors(d.id) < images for d in base.spec.descriptors)
    return device if any(lacks) else "cpu"


def _say_device(where: Resources, execution: Execution) -> None:
    """Loud where it may surprise: nobody has asked for the slow device."""
    text, level = f"device: {where} (--device {execution.device})", logging.INFO
    if (execution.device, where.device) == ("auto", "cpu"):
        text = f"device: CPU, for the cluster has no GPU (--device auto); model on {where}"
        level = logging.WARNING
    figures = {"device": where.device, "actors": where.actors, "asked": execution.device}
    log.log(level, text, extra={"event": "device", **figures})


@contextmanager
def _kept(publisher: Publisher) -> Iterator[None]:
    """What was done before an error is published."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        _keep_what_is_done(publisher, error)
        raise


def _keep_what_is_done(publisher: Publisher, error: BaseException) -> None:
    try:
        publisher.publish()
    except SegrecError as second:
        log.warning(f"what was done since the last commit is lost: {second}")
    done, name = publisher.stats.processed, type(error).__name__
    text = f"stopped by {name}; {done:,} images were done; run again to go on"
    log.info(text, extra={"event": "stopped", "done": done, "error": name})
