"""Splits of one set of labelled images that are judged on the same images.

Frames of one video, or images of one place, are near copies. Whole groups of them are held out;
a random half of the held-out images, the *judged* ones, is what every split is judged on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.training.holdout import hold_out
from segrec_batch.training.sampling import Samples

GIVEN = "given"
"""The judged images were given apart from those trained on."""
GROUPED = "grouped"
"""Trained on other groups than those of the judged images."""
RANDOM = "random"
"""Trained on as many images of all groups, drawn at random from those that are not judged."""
AUGMENTED_FIRST = "augmented first"
"""As random, and on augmented copies of the judged images, as when one augments, then splits."""
SPLITS = (GROUPED, RANDOM, AUGMENTED_FIRST)


@dataclass(frozen=True)
class Splits:
    """Numbers of images: the judged ones, and for the grouped and the random split those that
    are trained on; sorted.
    """

    judged: NDArray[np.int64]
    grouped: NDArray[np.int64]
    random: NDArray[np.int64]

    def rows(self, split: str, samples: Samples) -> NDArray[np.bool_]:
        """Which sampled positions of all images a split trains on."""
        images = self.grouped if split == GROUPED else self.random
        rows = np.isin(samples.images, images)
        if split == AUGMENTED_FIRST:
            rows |= np.isin(samples.images, self.judged) & (samples.variants > 0)
        return np.asarray(rows)


def split_images(groups: Sequence[str], seed: int) -> Splits:
    """Divide images of these groups (n,). Raises InputError if they are too few."""
    if len(set(groups)) < 3:
        raise InputError(
            f"{len(set(groups))} groups of labelled images are too few to hold one out and "
            "cross-validate on two others: put images of one place into one folder or name "
            "(--groups folder, prefix or none says which), or give --test-images"
        )
    held = np.flatnonzero(hold_out(groups, seed))
    if len(held) < 2:
        raise InputError("the held-out groups have one image only: give more labelled images")
    rng = np.random.default_rng(seed)
    judged = np.sort(rng.choice(held, len(held) // 2, replace=False))
    every = np.arange(len(groups))
    grouped = np.setdiff1d(every, held)
    others = np.setdiff1d(every, judged)
    return Splits(judged, grouped, np.sort(rng.choice(others, len(grouped), replace=False)))
