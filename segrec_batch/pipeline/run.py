"""One run of the indexing job: list, plan, process, account, publish."""

import datetime as dt
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from segrec_batch import storage
from segrec_batch.console import ProgressMeter, say
from segrec_batch.errors import AccountingError, IndexStateError
from segrec_batch.listing import list_pictures
from segrec_batch.model.bundle import load_model
from segrec_batch.pipeline.plan import Plan, make_plan
from segrec_batch.pipeline.stages import image_id, without
from segrec_batch.store import index as store
from segrec_batch.store.files import DataFile, count_rows, write_file
from segrec_batch.store.index import Snapshot

COMMIT_SECONDS = 300.0  # a crash loses at most the work since the last commit


@dataclass
class Account:
    """The books of a run: what was listed, and what became of it."""

    run_id: str
    listed: int
    unchanged: int
    skipped: int
    indexed: int = 0
    failed: int = 0
    gone: int = 0
    commits: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def check(self, before: Snapshot, after_images: int, dropped_images: int) -> None:
        """listed = unchanged + skipped + indexed + failed, and images = old − dropped + indexed.

        Raises AccountingError.
        """
        accounted = self.unchanged + self.skipped + self.indexed + self.failed
        if self.listed != accounted:
            raise AccountingError(
                f"{self.listed} pictures listed, but {accounted} accounted for "
                f"({self.unchanged} unchanged, {self.skipped} skipped, {self.indexed} indexed, "
                f"{self.failed} failed): the last batch is not published; run the job again"
            )
        expected = before.rows("images") - dropped_images + self.indexed
        if after_images != expected:
            raise AccountingError(
                f"the index would have {after_images} images in place of {expected}: the last "
                "batch is not published; run the job again"
            )


@dataclass
class _Pending:
    """Files in place that are not yet committed, and the image_ids whose old rows they replace."""

    files: list[DataFile] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)


def open_or_create(index: str, model_uri: str) -> Snapshot:
    """The index for a model; IndexStateError if it belongs to another model."""
    model = load_model(model_uri)
    if not store.exists(index):
        return store.create(index, model)
    snapshot = store.open_snapshot(index)
    if snapshot.model_id != model.model_id:
        raise IndexStateError(
            f"{index} belongs to model {snapshot.model_id}, not to {model.model_id} ({model_uri}); "
            "rows of two models never mix: give the model of the index, or a new --index"
        )
    return snapshot


def index_pictures(
    images: str, model: str, index: str, device: str = "auto", retry_failed: bool = False
) -> tuple[Account, Snapshot]:
    """Bring an index up to date with the pictures under `images`."""
    images, index = storage.absolute(images), storage.absolute(index)
    clock = time.monotonic()
    sources = list_pictures(images)
    base = open_or_create(index, model)
    if base.spec.notice:
        say(f"warning: {base.spec.notice}")
    plan = make_plan(sources, images, base, retry_failed)
    account = Account(
        run_id=f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        listed=plan.listed,
        unchanged=plan.unchanged,
        skipped=plan.skipped,
        gone=len(plan.gone),
    )
    account.seconds["list and plan"] = time.monotonic() - clock
    say(
        f"{plan.listed:,} pictures: {plan.new:,} new, {plan.changed:,} changed, "
        f"{plan.unchanged:,} unchanged, {plan.skipped:,} failed before and skipped; "
        f"{len(plan.gone):,} gone"
    )
    if plan.nothing_to_do:
        return account, base
    return account, _run(plan, base, account, device)


def _run(plan: Plan, base: Snapshot, account: Account, device: str) -> Snapshot:
    clock = time.monotonic()
    first = current = base
    dropped = 0
    pending = _Pending()
    last_commit = clock
    with ProgressMeter("indexed", plan.manifest.num_rows) as meter:
        for files, replaced in _receipts(plan, base, account.run_id, device):
            pending.files += files
            pending.replaced += replaced
            meter.advance(_count(files, account))
            if time.monotonic() - last_commit > COMMIT_SECONDS:
                current, n = _publish(current, pending, account)
                dropped += n
                pending, last_commit = _Pending(), time.monotonic()
    account.seconds["process"] = time.monotonic() - clock
    clock = time.monotonic()
    pending.replaced += [image_id(uri) for uri in plan.gone]
    current, _ = _publish(current, pending, account, first=first, dropped=dropped)
    account.seconds["commit"] = time.monotonic() - clock
    return current


def _receipts(
    plan: Plan, base: Snapshot, run_id: str, device: str
) -> Iterator[tuple[list[DataFile], list[str]]]:
    """Process the plan on Ray, if there is anything to process."""
    if plan.manifest.num_rows == 0:
        return
    from segrec_batch.pipeline import chain  # starting Ray takes seconds

    with chain.cluster():
        where = chain.resources(device)
        say(f"model on {where} (--device {device})")
        for receipts in chain.process(plan.manifest, base, run_id, where):
            yield _files(receipts)


def _files(receipts: pa.Table) -> tuple[list[DataFile], list[str]]:
    rows = receipts.to_pylist()
    replaced = [i for row in rows for i in row.pop("replaced") or ()]
    return [DataFile(**row) for row in rows], replaced


def _count(files: Sequence[DataFile], account: Account) -> int:
    indexed, failed = count_rows(files, "images"), count_rows(files, "failures")
    account.indexed += indexed
    account.failed += failed
    return indexed + failed


def _publish(
    base: Snapshot,
    pending: _Pending,
    account: Account,
    first: Snapshot | None = None,
    dropped: int = 0,
) -> tuple[Snapshot, int]:
    """Commit what is pending, old rows of replaced images taken out; also how many those were.

    The last commit of a run gives `first`, the snapshot it began with, and how many rows earlier
    commits dropped: the books are then checked before anything becomes visible.
    """
    remove, rewritten, dropped_now = _drop(base, pending.replaced)
    add = [*pending.files, *rewritten]
    if first is not None:
        images = base.rows("images") + count_rows(add, "images") - count_rows(remove, "images")
        account.check(first, images, dropped + dropped_now)
    if not add and not remove:  # earlier commits had it all
        return base, dropped_now
    account.commits += 1
    info = {"segrec": {k: v for k, v in asdict(account).items() if k != "seconds"}}
    return store.commit(base, add, remove, info), dropped_now


def _drop(base: Snapshot, image_ids: Sequence[str]) -> tuple[list[DataFile], list[DataFile], int]:
    """Files that hold rows of images, what is left of them rewritten, and how many images went."""
    remove: list[DataFile] = []
    rewritten: list[DataFile] = []
    dropped = 0
    if not image_ids:
        return remove, rewritten, dropped
    for table, files in base.files.items():
        for file in files:
            content = storage.read_bytes(file.uri(base.index))
            rows = pq.ParquetFile(pa.BufferReader(content)).read()
            left = without(rows, image_ids)
            if left.num_rows == rows.num_rows:
                continue
            remove.append(file)
            if left.num_rows:
                rewritten.append(write_file(base.index, table, left, file.partition))
            if table == "images":
                dropped += rows.num_rows - left.num_rows
    return remove, rewritten, dropped
