"""Counts and costs of one indexing run."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from segrec_batch.common.errors import AccountingError, SourceError
from segrec_batch.common.limits import Limit
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.engines import EngineChoice
from segrec_batch.pipeline.plan import Plan
from segrec_batch.pipeline.tally import STAGES, Cost, FailureReason, count_most_frequent, sum_costs


@dataclass(frozen=True)
class Stage:
    """Cost of one stage.

    Attributes:
        name: one of `tally.STAGES`.
        seconds: sum over all workers.
        share: part of the seconds of all stages, in [0, 1].
        rate: images per second of one worker at this stage; None without time or images.
    """

    name: str
    seconds: float
    share: float
    rate: float | None


@dataclass
class RunStats:
    """Counts and costs of one indexing run.

    found    = listed + excluded + left_out
    listed   = unchanged + skipped + postponed + indexed + failed + stale
    images   = images before − old_images + stale + indexed
    failures = failures before − old_failures + stale + failed

    Attributes:
        run_id: time and random number.
        found: files below the folder.
        excluded: files left out by globs.
        left_out: files that are no images, by kind.
        listed: images.
        unchanged: images that equal their source in the index in size and time.
        skipped: images that failed before and are not tried again.
        postponed: images beyond the limit of the run.
        gone: images of the index that are not listed any more.
        replaced: images of this run that have rows in the index.
        old_images: rows of `images` of replaced and gone images; those of stale images stay.
        old_failures: rows of `failures` of replaced and gone images, which are all removed.
        new: images that the index does not know.
        changed: images with another size or time than in the index.
        retried: images that failed before and are processed again.
        indexed: images with new rows.
        copied: indexed images that have the bytes of an image of the index.
        failed: images that could not be indexed and have no row of `images`.
        stale: images that could not be read and keep their row of `images`.
        described: number of vectors added to images that were indexed before.
        reread: images whose pixels these vectors need.
        unread: images of these that could not be read.
        outside: images that were not read again, because they lie below no root of the index.
        commits: commits of the run.
        bytes_written: bytes of new parts.
        reasons: counts of failed and stale images.
        cost: fields of COST; each image counts once, however often Ray processes it.
        seconds: time of the driver by phase.
        engine: engine of the model; None if it did not run.
        images_root: the folder that was listed.
    """

    run_id: str
    found: int
    excluded: int
    left_out: Counter[str]
    listed: int
    unchanged: int
    skipped: int
    postponed: int
    gone: int
    replaced: int
    old_images: int
    old_failures: int
    new: int
    changed: int
    retried: int
    indexed: int = 0
    copied: int = 0
    failed: int = 0
    stale: int = 0
    described: int = 0
    reread: int = 0
    unread: int = 0
    outside: int = 0
    commits: int = 0
    bytes_written: int = 0
    reasons: Counter[FailureReason] = field(default_factory=Counter)
    cost: Cost = field(default_factory=lambda: sum_costs(()))
    seconds: dict[str, float] = field(default_factory=dict)
    engine: EngineChoice | None = None
    images_root: str = ""

    @classmethod
    def of_plan(cls, run_id: str, plan: Plan) -> "RunStats":
        """Return the counts before anything is processed."""
        return cls(
            run_id=run_id,
            found=plan.files.total,
            excluded=plan["excluded"],
            left_out=plan.files.left_out,
            listed=plan.listed,
            unchanged=plan["unchanged"],
            skipped=plan["skipped"],
            postponed=plan.postponed,
            gone=plan["gone"],
            replaced=plan.replaced,
            old_images=plan.old_images,
            old_failures=plan.old_failures,
            new=plan["new"],
            changed=plan["changed"],
            retried=plan["retried"],
        )

    def __str__(self) -> str:
        text = (
            f"{self.listed:,} images: {self.new:,} new, {self.changed:,} changed, "
            f"{self.unchanged:,} unchanged, {self.retried:,} failed before and tried again, "
            f"{self.skipped:,} failed before and skipped; {self.gone:,} gone"
        )
        if self.excluded:
            text += f"; {self.excluded:,} excluded"
        if self.left_out:
            kinds = ", ".join(f"{k} {n:,}" for k, n in count_most_frequent(self.left_out).items())
            text += f"; {self.left_out.total():,} other files left out ({kinds})"
        return text

    @property
    def processed(self) -> int:
        """Number of images that are indexed, failed or stale."""
        return self.indexed + self.failed + self.stale

    @property
    def read_failures(self) -> Counter[str]:
        """Counts of images that could not be read, also for new descriptors, by reason."""
        counts = Counter({r.text: n for r, n in self.reasons.items() if r.stage == "read"})
        if self.unread:
            counts["no pixels for new descriptors"] = self.unread
        return counts

    def check_read_failures(self, limit: Limit) -> None:
        """Raise SourceError if more images could not be read than `limit` accepts."""
        reasons, read = self.read_failures, self.processed + self.reread
        failed = reasons.total()
        if limit.is_exceeded(failed, read):
            raise SourceError(
                f"{failed:,} of {read:,} sources could not be read, most often "
                f"{reasons.most_common(1)[0][0]}: more than --max-read-failures {limit}. The rest "
                f"is published, and {self.stale:,} of them keep their old rows; remove the cause "
                f"and run again, which tries them all, or accept it: --max-read-failures {failed}"
            )

    @property
    def starved(self) -> float | None:
        """Share of time, in [0, 1], in which the model waited for images; None without calls."""
        busy, waited = self.cost["segment"], self.cost["starved"]
        return waited / (busy + waited) if busy else None

    def stages(self) -> Iterator[Stage]:
        """Yield the cost of each stage; nothing if no image was processed."""
        total = sum(self.cost[name] for name in STAGES)
        for name, images in self._count_images().items():
            seconds = self.cost[name]
            rate = images / seconds if images and seconds else None
            if total:
                yield Stage(name, seconds, seconds / total, rate)

    def _count_images(self) -> Mapping[str, int]:
        """Return the number of images that each stage processed."""
        unread = sum(n for reason, n in self.reasons.items() if reason.stage == "read")
        fresh = self.indexed - self.copied
        decoded = self.processed - self.copied - unread
        images = (self.processed, decoded, fresh, fresh, self.processed)
        return dict(zip(STAGES, images, strict=True))

    def summary(self) -> dict[str, Any]:
        """Return counts and rates of stages as JSON values; commits store them."""
        excluded_fields = ("seconds", "cost", "reasons", "engine", "left_out")
        counts = {k: v for k, v in vars(self).items() if k not in excluded_fields}
        return {
            **counts,
            "left_out": count_most_frequent(self.left_out),
            "reasons": count_most_frequent(self.reasons),
            "engine": self.engine and asdict(self.engine),
            "bytes_read": self.cost["bytes_read"],
            "starved": self.starved and round(self.starved, 4),
            "stages": {
                s.name: {
                    "seconds": round(s.seconds, 3),
                    "share": round(s.share, 4),
                    "images_per_second": s.rate and round(s.rate, 3),
                }
                for s in self.stages()
            },
        }

    def check(self, before: Snapshot, after: Snapshot) -> None:
        """Compare the counts with the rows of both snapshots. Raises AccountingError."""
        self.check_sources()
        for table, old, added in (
            ("images", self.old_images - self.stale, self.indexed),
            ("failures", self.old_failures, self.failed + self.stale),
        ):
            expected, rows = before.rows(table) - old + added, after.rows(table)
            if rows != expected:
                raise AccountingError(
                    f"{before.rows(table)} rows of {table}, less {old} and with {added} more, do "
                    f"not add up to the {rows} rows of the new snapshot: {_NOT_PUBLISHED}"
                )

    def check_sources(self) -> None:
        """Check that each file and image is counted once. Raises AccountingError."""
        left_out = self.left_out.total()
        if self.found != self.listed + self.excluded + left_out:
            raise AccountingError(
                f"{self.found} files found, but {self.listed} listed, {self.excluded} excluded and "
                f"{left_out} left out: {_NOT_PUBLISHED}"
            )
        total = self.unchanged + self.skipped + self.postponed + self.processed
        if self.listed != total:
            raise AccountingError(
                f"{self.listed} images listed, but {total} accounted for "
                f"({self.unchanged} unchanged, {self.skipped} skipped, {self.postponed} postponed, "
                f"{self.indexed} indexed, {self.failed} failed, {self.stale} stale): "
                f"{_NOT_PUBLISHED}"
            )

    def check_descriptors(self, after: Snapshot) -> None:
        """Check that each image has a row for each descriptor. Raises AccountingError."""
        images = after.rows("images")
        for descriptor in after.spec.descriptors:
            rows = after.vectors(descriptor.id)
            if rows != images:
                raise AccountingError(
                    f"{rows} rows of {descriptor.name} for {images} images: {_NOT_PUBLISHED}"
                )


_NOT_PUBLISHED = "the last commit is not published; run the job again"
