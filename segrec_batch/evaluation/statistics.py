"""Figures of a report and their intervals.

Every figure is a mean of ratios of sums over *units*, which are labelled images or queries: IoU is
Σ intersection / Σ union over images, mAP is Σ average precision / Σ 1 over queries, and a mean IoU
is the mean of such ratios over the classes. So one bootstrap serves them all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000

Sums = NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Key:
    """What a figure is of; what does not apply is empty.

    name: of the measure. method: what is judged. split: which units it was judged on, and fitted
    on which others. setting: any other condition, such as a filter. cls: the class, or empty for
    all. k: how many results it is about, 0 for all.
    """

    name: str
    method: str = ""
    split: str = ""
    setting: str = ""
    cls: str = ""
    k: int = 0

    def __str__(self) -> str:
        name = f"{self.name}@{self.k}" if self.k else self.name
        return " · ".join(part for part in (name, *self._rest) if part)

    @property
    def _rest(self) -> tuple[str, ...]:
        return self.cls, self.method, self.split, self.setting


@dataclass(frozen=True)
class Measure:
    """The mean over c parts of Σ numerator / Σ denominator, sums over n units.

    numerator, denominator: (n, c) float64. A part whose denominator sums to 0 is left out; without
    any the figure is absent, which is not 0. present: (n, c), by default the denominator: a part
    where it sums to 0 is left out as well, such as a class that no label has.
    """

    numerator: Sums
    denominator: Sums
    present: Sums | None = None

    @classmethod
    def of(cls, values: Sums, counted: NDArray[np.bool_] | None = None) -> "Measure":
        """The mean of values (n,), or of those that are `counted`; NaN is never counted."""
        known = ~np.isnan(values) if counted is None else counted & ~np.isnan(values)
        numerator = np.where(known, values, 0.0)[:, None]
        return cls(numerator, known[:, None].astype(np.float64))

    @classmethod
    def mean(cls, parts: Sequence["Measure"]) -> "Measure":
        """The mean of several measures of the same units."""
        return cls(
            np.hstack([p.numerator for p in parts]),
            np.hstack([p.denominator for p in parts]),
            np.hstack([p.denominator if p.present is None else p.present for p in parts]),
        )

    @property
    def value(self) -> float | None:
        """The figure itself."""
        ones = np.ones((1, len(self.numerator)))
        (value,) = _values(self, ones)
        return None if np.isnan(value) else float(value)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval over units; None where it is absent.

    units: how many images or queries had a part in it.
    """

    key: Key
    value: float | None
    low: float | None
    high: float | None
    units: int


@dataclass(frozen=True)
class Judged:
    """Measures of the same units, in the same order: names of images or queries."""

    units: tuple[str, ...]
    measures: Mapping[Key, Measure] = field(default_factory=dict)

    def estimates(self, draws: int = DRAWS, seed: int = 0) -> list[Estimate]:
        """All figures with their intervals: percentiles of `draws` resamples of the units."""
        resampled = {key: _interval(values) for key, values in self.resampled(draws, seed)}
        return [
            Estimate(key, m.value, *resampled[key], _taking_part(m))
            for key, m in self.measures.items()
        ]

    def resampled(self, draws: int = DRAWS, seed: int = 0) -> Iterator[tuple[Key, Sums]]:
        """Each figure in `draws` resamples (draws,), NaN where it is absent in one.

        Of two reports on the same units, the same seed draws the same ones.
        """
        weights = _weights(len(self.units), draws, seed)
        for key, measure in self.measures.items():
            yield key, _values(measure, weights)


def contrast(
    judged: Judged, pairs: Mapping[Key, tuple[Key, Key]], draws: int = DRAWS, seed: int = 0
) -> list[Estimate]:
    """For each new key the first figure minus the second, of the same units (paired bootstrap)."""
    measures = judged.measures
    wanted = {key for pair in pairs.values() for key in pair}
    some = Judged(judged.units, {key: measures[key] for key in wanted})
    drawn = dict(some.resampled(draws, seed))
    found = []
    for key, (a, b) in pairs.items():
        units = min(_taking_part(measures[k]) for k in (a, b))
        found.append(_minus(key, measures[a], measures[b], drawn[a] - drawn[b], units))
    return found


def difference(ours: Judged, theirs: Judged, draws: int = DRAWS, seed: int = 0) -> list[Estimate]:
    """Their figures minus ours, for the keys that both have, with 95 % intervals.

    Of the same units the same ones are drawn (a paired bootstrap), of others independently.
    """
    paired = ours.units == theirs.units
    mine = dict(ours.resampled(draws, seed))
    other = dict(theirs.resampled(draws, seed if paired else seed + 1))
    found = []
    for key in (k for k in ours.measures if k in theirs.measures):
        a, b = ours.measures[key], theirs.measures[key]
        units = min(_taking_part(a), _taking_part(b))
        found.append(_minus(key, b, a, other[key] - mine[key], units))
    return found


def _minus(key: Key, a: Measure, b: Measure, drawn: Sums, units: int) -> Estimate:
    if a.value is None or b.value is None:
        return Estimate(key, None, None, None, units)
    return Estimate(key, a.value - b.value, *_interval(drawn), units)


def holm(p: Sums) -> Sums:
    """p-values (m,) corrected for being many, at most 1 (Holm 1979): the i-th smallest, from 1,
    times m + 1 − i, and no smaller than what those before it became. NaN stays and does not count.

    >>> holm(np.array([0.01, np.nan, 0.04, 0.03]))
    array([0.03,  nan, 0.06, 0.06])
    """
    order = np.argsort(p, kind="stable")  # NaN last
    order = order[: np.count_nonzero(~np.isnan(p))]
    factors = np.arange(len(order), 0, -1)
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return corrected


def _weights(n: int, draws: int, seed: int) -> NDArray[np.float32]:
    """How often each of n units is in each of the resamples of n: (draws, n)."""
    rng = np.random.default_rng(seed)
    weights = np.empty((draws, n), np.float32)
    for row in weights:
        row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
    return weights


def _values(measure: Measure, weights: NDArray[np.floating]) -> Sums:
    """The figure for each row of weights (draws, n), NaN where it is absent."""
    numerator, denominator = weights @ measure.numerator, weights @ measure.denominator
    known = denominator > 0
    if measure.present is not None:
        known &= weights @ measure.present > 0
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=known)
    parts = known.sum(axis=1)
    nothing = np.full(len(parts), np.nan)
    return np.asarray(np.divide(ratios.sum(axis=1), parts, out=nothing, where=parts > 0))


def _interval(values: Sums) -> tuple[float | None, float | None]:
    known = values[~np.isnan(values)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def _taking_part(measure: Measure) -> int:
    return int((measure.denominator > 0).any(axis=1).sum())
