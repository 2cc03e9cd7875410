"""Settings under which methods are compared: filters, the query itself, neighbours and feedback."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.search.feedback.refine import WAYS
from segrec_batch.search.similarity import semantic_distances

Window = tuple[float, float]
Bools = NDArray[np.bool_]

PAPER_WINDOW: Window = (0.29, 0.96)
"""σ of Abdullah 2026, figure 2."""
PAPER_EPSILON = 0.9
"""ε of Ouni 2020."""
WINDOWS: tuple[Window, ...] = ((0.05, 1), (0.1, 1), (0.2, 1), PAPER_WINDOW, (0.4, 1))
EPSILONS: tuple[float, ...] = (0.1, 0.3, 0.5, PAPER_EPSILON, 1.5)
NEIGHBOURS = 10
"""Number of nearest images that count as relevant under a setting with `neighbours`."""
SHOWN = 10
"""Number of images that a simulated user marks in a round."""


@dataclass(frozen=True)
class Feedback:
    """Feedback before a ranking: `rounds` rounds, in each of which `shown` images are marked.

    way: one of WAYS of `segrec_batch.search.feedback.refine`.
    """

    way: str
    rounds: int
    shown: int

    @property
    def page(self) -> int:
        """The last rank of the images that the ranking shows next."""
        return self.shown * (self.rounds + 1)


@dataclass(frozen=True)
class Setting:
    """The candidates and the relevant images of a query; one field at most is set.

    Attributes:
        keeps_query: the query is one of its own candidates.
        window: σ window; candidates have a σ of the query's dominant foreground class in it, by the
            index. A query without foreground has no candidates.
        epsilon: largest semantic distance between the query and its candidates.
        neighbours: a metric; the NEIGHBOURS nearest images by the whole feature are relevant, in
            place of those of the ground truth.
        feedback: the feedback before the ranking.
    """

    keeps_query: bool = False
    window: Window | None = None
    epsilon: float | None = None
    neighbours: str = ""
    feedback: Feedback | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Setting":
        """Return the setting of a cell of the column `condition`, the inverse of `asdict`."""
        window, feedback = row["window"], row["feedback"]
        return cls(
            bool(row["keeps_query"]),
            (window[0], window[1]) if window else None,
            row["epsilon"],
            row["neighbours"] or "",
            Feedback(**feedback) if feedback else None,
        )

    @property
    def name(self) -> str:
        """The value of the column `setting`, "" for the plain setting.

        >>> [Setting().name, Setting(window=(0.29, 0.96)).name, Setting(epsilon=0.9).name]
        ['', 'σ 0.29–0.96', 'ε 0.9']
        >>> Setting(feedback=Feedback("svm", 2, 10)).name
        'svm 2×10'
        """
        parts = (
            "query kept" if self.keeps_query else "",
            "σ {:g}–{:g}".format(*self.window) if self.window else "",
            "" if self.epsilon is None else f"ε {self.epsilon:g}",
            f"neighbours by {self.neighbours}" if self.neighbours else "",
            "{:s} {:d}×{:d}".format(*astuple(self.feedback)) if self.feedback else "",
        )
        return " · ".join(filter(None, parts))

    @property
    def label(self) -> str:
        """The name in a table or plot."""
        return self.name or "no filter"

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """The place among settings: plain, query kept, windows, ε, neighbours, feedback."""
        feedback = astuple(self.feedback) if self.feedback else ()
        epsilon = -1 if self.epsilon is None else self.epsilon
        return feedback, self.neighbours, epsilon, self.window or (), self.keeps_query


PLAIN, KEPT = Setting(), Setting(keeps_query=True)


def check_window(name: str, window: Window) -> None:
    """Raise InputError for a σ window out of range."""
    low, high = window
    if not 0 <= low <= high <= 1:
        raise InputError(f"{name} is {low:g} {high:g}; give 0 <= LOW <= HIGH <= 1")


def filter_settings(windows: Sequence[Window], epsilons: Sequence[float]) -> tuple[Setting, ...]:
    """Return the plain setting, the query kept, and one setting for each filter.

    Raises:
        InputError: for a window or ε out of range.
    """
    for window in windows:
        check_window("a σ window", window)
    for epsilon in epsilons:
        if not 0 <= epsilon <= 2:
            raise InputError(f"ε is {epsilon:g}; a semantic distance is 0 to 2")
    filters = [Setting(window=w) for w in windows] + [Setting(epsilon=e) for e in epsilons]
    return tuple(dict.fromkeys((PLAIN, KEPT, *filters)))


def feedback_settings(rounds: int) -> tuple[Setting, ...]:
    """Return each way of feedback over 1 to `rounds` rounds. Raises InputError below 0."""
    if rounds < 0:
        raise InputError(f"{rounds} rounds of feedback: give 0 or more")
    return tuple(
        Setting(feedback=Feedback(way, i, SHOWN)) for way in WAYS for i in range(1, rounds + 1)
    )


def candidates(
    rows: Ints, images: Collection, settings: Sequence[Setting]
) -> Iterator[tuple[Setting, Bools]]:
    """Yield for each setting the candidates of a block of queries (q,): (q, n)."""
    dominant = images.dominant[rows]
    shares = images.coverages.T[dominant].astype(np.float64)  # as SQL compares them
    shares[dominant == 0] = 0
    distances = semantic_distances(images.coverages[rows], images.coverages)
    for setting in settings:
        passes = np.ones((len(rows), len(images)), bool)
        if setting.window:
            low, high = setting.window
            passes &= (shares > 0) & (shares >= low) & (shares <= high)
        if setting.epsilon is not None:
            passes &= distances <= setting.epsilon
        if not setting.keeps_query:
            passes[np.arange(len(rows)), rows] = False
        yield setting, passes
