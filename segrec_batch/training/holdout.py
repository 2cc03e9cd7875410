"""Which groups of labelled images to hold out (scikit-learn)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit

SHARE = 0.3  # of the images; Abdullah 2026 tests on 30 %
_TRIES = 200


def hold_out(groups: Sequence[str], seed: int, share: float = SHARE) -> NDArray[np.bool_]:
    """Whether each image, of these groups (n,), is held out: whole groups, about `share` of them.

    Of random choices of groups the one whose images come nearest to the share; one group at
    least is held out, one at least is left (ValueError if there is only one).
    """
    n = len(groups)
    splits = GroupShuffleSplit(_TRIES, test_size=share, random_state=seed)
    rows = np.arange(n)
    choices = [test for _, test in splits.split(rows, groups=groups)]
    best = min(choices, key=lambda test: abs(len(test) - share * n))
    return np.asarray(np.isin(rows, best))
