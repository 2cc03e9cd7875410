"""Splits of one set of labelled pictures that are judged on the same pictures.

Frames of one video, or pictures of one place, are near copies. Whole groups of them are held out;
a random half of the held-out pictures, the *judged* ones, is what every split is judged on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.training.holdout import hold_out
from segrec_batch.training.sample import Samples

GIVEN = "given"
"""The judged pictures were given apart from those trained on."""
GROUPED = "grouped"
"""Trained on other groups than those of the judged pictures."""
RANDOM = "random"
"""Trained on as many pictures of all groups, drawn at random from those that are not judged."""
AUGMENTED_FIRST = "augmented first"
"""As random, and on augmented copies of the judged pictures, as when one augments, then splits."""
SPLITS = (GROUPED, RANDOM, AUGMENTED_FIRST)


@dataclass(frozen=True)
class Splits:
    """Numbers of pictures: the judged ones, and for the grouped and the random split those that
    are trained on; sorted.
    """

    judged: NDArray[np.int64]
    grouped: NDArray[np.int64]
    random: NDArray[np.int64]

    def rows(self, split: str, samples: Samples) -> NDArray[np.bool_]:
        """Which sampled positions of all pictures a split trains on."""
        pictures = self.grouped if split == GROUPED else self.random
        rows = np.isin(samples.images, pictures)
        if split == AUGMENTED_FIRST:
            rows |= np.isin(samples.images, self.judged) & (samples.variants > 0)
        return np.asarray(rows)


def split_pictures(groups: Sequence[str], seed: int) -> Splits:
    """Divide pictures of these groups (n,). Raises InputError if they are too few."""
    if len(set(groups)) < 3:
        raise InputError(
            f"{len(set(groups))} groups of labelled pictures are too few to hold one out and "
            "cross-validate on two others: put pictures of one place into one folder or name "
            "(--groups folder, prefix or none says which), or give --test-images"
        )
    held = np.flatnonzero(hold_out(groups, seed))
    if len(held) < 2:
        raise InputError("the held-out groups have one picture only: give more labelled pictures")
    rng = np.random.default_rng(seed)
    judged = np.sort(rng.choice(held, len(held) // 2, replace=False))
    every = np.arange(len(groups))
    grouped = np.setdiff1d(every, held)
    others = np.setdiff1d(every, judged)
    return Splits(judged, grouped, np.sort(rng.choice(others, len(grouped), replace=False)))
