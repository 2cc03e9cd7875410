"""Differences of the figures of two reports, with intervals where their counts allow it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from segrec_batch.evaluation.compare.reports import Compared
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key, difference

PAIRED, INDEPENDENT = "paired", "independent"
NO_COUNTS, NOT_JUDGED, NOT_THE_SAME = (
    "none: no counts",
    "none: not of single units",
    "none: the counts give another figure",
)
_SAME = 1e-9  # as far apart two figures are one, and an edge of an interval is 0


@dataclass(frozen=True)
class Difference:
    """A figure of a report less that of the base. how: its interval was found, or why there is
    none.
    """

    key: Key
    base: Estimate
    other: Estimate
    estimate: Estimate
    how: str

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        low, high = self.estimate.low, self.estimate.high
        return low is not None and high is not None and (low > _SAME or high < -_SAME)

    @property
    def size(self) -> float:
        """|difference|, -1 if it is absent."""
        return -1.0 if self.estimate.value is None else abs(self.estimate.value)


def shared_keys(reports: Sequence[Compared]) -> list[Key]:
    """What all reports have a figure of, in the order of the first."""
    first, *others = reports
    return [k for k in first.estimates if all(k in r.estimates for r in others)]


def differences(
    base: Compared, other: Compared, keys: Iterable[Key], seed: int = 0
) -> list[Difference]:
    """The differences of some figures, those that are clear first, then by size."""
    judged = dict(_judged(base, other, seed))
    found = [_difference(base, other, key, judged) for key in keys]
    return sorted(found, key=lambda d: (not d.clear, -d.size, d.key))


def _judged(
    base: Compared, other: Compared, seed: int
) -> Iterator[tuple[Key, tuple[Estimate, str]]]:
    """Differences with intervals, of what both judge anew."""
    for ours in base.judged or ():
        for theirs in other.judged or ():
            both = [k for k in ours.measures if k in theirs.measures]
            how = PAIRED if ours.units == theirs.units else INDEPENDENT
            a, b = (Evaluation(j.units, {k: j.measures[k] for k in both}) for j in (ours, theirs))
            for estimate in difference(a, b, seed=seed) if both else ():
                key = estimate.key
                same = _same(a.measures[key].value, base.estimates.get(key))
                same = same and _same(b.measures[key].value, other.estimates.get(key))
                yield key, (estimate, how if same else NOT_THE_SAME)


def _same(value: float | None, estimate: Estimate | None) -> bool:
    if estimate is None or value is None or estimate.value is None:
        return estimate is not None and value is estimate.value
    return abs(value - estimate.value) <= _SAME * max(1.0, abs(value))


def _difference(
    base: Compared, other: Compared, key: Key, judged: dict[Key, tuple[Estimate, str]]
) -> Difference:
    a, b = base.estimates[key], other.estimates[key]
    estimate, how = judged.get(key, (None, NOT_JUDGED))
    if base.judged is None or other.judged is None:
        how = NO_COUNTS
    if estimate is None or how == NOT_THE_SAME:
        value = None if a.value is None or b.value is None else b.value - a.value
        estimate = Estimate(key, value, None, None, min(a.units, b.units))
    return Difference(key, a, b, estimate, how)
