"""The ratios of pixel counts that the field judges segmentation by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segrec_batch.evaluation.segmentation.counts import Confusion
from segrec_batch.evaluation.statistics import Key, Measure

MEAN = "mean"
RATIOS = ("iou", "precision", "recall", "f1", "accuracy")
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Pixels:
    """Of n images and K classes, each (n, K) float64: pixels that are of a class by the labels and
    by the method (`hit`), by the labels, by the method, and all pixels that are not void.
    """

    hit: Sums
    labelled: Sums
    predicted: Sums
    total: Sums

    @classmethod
    def of(cls, confusion: Confusion) -> "Pixels":
        """From (n, K, K), rows true."""
        counts = confusion.astype(np.float64)
        hit = np.diagonal(counts, axis1=1, axis2=2)
        total = np.broadcast_to(counts.sum(axis=(1, 2))[:, None], hit.shape)
        return cls(hit, counts.sum(axis=2), counts.sum(axis=1), total)

    def only(self, wanted: NDArray[np.bool_]) -> "Pixels":
        """Those of some images, wanted (n, 1), or of others for each class, (n, K)."""
        parts = (self.hit, self.labelled, self.predicted, self.total)
        return Pixels(*(np.where(wanted, part, 0) for part in parts))

    def ratio(self, name: str, k: int) -> Measure:
        """A measure of class k against the rest: iou tp/(tp+fp+fn), precision tp/(tp+fp), recall
        tp/(tp+fn), f1 2tp/(2tp+fp+fn), accuracy (tp+tn)/all (Abdullah 2026, table 1).

        Absent if no label has the class.
        """
        hit, labelled, predicted, total = (
            part[:, k : k + 1] for part in (self.hit, self.labelled, self.predicted, self.total)
        )
        either = labelled + predicted
        numerator, denominator = {
            "iou": (hit, either - hit),
            "precision": (hit, predicted),
            "recall": (hit, labelled),
            "f1": (2 * hit, either),
            "accuracy": (total - either + 2 * hit, total),
        }[name]
        return Measure(numerator, denominator, labelled)


def figures(
    pixels: Pixels, names: Sequence[str], at: Key, ratios: Sequence[str] = RATIOS
) -> dict[Key, Measure]:
    """The ratios of each class and their means over the foreground, and the pixel accuracy."""
    found = {}
    for ratio in ratios:
        each = [pixels.ratio(ratio, k) for k in range(len(names))]
        for name, measure in zip(names, each, strict=True):
            found[replace(at, name=ratio, cls=name)] = measure
        found[replace(at, name=ratio, cls=MEAN)] = Measure.mean(each[1:])
    right = Measure(pixels.hit.sum(axis=1, keepdims=True), pixels.total[:, :1])
    found[replace(at, name="pixel_accuracy")] = right
    return found
