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
from segrec_batch.pipeline.tally import READ, STAGES, Cost, most_frequent, total


@dataclass(frozen=True)
class Stage:
    """What a stage cost: seconds, summed over its workers; its share in those of all stages; the
    images/s of one worker while it is at this stage, None if it took no time or had no image.
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

    found: files; excluded by globs; left_out: no images, by kind (listing.py). skipped failed
    before; postponed are beyond `--limit`. stale: could not be read, and keep the row of `images`
    that they have; failed: could not be indexed and have no such row (any more). copied: of the
    indexed ones, those that had the bytes of an image in the index. replaced: sources of this run
    that the index had rows of. old_images, old_failures: rows of these and of gone sources, all of
    which leave, but those in `images` of stale sources. described: vectors that indexed images
    lacked; reread, unread, outside: images that were read again for that, that could not be, and
    that lie below no root and so were not. reasons: of the failed and the stale ones, by label
    (tally.py). cost: COST, of all that are processed, each counted once however often Ray ran it.
    bytes_written: of new parts. seconds: of the driver, by what it did. engine: what ran the model;
    None if it was not run. images_root: what was listed.
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
    reasons: Counter[str] = field(default_factory=Counter)
    cost: Cost = field(default_factory=lambda: total(()))
    seconds: dict[str, float] = field(default_factory=dict)
    engine: EngineChoice | None = None
    images_root: str = ""

    @classmethod
    def open(cls, run_id: str, plan: Plan) -> "RunStats":
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
            kinds = ", ".join(f"{k} {n:,}" for k, n in most_frequent(self.left_out).items())
            text += f"; {self.left_out.total():,} other files left out ({kinds})"
        return text

    @property
    def processed(self) -> int:
        """Images of this run that are indexed, failed or stale."""
        return self.indexed + self.failed + self.stale

    @property
    def read_failures(self) -> Counter[str]:
        """Reasons why sources could not be read, the new descriptors of images included."""
        found = Counter({k.removeprefix(READ): n for k, n in self.reasons.items() if _is_read(k)})
        if self.unread:
            found["no pixels for new descriptors"] = self.unread
        return found

    def check_read_failures(self, limit: Limit) -> None:
        """Raises SourceError if more of what was to be read could not be than `limit` accepts."""
        reasons, read = self.read_failures, self.processed + self.reread
        failed = reasons.total()
        if limit.is_exceeded(failed, read):
            raise SourceError(
                f"{failed:,} of {read:,} sources could not be read, most often "
                f"{reasons.most_common(1)[0][0]}: more than --max-read-failures {limit}. The rest "
                f"is published, and {self.stale:,} of them keep their old rows; mend the cause and "
                f"run again, which tries them all, or accept it: --max-read-failures {failed}"
            )

    @property
    def starved(self) -> float | None:
        """Share of the time of the model's actors in which they waited for images; None if they
        were not called.
        """
        busy, waited = self.cost["segment"], self.cost["starved"]
        return waited / (busy + waited) if busy else None

    def stages(self) -> Iterator[Stage]:
        """What each stage cost. Of none, if nothing was processed."""
        whole = sum(self.cost[name] for name in STAGES)
        for name, images in self._images().items():
            seconds = self.cost[name]
            rate = images / seconds if images and seconds else None
            if whole:
                yield Stage(name, seconds, seconds / whole, rate)

    def _images(self) -> Mapping[str, int]:
        """How many images each stage has seen."""
        unread = sum(n for label, n in self.reasons.items() if _is_read(label))
        fresh = self.indexed - self.copied
        decoded = self.processed - self.copied - unread
        seen = (self.processed, decoded, fresh, fresh, self.processed)
        return dict(zip(STAGES, seen, strict=True))

    def summary(self) -> dict[str, Any]:
        """What a commit remembers of the run: plain counts, and rates of stages."""
        apart = ("seconds", "cost", "reasons", "engine", "left_out")
        counts = {k: v for k, v in vars(self).items() if k not in apart}
        return {
            **counts,
            "left_out": most_frequent(self.left_out),
            "reasons": most_frequent(self.reasons),
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
        """Prove the sums, from the rows that the files have. Raises AccountingError."""
        self.check_sources()
        for table, old, left in (
            ("images", self.old_images - self.stale, self.indexed),
            ("failures", self.old_failures, self.failed + self.stale),
        ):
            expected, rows = before.rows(table) - old + left, after.rows(table)
            if rows != expected:
                raise AccountingError(
                    f"{before.rows(table)} rows of {table}, less {old} and with {left} more, do "
                    f"not add up to the {rows} that there would be: {_NOT_PUBLISHED}"
                )

    def check_sources(self) -> None:
        """Prove the sums of files and sources. Raises AccountingError."""
        left_out = self.left_out.total()
        if self.found != self.listed + self.excluded + left_out:
            raise AccountingError(
                f"{self.found} files found, but {self.listed} listed, {self.excluded} excluded and "
                f"{left_out} left out: {_NOT_PUBLISHED}"
            )
        accounted = self.unchanged + self.skipped + self.postponed + self.processed
        if self.listed != accounted:
            raise AccountingError(
                f"{self.listed} images listed, but {accounted} accounted for "
                f"({self.unchanged} unchanged, {self.skipped} skipped, {self.postponed} postponed, "
                f"{self.indexed} indexed, {self.failed} failed, {self.stale} stale): "
                f"{_NOT_PUBLISHED}"
            )

    def check_descriptors(self, after: Snapshot) -> None:
        """Prove that each image has a row for each descriptor. Raises AccountingError."""
        images = after.rows("images")
        for descriptor in after.spec.descriptors:
            rows = after.vectors(descriptor.id)
            if rows != images:
                raise AccountingError(
                    f"{rows} rows of {descriptor.name} for {images} images: {_NOT_PUBLISHED}"
                )


_NOT_PUBLISHED = "the last batch is not published; run the job again"


def _is_read(label: str) -> bool:
    return label.startswith(READ)
