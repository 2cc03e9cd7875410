"""Where a method is weak: its figures by size of the object, brightness, and overlap of classes.

Abdullah 2026, section 5, names overlapping objects and high brightness as limits of the method.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segrec_batch.evaluation.segmentation.counts import Tally
from segrec_batch.evaluation.segmentation.coverage import shares
from segrec_batch.evaluation.segmentation.ratios import Pixels, figures
from segrec_batch.evaluation.statistics import Key, Measure

WEAK_RATIOS = ("iou", "recall")
SIZES = ("small σ", "medium σ", "large σ")
BRIGHTNESS = ("dark", "medium light", "bright")


def weak_measures(tally: Tally, names: Sequence[str], at: Key) -> dict[Key, Measure]:
    """IoU and recall with the setting saying on which of the images."""
    pixels = Pixels.of(tally.confusion)
    found: dict[Key, Measure] = {}
    for setting, images in conditions(tally, names).items():
        some = figures(pixels.only(images), names, replace(at, setting=setting), WEAK_RATIOS)
        if setting in SIZES:  # of each class in images of its own: nothing is said of all pixels
            some = {key: m for key, m in some.items() if key.cls not in ("", names[0])}
        found |= some
    return found


def conditions(tally: Tally, names: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Which images meet a condition: (n, K) if each class has images of its own, else (n, 1).

    Sizes are terciles of σ among the images that have the class, brightness terciles of mean
    luminance; of equal values all fall on the lower side.
    """
    share = shares(tally.labelled)
    sizes = np.stack([_terciles(share[:, k], share[:, k] > 0) for k in range(len(names))], axis=2)
    light = _terciles(tally.luminance, np.ones(len(tally.images), bool))
    present = (tally.labelled[:, 1:] > 0).sum(axis=1)
    return {
        **dict(zip(SIZES, sizes, strict=True)),
        **{name: which[:, None] for name, which in zip(BRIGHTNESS, light, strict=True)},
        **{overlap(n): (present == n)[:, None] for n in range(1, len(names))},
    }


def overlap(n: int) -> str:
    """The setting of images that have n foreground classes.

    >>> overlap(1), overlap(2)
    ('1 class', '2 classes')
    """
    return f"{n} class" if n == 1 else f"{n} classes"


def _terciles(values: NDArray[np.float64], which: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(3, n): which of the values (n,), among some, are in the lower, middle and upper third."""
    if not which.any():
        return np.zeros((3, len(values)), bool)
    low, high = np.quantile(values[which], (1 / 3, 2 / 3))
    thirds = np.stack([values <= low, (values > low) & (values <= high), values > high])
    return np.asarray(which & thirds)
