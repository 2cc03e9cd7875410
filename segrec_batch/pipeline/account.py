"""The books of a run: what was listed, and what became of it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from segrec_batch.errors import AccountingError
from segrec_batch.model.engines import EngineChoice
from segrec_batch.pipeline.plan import Plan
from segrec_batch.pipeline.tally import STAGES, Cost, most_frequent, total
from segrec_batch.store.index import Snapshot


@dataclass(frozen=True)
class Stage:
    """What a stage cost: seconds, summed over its workers; its share in those of all stages; the
    images/s of one worker while it is at this stage, None if it took no time or had no picture.
    """

    name: str
    seconds: float
    share: float
    rate: float | None


@dataclass
class Account:
    """Counts of sources, and what they cost.

    listed = unchanged + skipped + postponed + indexed + failed
    old    = kept + replaced + gone

    skipped failed before; postponed are beyond `--limit`. copied: of the indexed ones, those that
    had the bytes of an image in the index. old: sources that the index had rows of; replaced: of
    these, those that have new rows. described: vectors that indexed images lacked. reasons: of the
    failed ones, by label (tally.py). cost: COST, of the indexed and the failed, each counted once
    however often Ray ran it. bytes_written: of new parts. seconds: of the driver, by what it did.
    engine: what ran the model; None if it was not run. images_root: what was listed.
    """

    run_id: str
    listed: int
    unchanged: int
    skipped: int
    postponed: int
    gone: int
    replaced: int
    new: int
    changed: int
    retried: int
    indexed: int = 0
    copied: int = 0
    failed: int = 0
    described: int = 0
    commits: int = 0
    bytes_written: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    cost: Cost = field(default_factory=lambda: total(()))
    seconds: dict[str, float] = field(default_factory=dict)
    engine: EngineChoice | None = None
    images_root: str = ""

    @classmethod
    def open(cls, run_id: str, plan: Plan) -> "Account":
        """The books before anything is done."""
        return cls(
            run_id=run_id,
            listed=plan.listed,
            unchanged=plan["unchanged"],
            skipped=plan["skipped"],
            postponed=plan.postponed,
            gone=plan["gone"],
            replaced=plan.replaced,
            new=plan["new"],
            changed=plan["changed"],
            retried=plan["retried"],
        )

    def __str__(self) -> str:
        return (
            f"{self.listed:,} pictures: {self.new:,} new, {self.changed:,} changed, "
            f"{self.unchanged:,} unchanged, {self.retried:,} failed before and tried again, "
            f"{self.skipped:,} failed before and skipped; {self.gone:,} gone"
        )

    @property
    def processed(self) -> int:
        """Pictures of this run that are indexed or failed."""
        return self.indexed + self.failed

    @property
    def starved(self) -> float | None:
        """Share of the time of the model's actors in which they waited for pictures; None if they
        were not called.
        """
        busy, waited = self.cost["segment"], self.cost["starved"]
        return waited / (busy + waited) if busy else None

    def stages(self) -> Iterator[Stage]:
        """What each stage cost. Of none, if nothing was processed."""
        whole = sum(self.cost[name] for name in STAGES)
        for name, pictures in self._pictures().items():
            seconds = self.cost[name]
            rate = pictures / seconds if pictures and seconds else None
            if whole:
                yield Stage(name, seconds, seconds / whole, rate)

    def _pictures(self) -> Mapping[str, int]:
        """How many pictures each stage has seen."""
        unread = sum(n for label, n in self.reasons.items() if label.startswith("read: "))
        fresh = self.indexed - self.copied
        decoded = self.processed - self.copied - unread
        seen = (self.processed, decoded, fresh, fresh, self.processed)
        return dict(zip(STAGES, seen, strict=True))

    def summary(self) -> dict[str, Any]:
        """What a commit remembers of the run: plain counts, and rates of stages."""
        apart = ("seconds", "cost", "reasons", "engine")
        counts = {k: v for k, v in vars(self).items() if k not in apart}
        return {
            **counts,
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
        """Prove both sums, from the rows that the files have. Raises AccountingError."""
        accounted = self.unchanged + self.skipped + self.postponed + self.indexed + self.failed
        if self.listed != accounted:
            raise AccountingError(
                f"{self.listed} pictures listed, but {accounted} accounted for "
                f"({self.unchanged} unchanged, {self.skipped} skipped, {self.postponed} postponed, "
                f"{self.indexed} indexed, {self.failed} failed): {_NOT_PUBLISHED}"
            )
        old, now = _sources(before), _sources(after)
        kept = now - self.indexed - self.failed
        if old != kept + self.replaced + self.gone:
            raise AccountingError(
                f"the index had {old} sources, but {kept} kept, {self.replaced} replaced and "
                f"{self.gone} gone do not add up to it: {_NOT_PUBLISHED}"
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


def _sources(snapshot: Snapshot) -> int:
    return snapshot.rows("images") + snapshot.rows("failures")
