"""Which settings are tried, and whom each lets pass."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.conditions import PLAIN, Setting, Window
from segrec_batch.evaluation.retrieval.kernels import semantic_distances

PAPER_WINDOW: Window = (0.29, 0.96)
"""σ of Abdullah 2026, figure 2."""
PAPER_EPSILON = 0.9
"""ε of Ouni 2020."""
WINDOWS: tuple[Window, ...] = ((0.05, 1), (0.1, 1), (0.2, 1), PAPER_WINDOW, (0.4, 1))
EPSILONS: tuple[float, ...] = (0.1, 0.3, 0.5, PAPER_EPSILON, 1.5)


def settings(windows: Sequence[Window], epsilons: Sequence[float]) -> tuple[Setting, ...]:
    """The plain one, the query kept, and each of the filters. Raises InputError."""
    for low, high in windows:
        if not 0 <= low <= high <= 1:
            raise InputError(f"a σ window is {low:g} {high:g}; give 0 <= LOW <= HIGH <= 1")
    for epsilon in epsilons:
        if not 0 <= epsilon <= 2:
            raise InputError(f"ε is {epsilon:g}; a semantic distance is 0 to 2")
    filters = [Setting(window=w) for w in windows] + [Setting(epsilon=e) for e in epsilons]
    return tuple(dict.fromkeys((PLAIN, Setting(kept=True), *filters)))


def allowed(
    rows: Ints, images: Collection, of: Sequence[Setting]
) -> Iterator[tuple[Setting, NDArray[np.bool_]]]:
    """For each setting who can be retrieved for a block of queries (q,): (q, n)."""
    shares = _shares(rows, images)
    distances = semantic_distances(images.coverages[rows], images.coverages)
    for setting in of:
        found = np.ones((len(rows), len(images)), bool)
        if setting.window:
            low, high = setting.window
            found &= (shares > 0) & (shares >= low) & (shares <= high)
        if setting.epsilon is not None:
            found &= distances <= setting.epsilon
        if not setting.kept:
            found[np.arange(len(rows)), rows] = False
        yield setting, found


def _shares(rows: Ints, images: Collection) -> NDArray[np.float64]:
    """σ in all images of the dominant foreground class of each query; 0 if it has none: (q, n)."""
    dominant = images.dominant[rows]
    shares = images.coverages.T[dominant].astype(np.float64)  # as SQL compares them
    shares[dominant == 0] = 0
    return shares
