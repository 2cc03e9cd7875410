"""Coverage: the share σ of a class in an image by the labels, and σ̂ by a method."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segrec_batch.evaluation.segmentation.counts import Tally
from segrec_batch.evaluation.segmentation.ratios import MEAN
from segrec_batch.evaluation.statistics import Key, Measure

BINS = 8  # of the calibration, at most
BIN_IMAGES = 4  # at least

Shares = NDArray[np.float64]


def shares(counts: NDArray[np.int64] | Shares) -> Shares:
    """Counts (n, K) → shares of each row; NaN where there is nothing to share."""
    total = counts.sum(axis=1, keepdims=True).astype(np.float64)
    nothing = np.full(counts.shape, np.nan)
    return np.asarray(np.divide(counts, total, out=nothing, where=total > 0))


def coverage_measures(tally: Tally, names: Sequence[str], at: Key) -> dict[Key, Measure]:
    """coverage_error, the mean of |σ̂ − σ| over images, and coverage_bias, the mean of σ̂ − σ.

    σ̂ is the share of cells of the feature grid (Abdullah 2026, eq. 7), σ that of labelled pixels.
    Absent for a class that no label has; the means are over the foreground.
    """
    difference = shares(tally.cells) - shares(tally.labelled)
    found = {}
    for name, values in (("coverage_error", np.abs(difference)), ("coverage_bias", difference)):
        each = [_mean_of(values[:, k], tally.labelled[:, k]) for k in range(len(names))]
        for cls, measure in zip(names, each, strict=True):
            found[replace(at, name=name, cls=cls)] = measure
        found[replace(at, name=name, cls=MEAN)] = Measure.mean(each[1:])
    return found


def _mean_of(values: Shares, labelled: NDArray[np.int64]) -> Measure:
    of = Measure.of(values)
    return Measure(of.numerator, of.denominator, labelled[:, None].astype(np.float64))


def calibration(tally: Tally, k: int) -> list[tuple[float, float, int]]:
    """Images in bins of about equally many by σ̂ of class k: mean σ̂, mean σ, number of images.

    Images in which neither is above 0 are left out: there are many, and they agree.
    """
    ours, labels = shares(tally.cells)[:, k], shares(tally.labelled)[:, k]
    known = (ours > 0) | (labels > 0)
    ours, labels = ours[known & ~np.isnan(labels)], labels[known & ~np.isnan(labels)]
    order = np.argsort(ours, kind="stable")
    bins = min(BINS, max(1, len(order) // BIN_IMAGES))
    return [
        (float(ours[part].mean()), float(labels[part].mean()), len(part))
        for part in np.array_split(order, bins)
        if len(part)
    ]
