"""Metric values and their intervals.

Every metric value is a mean of ratios of sums over *units*, which are labelled images or queries:
IoU is Σ intersection / Σ union over images, mAP is Σ average precision / Σ 1 over queries, mean IoU
is the mean of such ratios over the classes. One bootstrap over units gives all intervals.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000

Sums = NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Key:
    """Identity of a metric value; fields that do not apply are empty.

    name: metric. method: evaluated method. split: units of evaluation and training. setting: other
    condition, such as a filter. cls: class, empty for all classes. k: number of results, 0 for all.
    """

    name: str
    method: str = ""
    split: str = ""
    setting: str = ""
    cls: str = ""
    k: int = 0

    def __str__(self) -> str:
        name = f"{self.name}@{self.k}" if self.k else self.name
        parts = (name, self.cls, self.method, self.split, self.setting)
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Measure:
    """Mean over c parts of Σ numerator / Σ denominator, with sums over n units.

    numerator, denominator: (n, c) float64. A part whose denominator sums to 0 is left out; without
    any part the value is absent, which is not 0. present: (n, c), by default the denominator; a
    part where it sums to 0 is left out as well, such as a class without labels.
    """

    numerator: Sums
    denominator: Sums
    present: Sums | None = None

    @classmethod
    def of(cls, values: Sums, counted: NDArray[np.bool_] | None = None) -> "Measure":
        """Return the mean of values (n,), or of those that are `counted`; NaN never counts."""
        known = ~np.isnan(values) if counted is None else counted & ~np.isnan(values)
        numerator = np.where(known, values, 0.0)[:, None]
        return cls(numerator, known[:, None].astype(np.float64))

    @classmethod
    def mean(cls, parts: Sequence["Measure"]) -> "Measure":
        """Return the mean of several measures of the same units."""
        return cls(
            np.hstack([p.numerator for p in parts]),
            np.hstack([p.denominator for p in parts]),
            np.hstack([p.denominator if p.present is None else p.present for p in parts]),
        )

    @property
    def value(self) -> float | None:
        """Value over all units, or None if it is absent."""
        (value,) = self.weighted(np.ones((1, len(self.numerator))))
        return None if np.isnan(value) else float(value)

    @property
    def units(self) -> int:
        """Number of units that contribute to the value."""
        return int((self.denominator > 0).any(axis=1).sum())

    def weighted(self, weights: NDArray[np.floating]) -> Sums:
        """Return the value for each row of weights (draws, n), NaN where it is absent."""
        numerator, denominator = weights @ self.numerator, weights @ self.denominator
        known = denominator > 0
        if self.present is not None:
            known &= weights @ self.present > 0
        ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=known)
        parts = known.sum(axis=1)
        absent = np.full(len(parts), np.nan)
        return np.asarray(np.divide(ratios.sum(axis=1), parts, out=absent, where=parts > 0))


@dataclass(frozen=True)
class Estimate:
    """Metric value with its 95 % bootstrap interval over units; None where it is absent.

    units: number of images or queries that contribute to it.
    """

    key: Key
    value: float | None
    low: float | None
    high: float | None
    units: int


@dataclass(frozen=True)
class Evaluation:
    """Measures over the same units in the same order; units are names of images or queries."""

    units: tuple[str, ...]
    measures: Mapping[Key, Measure] = field(default_factory=dict)

    def estimates(self, draws: int = DRAWS, seed: int = 0) -> list[Estimate]:
        """Return all values with intervals: percentiles over `draws` resamples of the units."""
        intervals = {key: _interval(values) for key, values in self.resampled(draws, seed)}
        return [Estimate(k, m.value, *intervals[k], m.units) for k, m in self.measures.items()]

    def resampled(self, draws: int = DRAWS, seed: int = 0) -> Iterator[tuple[Key, Sums]]:
        """Yield each value in `draws` resamples (draws,), NaN where it is absent.

        The same seed draws the same units, so that two evaluations of them can be paired.
        """
        weights = _weights(len(self.units), draws, seed)
        for key, measure in self.measures.items():
            yield key, measure.weighted(weights)


def contrast(
    evaluation: Evaluation, pairs: Mapping[Key, tuple[Key, Key]], draws: int = DRAWS, seed: int = 0
) -> list[Estimate]:
    """Return the first value minus the second for each new key (paired bootstrap)."""
    measures = {k: evaluation.measures[k] for k in dict.fromkeys(sum(pairs.values(), ()))}
    drawn = dict(Evaluation(evaluation.units, measures).resampled(draws, seed))
    return [
        _minus(key, measures[a], measures[b], drawn[a] - drawn[b]) for key, (a, b) in pairs.items()
    ]


def difference(
    base: Evaluation, other: Evaluation, draws: int = DRAWS, seed: int = 0
) -> list[Estimate]:
    """Return the other values minus the base's, for the keys of both, with 95 % intervals.

    Equal units are drawn together (a paired bootstrap), different units independently.
    """
    keys = [key for key in base.measures if key in other.measures]
    if not keys:
        return []
    a, b = (Evaluation(e.units, {k: e.measures[k] for k in keys}) for e in (base, other))
    drawn = dict(a.resampled(draws, seed))
    drawn_other = dict(b.resampled(draws, seed if a.units == b.units else seed + 1))
    return [_minus(k, b.measures[k], a.measures[k], drawn_other[k] - drawn[k]) for k in keys]


def _minus(key: Key, a: Measure, b: Measure, drawn: Sums) -> Estimate:
    units = min(a.units, b.units)
    if a.value is None or b.value is None:
        return Estimate(key, None, None, None, units)
    return Estimate(key, a.value - b.value, *_interval(drawn), units)


def holm(p: Sums) -> Sums:
    """Return p-values (m,) corrected for multiple tests (Holm 1979), at most 1.

    The i-th smallest, from 1, is multiplied by m + 1 − i and raised to the one before it if that is
    larger. NaN stays and does not count.

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
    """Return how often each of n units is in each resample: (draws, n)."""
    rng = np.random.default_rng(seed)
    weights = np.empty((draws, n), np.float32)
    for row in weights:
        row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
    return weights


def _interval(values: Sums) -> tuple[float | None, float | None]:
    known = values[~np.isnan(values)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
