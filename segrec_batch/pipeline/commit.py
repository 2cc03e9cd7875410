"""Commits of a run: each adds new parts and removes the rows that they replace."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from segrec_batch.common.errors import AccountingError, SegrecError
from segrec_batch.distributed.tasks import run_tasks
from segrec_batch.index.files import DataFile, count_rows, group_by_part
from segrec_batch.index.parts import rewrite_part
from segrec_batch.index.snapshot import Snapshot, with_changes
from segrec_batch.pipeline.backfill import BackfillResult
from segrec_batch.pipeline.metrics import Metrics
from segrec_batch.pipeline.plan import Removal, RemovedIds
from segrec_batch.pipeline.run_stats import RunStats
from segrec_batch.pipeline.tally import FailureReason, sum_costs

log = logging.getLogger(__name__)

Commit = Callable[[Snapshot, Sequence[DataFile], Sequence[DataFile], Mapping[str, Any]], Snapshot]


@dataclass(frozen=True)
class RewriteTask:
    """A part to rewrite without some rows.

    Attributes:
        files: files of the newest version of the part.
        ids: `image_id`s of the rows to remove.
        part: name of the part when the run began.
    """

    index: str
    files: list[DataFile]
    ids: RemovedIds
    part: str


class Publisher:
    """Collector of the receipts of a run, which it commits from time to time.

    Attributes:
        base: the snapshot that the run adds to.
        current: the newest snapshot.
        stats: counts and costs of the run.
        metrics: Prometheus metrics of the run.

    Args:
        base: the snapshot that the run adds to.
        stats: counts and costs of the run.
        commit: function that publishes or stages a commit.
        changes_metadata: the first commit is due even without new files, e.g. for another bundle.
    """

    def __init__(
        self, base: Snapshot, stats: RunStats, commit: Commit, changes_metadata: bool = False
    ) -> None:
        self.base = self.current = base
        self.stats = stats
        self.metrics = Metrics(stats.run_id)
        self._commit = commit
        self._pending = changes_metadata
        self._last = time.monotonic()
        self._files: list[DataFile] = []
        self._removed: dict[str, RemovedIds] = {}  # by name of the part
        self._new_names: dict[tuple[str, str], str] = {}  # by old name and table

    def add_receipts(self, receipts: pa.Table) -> int:
        """Add the receipts of new parts to the next commit; return the number of their sources."""
        stats, files = self.stats, []
        reasons: Counter[FailureReason] = Counter()
        copied, stale, costs = 0, 0, []
        for row in receipts.to_pylist():
            for replaced in row.pop("replaced") or ():
                self._add_removal(replaced["part"], replaced["table"], [replaced["image_id"]])
            for reason in row.pop("reasons") or ():
                reasons[FailureReason(reason["stage"], reason["text"])] += reason["images"]
            copied += row.pop("copied") or 0
            stale += row.pop("stale") or 0
            costs.append(row.pop("cost"))
            files.append(DataFile(**row))
        self._add_files(files)
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

    def _add_removal(self, part: str, table: str, image_ids: list[str]) -> None:
        self._removed.setdefault(part, {}).setdefault(table, []).extend(image_ids)

    def _add_files(self, files: Sequence[DataFile]) -> None:
        self._files += files
        written = sum(file.size for file in files)
        self.stats.bytes_written += written
        self.metrics.count_written(written)

    def add_backfill(self, part: str, result: BackfillResult) -> int:
        """Add a backfilled part to the next commit; return the number of its new vectors."""
        self._add_files(result.files)
        if result.image_ids:
            self._add_removal(part, "images", result.image_ids)
        self.stats.described += result.vectors
        self.stats.reread += result.read
        self.stats.unread += result.unread
        self.stats.outside += result.outside
        return result.vectors

    def publish_every(self, seconds: float) -> None:
        """Commit if the last commit was more than `seconds` ago."""
        if time.monotonic() - self._last > seconds:
            self.publish()

    def publish(self) -> None:
        """Commit what was written since the last commit."""
        if self._files or self._pending:
            self._publish(self._removed.items())

    @contextmanager
    def publish_on_error(self) -> Iterator[None]:
        """Commit the finished parts if the block raises an error."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            try:
                self.publish()
            except SegrecError as publish_error:
                log.warning(f"results since the last commit are lost: {publish_error}")
            done, name = self.stats.processed, type(error).__name__
            text = f"stopped by {name}; {done:,} images were done; run again to go on"
            log.info(text, extra={"event": "stopped", "done": done, "error": name})
            raise

    def publish_last(self, gone: Iterable[Removal]) -> None:
        """Commit the remaining parts, and remove the rows of sources that are gone.

        Raises:
            AccountingError: the sums are wrong; nothing is published.
        """
        self._publish(self._merge_removals(gone), lambda after: self.stats.check(self.base, after))

    def publish_backfill(self) -> None:
        """Commit the remaining parts of the backfill.

        Raises:
            AccountingError: an image lacks a row of a descriptor; nothing is published.
        """
        self._publish(self._removed.items(), self.stats.check_descriptors)

    def _merge_removals(self, gone: Iterable[Removal]) -> Iterator[Removal]:
        removed = dict(self._removed)
        for part, ids in gone:
            replaced = removed.pop(part, {})
            yield part, {t: [*replaced.get(t, ()), *ids.get(t, ())] for t in {*ids, *replaced}}
        yield from removed.items()

    def _publish(
        self,
        removals: Iterable[Removal],
        check: Callable[[Snapshot], None] | None = None,
    ) -> None:
        remove, add = self._rewrite_parts(removals)
        add += self._files
        after = with_changes(self.current, add, remove)
        if check:
            check(after)
        if add or remove or self._pending:  # else earlier commits hold everything
            self.stats.commits += 1
            self.current = self._commit(self.current, add, remove, {"segrec": self.stats.summary()})
            self.metrics.count_commit()
        self._files, self._removed, self._pending = [], {}, False
        self._last = time.monotonic()

    def _rewrite_parts(self, removals: Iterable[Removal]) -> tuple[list[DataFile], list[DataFile]]:
        """Rewrite parts without some rows; return the files to remove and to add."""
        remove: list[DataFile] = []
        add: list[DataFile] = []
        for task, new_files in run_tasks(_rewrite_part, self._iter_rewrites(removals)):
            for table, image_ids in task.ids.items():
                removed = count_rows(task.files, table) - count_rows(new_files, table)
                if removed != len(image_ids):
                    raise AccountingError(
                        f"{len(image_ids)} old rows of part {task.part} should be removed, but "
                        f"{removed} were; nothing is published; check the index with segrec "
                        "maintain verify"
                    )
            remove += task.files
            add += new_files
            for file in new_files:
                table = "failures" if file.table == "failures" else "images"
                self._new_names[task.part, table] = file.part
        return remove, add

    def _iter_rewrites(self, removals: Iterable[Removal]) -> Iterator[RewriteTask]:
        """Yield a task for each part with rows to remove, under its newest name.

        A part of an old index may have rows of `images` and `failures`; it becomes two parts.
        """
        parts = group_by_part(self.current.all_files)
        for part, ids in removals:
            ids_by_part: dict[str, RemovedIds] = {}
            for table, image_ids in ids.items():
                newest = self._new_names.get((part, table), part)
                ids_by_part.setdefault(newest, {})[table] = image_ids
            for name, removed_ids in ids_by_part.items():
                yield RewriteTask(self.current.index, parts.get(name, []), removed_ids, part)


def _rewrite_part(task: RewriteTask) -> list[DataFile]:
    images, failures = (task.ids.get(table, []) for table in ("images", "failures"))
    return rewrite_part(task.index, task.files, images, failures)
