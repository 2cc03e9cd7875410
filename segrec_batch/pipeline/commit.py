"""Commits of a run: new parts, and in the same commit the removal of the rows they replace."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from segrec_batch.common.errors import AccountingError, SegrecError
from segrec_batch.distributed.tasks import run_tasks
from segrec_batch.index.files import DataFile, by_part, count_rows
from segrec_batch.index.parts import rewrite_part
from segrec_batch.index.snapshot import Snapshot, with_changes
from segrec_batch.pipeline.backfill import BackfillResult
from segrec_batch.pipeline.metrics import Metrics
from segrec_batch.pipeline.plan import Removal
from segrec_batch.pipeline.run_stats import RunStats
from segrec_batch.pipeline.tally import FailureReason, sum_costs

log = logging.getLogger(__name__)

Commit = Callable[[Snapshot, Sequence[DataFile], Sequence[DataFile], Mapping[str, Any]], Snapshot]
Change = tuple[list[DataFile], list[DataFile]]  # files to remove, files to add
Ids = dict[str, list[str]]  # image_ids whose rows are removed, by table: `images` or `failures`
Job = tuple[
    str, list[DataFile], Ids, str
]  # index, files of a part, ids of removed rows, name of the part


class Publisher:
    """Receipts of a run, committed from time to time.

    Attributes:
        base: the snapshot that the run adds to.
        current: the newest snapshot.
        stats: counts and costs of the run.
        metrics: Prometheus metrics of the run.

    Args:
        base: the snapshot that the run adds to.
        stats: counts and costs of the run.
        commit: function that publishes or stages a commit.
        has_news: there is something to commit without new files, such as another bundle.
    """

    def __init__(
        self, base: Snapshot, stats: RunStats, commit: Commit, has_news: bool = False
    ) -> None:
        self.base = self.current = base
        self.stats = stats
        self.metrics = Metrics(stats.run_id)
        self._commit = commit
        self._pending = has_news
        self._last = time.monotonic()
        self._files: list[DataFile] = []
        self._leaving: dict[str, Ids] = {}  # by part
        self._renamed: dict[tuple[str, str], str] = {}  # parts, by table, that were written again

    def take(self, receipts: pa.Table) -> int:
        """Count the receipts of written parts; return the number of their sources."""
        stats, files = self.stats, []
        reasons: Counter[FailureReason] = Counter()
        copied, stale, costs = 0, 0, []
        for row in receipts.to_pylist():
            for old in row.pop("replaced") or ():
                self._drop_later(old["part"], old["table"], [old["image_id"]])
            for reason in row.pop("reasons") or ():
                reasons[FailureReason(reason["stage"], reason["text"])] += reason["images"]
            copied += row.pop("copied") or 0
            stale += row.pop("stale") or 0
            costs.append(row.pop("cost"))
            files.append(DataFile(**row))
        self._add(files)
        indexed, cost = count_rows(files, "images"), sum_costs(costs)
        failed = count_rows(files, "failures") - stale
        stats.indexed += indexed
        stats.copied += copied
        stats.failed += failed
        stats.stale += stale
        stats.reasons += reasons
        stats.cost = sum_costs([stats.cost, cost])
        self.metrics.count_images(indexed - copied, copied, stale, reasons, cost)
        return indexed + failed + stale

    def _drop_later(self, part: str, table: str, image_ids: list[str]) -> None:
        self._leaving.setdefault(part, {}).setdefault(table, []).extend(image_ids)

    def _add(self, files: Sequence[DataFile]) -> None:
        self._files += files
        written = sum(file.size for file in files)
        self.stats.bytes_written += written
        self.metrics.count_written(written)

    def move(self, part: str, result: BackfillResult) -> int:
        """Count images that moved to a new part with vectors; return the number of vectors."""
        self._add(result.files)
        if result.image_ids:
            self._drop_later(part, "images", result.image_ids)
        self.stats.described += result.vectors
        self.stats.reread += result.read
        self.stats.unread += result.unread
        self.stats.outside += result.outside
        return result.vectors

    def publish_every(self, seconds: float) -> None:
        """Commit if the last commit is more than `seconds` ago."""
        if time.monotonic() - self._last > seconds:
            self.publish()

    def publish(self) -> None:
        """Commit what was written since the last commit."""
        if self._files or self._pending:
            self._publish(self._leaving.items())

    @contextmanager
    def publish_on_error(self) -> Iterator[None]:
        """Publish what is done if the block raises an error."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            try:
                self.publish()
            except SegrecError as second:
                log.warning(f"what was done since the last commit is lost: {second}")
            done, name = self.stats.processed, type(error).__name__
            text = f"stopped by {name}; {done:,} images were done; run again to go on"
            log.info(text, extra={"event": "stopped", "done": done, "error": name})
            raise

    def publish_last(self, gone: Iterable[Removal]) -> None:
        """Commit the rest and remove the rows of gone sources.

        Raises:
            AccountingError: the sums are wrong; nothing is published.
        """
        self._publish(self._with_gone(gone), lambda after: self.stats.check(self.base, after))

    def publish_backfill(self) -> None:
        """Commit the rest after the backfill.

        Raises:
            AccountingError: an image lacks a row of a descriptor; nothing is published.
        """
        self._publish(self._leaving.items(), self.stats.check_descriptors)

    def _with_gone(self, gone: Iterable[Removal]) -> Iterator[Removal]:
        leaving = dict(self._leaving)
        for part, ids in gone:
            replaced = leaving.pop(part, {})
            yield part, {t: [*replaced.get(t, ()), *ids.get(t, ())] for t in {*ids, *replaced}}
        yield from leaving.items()

    def _publish(
        self,
        dropped: Iterable[Removal],
        check: Callable[[Snapshot], None] | None = None,
    ) -> None:
        remove, add = self._drop(dropped)
        add += self._files
        after = with_changes(self.current, add, remove)
        if check:
            check(after)
        if add or remove or self._pending:  # else earlier commits had it all
            self.stats.commits += 1
            self.current = self._commit(self.current, add, remove, {"segrec": self.stats.summary()})
            self.metrics.count_commit()
        self._files, self._leaving, self._pending = [], {}, False
        self._last = time.monotonic()

    def _drop(self, dropped: Iterable[Removal]) -> Change:
        """Rewrite parts without some rows; return the files to remove and to add."""
        remove: list[DataFile] = []
        add: list[DataFile] = []
        for (_, files, ids, part), left in run_tasks(_rewrite, self._jobs(dropped)):
            for table, image_ids in ids.items():
                removed = count_rows(files, table) - count_rows(left, table)
                if removed != len(image_ids):
                    raise AccountingError(
                        f"{len(image_ids)} old rows were to leave part {part}, but {removed} did; "
                        "nothing of this is published; check the index with segrec maintain verify"
                    )
            remove += files
            add += left
            for file in left:
                self._renamed[part, _table(file)] = file.part
        return remove, add

    def _jobs(self, dropped: Iterable[Removal]) -> Iterator[Job]:
        """Yield the jobs that rewrite parts, with their present names.

        A part of an old index that has rows of both tables is rewritten as two parts.
        """
        parts = by_part(self.current.all_files)
        for part, ids in dropped:
            now: dict[str, Ids] = {}
            for table, image_ids in ids.items():
                now.setdefault(self._renamed.get((part, table), part), {})[table] = image_ids
            for name, leaving in now.items():
                both = {"images": [], "failures": [], **leaving}
                yield self.current.index, parts.get(name, []), both, part


def _table(file: DataFile) -> str:
    """Return the table by which the rows of a file are counted."""
    return "failures" if file.table == "failures" else "images"


def _rewrite(job: Job) -> list[DataFile]:
    index, files, ids, _ = job
    return rewrite_part(index, files, ids["images"], ids["failures"])
