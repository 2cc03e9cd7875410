"""Selection of held-out images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit, train_test_split

SHARE = 0.3  # share of held-out images; Abdullah 2026 tests on 30 %
_TRIES = 200


def hold_out(groups: Sequence[str], seed: int, share: float = SHARE) -> NDArray[np.bool_]:
    """Return a mask (n,) of the images to hold out: whole groups, about `share` of the images.

    The function draws random selections of groups and takes the one nearest to the share. At least
    one group is held out and at least one is not.

    Raises:
        ValueError: there is only one group.
    """
    n = len(groups)
    splits = GroupShuffleSplit(_TRIES, test_size=share, random_state=seed)
    rows = np.arange(n)
    selections = [test for _, test in splits.split(rows, groups=groups)]
    best = min(selections, key=lambda test: abs(len(test) - share * n))
    return np.asarray(np.isin(rows, best))


def hold_out_of_each(
    classes: NDArray[np.int64], seed: int, share: float = SHARE
) -> NDArray[np.bool_]:
    """Return a mask (n,) of the images to hold out: about `share` of each class, at random.

    Args:
        classes: (n,), the class of each image.
        seed: of the draw.
        share: in (0, 1).

    Raises:
        ValueError: there are fewer images on a side than classes, or a class has one image.
    """
    rows = np.arange(len(classes))
    _, test = train_test_split(rows, test_size=share, random_state=seed, stratify=classes)
    return np.asarray(np.isin(rows, test))
