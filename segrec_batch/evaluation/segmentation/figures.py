"""Metric values of the segmentation report, computed from counts of pixels.

All values are pure functions of counts.parquet: reading the file back gives the same values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.evaluation.segmentation.counts import (
    SEGREC,
    Confusion,
    MethodCounts,
    class_names,
    counts_by_method,
    shares,
)
from segrec_batch.evaluation.statistics import (
    DRAWS,
    Estimate,
    Evaluation,
    Key,
    Measure,
    Sums,
    contrast,
)

PIXELS, DOMINANT = "pixels", "dominant"
SEPARATE = "given"
"""Split whose test images were supplied separately."""
GROUPED = "grouped"
"""Split that trains on other groups of images than it tests on."""
RANDOM = "random"
"""Split that trains on as many images of all groups, drawn at random without the test images."""
AUGMENTED_FIRST = "augmented first"
"""The random split with augmented copies of the test images among the training images."""
SPLITS = (GROUPED, RANDOM, AUGMENTED_FIRST)

MEAN = "mean"
RATIOS = ("iou", "precision", "recall", "f1", "accuracy")
LEAKS = (("iou", MEAN), ("f1", MEAN), ("pixel_accuracy", ""))
"""Metric and class of which a leak is reported."""
SIZES = ("small σ", "medium σ", "large σ")
BRIGHTNESS = ("dark", "medium light", "bright")
BINS = 8  # of the calibration, at most
BIN_IMAGES = 4  # images in a bin, at least
_ALL = "all "


def estimates(counts: pa.Table, seed: int, draws: int = DRAWS) -> list[Estimate]:
    """Return all metric values of the report, leaks included."""
    results = []
    for evaluation in evaluate(counts):
        results += evaluation.estimates(draws, seed)
        results += contrast(evaluation, leaks(evaluation), draws, seed)
    return results


def evaluate(counts: pa.Table) -> list[Evaluation]:
    """Return the measures of all methods and splits, one evaluation for each set of images."""
    names = class_names(counts)
    results: dict[tuple[str, ...], dict[Key, Measure]] = {}
    for tally in _with_majority(list(counts_by_method(counts)), names):
        measures = results.setdefault(tally.images, {})
        key = Key("", tally.method, tally.split)
        for setting, confusion in (
            (PIXELS, tally.confusion),
            (DOMINANT, dominant(tally.confusion)),
        ):
            measures |= ratio_measures(Pixels.of(confusion), names, replace(key, setting=setting))
        measures |= coverage_measures(tally, names, key)
        if tally.method == SEGREC:
            measures |= condition_measures(tally, names, key)
    return [Evaluation(images, measures) for images, measures in results.items()]


class Pixels(NamedTuple):
    """Pixel counts of n images and K classes, each (n, K) float64.

    hit: pixels labelled and predicted as the class. labelled, predicted: pixels of the class by the
    labels and by the method. total: all pixels that are not void.
    """

    hit: Sums
    labelled: Sums
    predicted: Sums
    total: Sums

    @classmethod
    def of(cls, confusion: Confusion) -> "Pixels":
        """Return the counts of confusion matrices (n, K, K), rows true."""
        counts = confusion.astype(np.float64)
        hit = np.diagonal(counts, axis1=1, axis2=2)
        total = np.broadcast_to(counts.sum(axis=(1, 2))[:, None], hit.shape)
        return cls(hit, counts.sum(axis=2), counts.sum(axis=1), total)

    def ratios(self) -> dict[str, tuple[Sums, Sums]]:
        """Return numerator and denominator of each of RATIOS (Abdullah 2026, table 1).

        Of each class against the rest: iou tp/(tp+fp+fn), precision tp/(tp+fp), recall tp/(tp+fn),
        f1 2tp/(2tp+fp+fn), accuracy (tp+tn)/all.
        """
        either = self.labelled + self.predicted
        return {
            "iou": (self.hit, either - self.hit),
            "precision": (self.hit, self.predicted),
            "recall": (self.hit, self.labelled),
            "f1": (2 * self.hit, either),
            "accuracy": (self.total - either + 2 * self.hit, self.total),
        }


def ratio_measures(
    pixels: Pixels, names: Sequence[str], key: Key, ratios: Sequence[str] = RATIOS
) -> dict[Key, Measure]:
    """Return ratios of each class, their means over the foreground, and the pixel accuracy.

    The ratios of a class without labels are absent.
    """
    results: dict[Key, Measure] = {}
    every = pixels.ratios()
    for name in ratios:
        results |= _by_class(replace(key, name=name), names, *every[name], pixels.labelled)
    accuracy = Measure(pixels.hit.sum(axis=1, keepdims=True), pixels.total[:, :1])
    return {**results, replace(key, name="pixel_accuracy"): accuracy}


def _by_class(
    key: Key, names: Sequence[str], numerator: Sums, denominator: Sums, labelled: Sums
) -> dict[Key, Measure]:
    """Return the measure of each class and the mean over the foreground, from sums (n, K)."""
    parts = {name: slice(k, k + 1) for k, name in enumerate(names)} | {MEAN: slice(1, None)}
    sums = (numerator, denominator, labelled)
    return {
        replace(key, cls=cls): Measure(*(np.ascontiguousarray(s[:, part]) for s in sums))
        for cls, part in parts.items()
    }


def dominant(confusion: Confusion) -> Confusion:
    """Return each image as one pixel of its dominant class, (n, K, K) (Abdullah 2026, figure 3).

    That is the foreground class of most pixels, the first of equal ones, or the background if no
    pixel is foreground. An image of void has no pixel.
    """
    foreground = (confusion.sum(axis=axis)[:, 1:] for axis in (2, 1))
    true, predicted = (np.where(f.any(axis=1), 1 + f.argmax(axis=1), 0) for f in foreground)
    result = np.zeros_like(confusion)
    result[np.arange(len(result)), true, predicted] = confusion.sum(axis=(1, 2)) > 0
    return result


def majority(confusion: Confusion) -> int:
    """Return the class of most labelled pixels in (n, K, K), the first of equal ones."""
    return int(confusion.sum(axis=(0, 2)).argmax())


def majority_name(cls: str) -> str:
    """Return the name of the method that predicts one class everywhere."""
    return f"{_ALL}{cls}"


def is_fitted(method: str) -> bool:
    """Return whether a method is trained on a split: all but the majority class."""
    return not method.startswith(_ALL)


def _with_majority(methods: Sequence[MethodCounts], names: Sequence[str]) -> Iterator[MethodCounts]:
    """Yield the counts, and for each split those of predicting its majority class everywhere."""
    splits = set()
    for tally in methods:
        yield tally
        if tally.split not in splits:
            splits.add(tally.split)
            k = majority(tally.confusion)
            confusion, cells = np.zeros_like(tally.confusion), np.zeros_like(tally.cells)
            confusion[:, :, k] = tally.labelled
            cells[:, k] = 1
            yield replace(tally, method=majority_name(names[k]), confusion=confusion, cells=cells)


def leaks(evaluation: Evaluation) -> dict[Key, tuple[Key, Key]]:
    """Return for each fitted method and other split the pair to subtract, grouped last."""
    pairs = {}
    for key in evaluation.measures:
        grouped = replace(key, split=GROUPED)
        is_leak = (key.name, key.cls) in LEAKS and key.setting in (PIXELS, DOMINANT)
        if is_leak and is_fitted(key.method) and key != grouped and grouped in evaluation.measures:
            split = f"{key.split} − {GROUPED}"
            pairs[replace(key, name=f"leak_{key.name}", split=split)] = (key, grouped)
    return pairs


def coverage_measures(tally: MethodCounts, names: Sequence[str], key: Key) -> dict[Key, Measure]:
    """Return coverage_error, the mean of |σ̂ − σ| over images, and coverage_bias, that of σ̂ − σ.

    σ̂ is the share of cells of the feature grid (Abdullah 2026, eq. 7), σ that of labelled pixels.
    Absent for a class without labels; the means are over the foreground.
    """
    difference = shares(tally.cells) - shares(tally.labelled)
    sums, known = np.nan_to_num(difference), (~np.isnan(difference)).astype(np.float64)
    labelled = tally.labelled.astype(np.float64)
    error, bias = (replace(key, name=f"coverage_{name}") for name in ("error", "bias"))
    return {
        **_by_class(error, names, np.abs(sums), known, labelled),
        **_by_class(bias, names, sums, known, labelled),
    }


def calibration(tally: MethodCounts, k: int) -> list[tuple[float, float, int]]:
    """Return mean σ̂, mean σ and number of images in bins of equally many images by σ̂ of class k.

    Images in which both are 0 are left out: they are many and agree.
    """
    predicted, labels = shares(tally.cells)[:, k], shares(tally.labelled)[:, k]
    known = ((predicted > 0) | (labels > 0)) & ~np.isnan(labels)
    predicted, labels = predicted[known], labels[known]
    order = np.argsort(predicted, kind="stable")
    bins = min(BINS, max(1, len(order) // BIN_IMAGES))
    return [
        (float(predicted[part].mean()), float(labels[part].mean()), len(part))
        for part in np.array_split(order, bins)
        if len(part)
    ]


def condition_measures(tally: MethodCounts, names: Sequence[str], key: Key) -> dict[Key, Measure]:
    """Return IoU and recall by size of the object, brightness and number of classes.

    Abdullah 2026, section 5, names overlapping objects and high brightness as limits.
    """
    pixels = Pixels.of(tally.confusion)
    results: dict[Key, Measure] = {}
    for setting, images in conditions(tally, names).items():
        some = Pixels(*(part * images for part in pixels))
        measures = ratio_measures(some, names, replace(key, setting=setting), ("iou", "recall"))
        if setting in SIZES:  # each class has images of its own, so no value is of all pixels
            measures = {k: m for k, m in measures.items() if k.cls not in ("", names[0])}
        results |= measures
    return results


def conditions(tally: MethodCounts, names: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return the images of each condition: (n, K) if they differ by class, else (n, 1).

    Sizes are terciles of σ among the images that have the class, brightness terciles of mean
    luminance; equal values fall on the lower side.
    """
    share = shares(tally.labelled)
    sizes = np.stack([_terciles(share[:, k], share[:, k] > 0) for k in range(len(names))], axis=2)
    light = _terciles(tally.luminance, np.ones(len(tally.images), bool))
    present = (tally.labelled[:, 1:] > 0).sum(axis=1)
    return {
        **dict(zip(SIZES, sizes, strict=True)),
        **{name: images[:, None] for name, images in zip(BRIGHTNESS, light, strict=True)},
        **{overlap(n): (present == n)[:, None] for n in range(1, len(names))},
    }


def overlap(n: int) -> str:
    """Return the setting of images with n foreground classes.

    >>> overlap(1), overlap(2)
    ('1 class', '2 classes')
    """
    return f"{n} class" if n == 1 else f"{n} classes"


def _terciles(values: Sums, selected: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which selected values (n,) are in the lower, middle and upper third: (3, n)."""
    if not selected.any():
        return np.zeros((3, len(values)), bool)
    low, high = np.quantile(values[selected], (1 / 3, 2 / 3))
    thirds = np.stack([values <= low, (values > low) & (values <= high), values > high])
    return np.asarray(thirds & selected)
