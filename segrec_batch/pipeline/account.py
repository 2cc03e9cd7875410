"""The books of a run: what was listed, and what became of it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from segrec_batch.errors import AccountingError
from segrec_batch.pipeline.plan import Plan
from segrec_batch.store.index import Snapshot


@dataclass
class Account:
    """Counts of sources.

    listed = unchanged + skipped + postponed + indexed + failed
    old    = kept + replaced + gone

    skipped failed before; postponed are beyond `--limit`. copied: of the indexed ones, those that
    had the bytes of an image in the index. old: sources that the index had rows of; replaced: of
    these, those that have new rows. described: vectors that indexed images lacked.
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
    seconds: dict[str, float] = field(default_factory=dict)

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

    def summary(self) -> dict[str, Any]:
        """What a commit remembers of the run: plain counts."""
        return {k: v for k, v in asdict(self).items() if k != "seconds"}

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
