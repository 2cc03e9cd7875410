"""One run of the indexing job: list, plan, process, account, publish."""

import datetime as dt
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from segrec_batch import storage
from segrec_batch.console import ProgressMeter, say
from segrec_batch.errors import IndexStateError, InputError, SegrecError
from segrec_batch.model.spec import read_spec
from segrec_batch.pipeline import chain
from segrec_batch.pipeline.account import Account
from segrec_batch.pipeline.plan import Plan, Request
from segrec_batch.pipeline.publish import Publisher
from segrec_batch.store import index as store
from segrec_batch.store import staging
from segrec_batch.store.index import Snapshot

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model


@dataclass(frozen=True)
class Execution:
    """How a run goes about its work.

    device: cpu, cuda or auto. batch_size: pictures that are decoded and segmented together.
    commit_seconds: a crash loses at most the work of that long.
    """

    device: str = "auto"
    batch_size: int = 32
    commit_seconds: float = 300.0


def index_pictures(
    request: Request,
    model: str,
    index: str,
    execution: Execution = Execution(),
    rebuild: bool = False,
) -> tuple[Account, Snapshot]:
    """Bring an index up to date with pictures; `rebuild` makes it anew, with any model.

    A rebuild is invisible to readers until it is complete, and goes on where it was interrupted.
    Raises SegrecError; the index then is as the last commit left it.
    """
    request = replace(request, images=storage.absolute(request.images))
    index = storage.absolute(index)
    clock = time.monotonic()
    exists = store.exists(index)
    rebuild = rebuild and exists
    published = store.open_snapshot(index) if rebuild else _snapshot(index, exists, model)
    base = staging.open_staging(published, _load(model)) if rebuild else published
    if base.spec.notice:
        say(f"warning: {base.spec.notice}")
    with Plan(request, base, published if rebuild else None) as plan:
        _refuse_to_lose(plan, request, published)
        account = Account.open(_run_id(), plan)
        account.seconds["list and plan"] = time.monotonic() - clock
        say(str(account))
        if not exists:  # not earlier: there may have been nothing to list
            base = store.create(index, _load(model))
        publisher = Publisher(base, account, _stage if rebuild else store.commit)
        if not plan.nothing_to_do:
            _run(plan, publisher, execution)
        after = publisher.current
    if rebuild:
        after = _finish(published, after, account)
    return account, after


def dry_run(request: Request, model: str, index: str) -> Iterator[str]:
    """What `index_pictures` would do: a line for each source that it would touch."""
    request = replace(request, images=storage.absolute(request.images))
    index = storage.absolute(index)
    with Plan(request, _snapshot(index, store.exists(index), model)) as plan:
        for status, uri in plan.lines():
            yield f"{status}\t{uri.encode('unicode_escape').decode()}"
        say(f"{Account.open('dry run', plan)}; nothing was done")


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
        return store.empty_snapshot(index, model_id, spec)
    snapshot = store.open_snapshot(index)
    if snapshot.model_id != model_id:
        raise IndexStateError(
            f"{index} belongs to model {snapshot.model_id}, not to {model_id} ({model}); rows of "
            "two models never mix: give the model of the index, a new --index, or --rebuild"
        )
    return snapshot


def _refuse_to_lose(plan: Plan, request: Request, published: Snapshot) -> None:
    """A rebuild replaces everything, so it must have been asked for everything."""
    if plan.left_out:
        raise InputError(
            f"--rebuild replaces all of {published.index}, but {plan.left_out:,} of its pictures "
            f"are not below {request.images} or excluded; name a folder that holds them all"
        )


def _run(plan: Plan, publisher: Publisher, execution: Execution) -> None:
    """Process the plan on Ray; commit on the way, and the last of it once the books are right."""
    account = publisher.account
    with chain.cluster():
        clock = last = time.monotonic()
        try:
            with _meter(plan) as meter:
                for receipts in _receipts(plan, publisher, execution):
                    meter.advance(publisher.take(receipts))
                    if time.monotonic() - last > execution.commit_seconds:
                        publisher.publish()
                        last = time.monotonic()
        except (Exception, KeyboardInterrupt) as error:
            _keep_what_is_done(publisher, error)
            raise
        account.seconds["process"] = time.monotonic() - clock
        clock = time.monotonic()
        publisher.publish_last(plan.gone())
        account.seconds["commit"] = time.monotonic() - clock


def _meter(plan: Plan) -> AbstractContextManager[ProgressMeter]:
    meter = ProgressMeter("indexed", plan.todo)
    return meter if plan.todo else nullcontext(meter)


def _receipts(plan: Plan, publisher: Publisher, execution: Execution) -> Iterator[Any]:
    if not plan.todo:
        return
    where = chain.resources(execution.device)
    say(f"model on {where} (--device {execution.device})")
    run_id, base = publisher.account.run_id, publisher.current
    yield from chain.process(plan.manifest, plan.todo, base, run_id, where, execution.batch_size)


def _keep_what_is_done(publisher: Publisher, error: BaseException) -> None:
    try:
        publisher.publish()
    except SegrecError as second:
        say(f"what was done since the last commit is lost: {second}")
    done = publisher.account.indexed + publisher.account.failed
    say(f"stopped by {type(error).__name__}; {done:,} pictures were done; run again to go on")


def _stage(base: Snapshot, add: Any, remove: Any, info: Any) -> Snapshot:
    return staging.stage(base, add, remove)


def _finish(published: Snapshot, staged: Snapshot, account: Account) -> Snapshot:
    """Put a rebuild in place of the published snapshot, if it is complete."""
    if account.postponed:
        say(f"{account.postponed:,} pictures are left; run again with --rebuild to go on")
        return published
    after = store.replace(published, staged, {"segrec": {**account.summary(), "rebuild": True}})
    staging.discard(published.index, staged.model_id)
    return after
