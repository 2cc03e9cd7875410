"""Counts of pixels → the figures of the report.

A pure function of counts.parquet: reading it back gives the same figures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.evaluation.segmentation.counts import (
    SEGREC,
    Confusion,
    Tally,
    class_names,
    tallies,
)
from segrec_batch.evaluation.segmentation.coverage import coverage_measures
from segrec_batch.evaluation.segmentation.ratios import MEAN, Pixels, figures
from segrec_batch.evaluation.segmentation.splits import GROUPED
from segrec_batch.evaluation.segmentation.weakness import weak_measures
from segrec_batch.evaluation.statistics import DRAWS, Estimate, Evaluation, Key, Measure, contrast

PIXELS, DOMINANT = "pixels", "dominant"
_ALL = "all "
LEAKS = (("iou", MEAN), ("f1", MEAN), ("pixel_accuracy", ""))
"""What a leak is stated for: measure and class."""


def estimates(counts: pa.Table, seed: int, draws: int = DRAWS) -> list[Estimate]:
    """All figures of the report, leaks included."""
    found = []
    for judged in judge(counts):
        found += judged.estimates(draws, seed)
        found += contrast(judged, leaks(judged), draws, seed)
    return found


def judge(counts: pa.Table) -> list[Evaluation]:
    """The measures of all methods and splits; splits of the same images are judged together."""
    names = class_names(counts)
    found: dict[tuple[str, ...], dict[Key, Measure]] = {}
    for tally in _with_majority(list(tallies(counts)), names):
        measures = found.setdefault(tally.images, {})
        at = Key("", tally.method, tally.split)
        for setting, confusion in (
            (PIXELS, tally.confusion),
            (DOMINANT, dominant(tally.confusion)),
        ):
            measures |= figures(Pixels.of(confusion), names, replace(at, setting=setting))
        measures |= coverage_measures(tally, names, at)
        if tally.method == SEGREC:
            measures |= weak_measures(tally, names, at)
    return [Evaluation(images, measures) for images, measures in found.items()]


def dominant(confusion: Confusion) -> Confusion:
    """Each image as one pixel of its dominant class (Abdullah 2026, figure 3): (n, K, K).

    The foreground class of most pixels, of equals the first; background if there is none. An image
    of void has no pixel.
    """
    found = np.zeros_like(confusion)
    true, predicted = (_most(confusion.sum(axis=axis)) for axis in (2, 1))
    found[np.arange(len(found)), true, predicted] = confusion.sum(axis=(1, 2)) > 0
    return found


def _most(pixels: Confusion) -> NDArray[np.int64]:
    foreground = pixels[:, 1:]
    return np.where(foreground.any(axis=1), 1 + foreground.argmax(axis=1), 0)


def majority(confusion: Confusion) -> int:
    """The class of most labelled pixels in (n, K, K); of equals the first."""
    return int(confusion.sum(axis=(0, 2)).argmax())


def _with_majority(found: Sequence[Tally], names: Sequence[str]) -> Iterator[Tally]:
    """The tallies, and for each split that of calling every pixel the commonest class."""
    splits = set()
    for tally in found:
        yield tally
        if tally.split in splits:
            continue
        splits.add(tally.split)
        k = majority(tally.confusion)
        confusion = np.zeros_like(tally.confusion)
        confusion[:, :, k] = tally.labelled
        cells = np.zeros_like(tally.cells)
        cells[:, k] = 1
        yield replace(tally, method=majority_name(names[k]), confusion=confusion, cells=cells)


def majority_name(cls: str) -> str:
    """The method that calls every pixel one class."""
    return f"{_ALL}{cls}"


def is_fitted(method: str) -> bool:
    """Whether a method learns from a split: all but the majority."""
    return not method.startswith(_ALL)


def leaks(judged: Evaluation) -> dict[Key, tuple[Key, Key]]:
    """For each fitted method: what a split that is not by groups adds on the same images."""
    pairs = {}
    for leaky in judged.measures:
        honest = replace(leaky, split=GROUPED)
        stated = (leaky.name, leaky.cls) in LEAKS and leaky.setting in (PIXELS, DOMINANT)
        if stated and is_fitted(leaky.method) and leaky != honest and honest in judged.measures:
            pairs[leak_key(leaky)] = (leaky, honest)
    return pairs


def leak_key(leaky: Key) -> Key:
    """The key of the leak of a figure on a split that is not by groups."""
    return replace(leaky, name=f"leak_{leaky.name}", split=f"{leaky.split} − {GROUPED}")
