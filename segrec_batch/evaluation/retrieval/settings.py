"""Settings under which methods are compared: filters, the query itself, neighbours and feedback."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    """Feedback before a ranking: `rounds` rounds of marks on `shown` more images each.

    way: of `segrec_batch.search.feedback`, the computation of a ranking from marks.
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
    """The candidates and the relevant images of a query.

    Attributes:
        keeps_query: the query is one of its own candidates.
        window: candidates have a σ of the query's dominant foreground class in it, by the index; a
            query without foreground has none.
        epsilon: candidates are within this semantic distance of the query.
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
    def from_row(cls, row: Mapping[str, Any] | None) -> "Setting":
        """Return the setting of a cell of the column `condition`, the plain one of None.

        Raises:
            TypeError, ValueError: for a cell of no setting.
        """
        if row is None:
            return PLAIN
        low_high, feedback = row["window"], row["feedback"]
        window = None
        if low_high is not None:
            low, high = low_high
            window = (float(low), float(high))
        if feedback is not None:
            way, rounds, shown = (feedback[name] for name in ("way", "rounds", "shown"))
            feedback = Feedback(str(way), int(rounds), int(shown))
        kept, neighbours = bool(row["keeps_query"]), row["neighbours"] or ""
        return cls(kept, window, row["epsilon"], neighbours, feedback)

    def to_row(self) -> dict[str, Any]:
        """Return the cell of the column `condition`."""
        return asdict(self)

    @property
    def name(self) -> str:
        """The value of the column `setting`, "" for the plain setting.

        >>> [Setting().name, Setting(window=(0.29, 0.96)).name, Setting(epsilon=0.9).name]
        ['', 'σ 0.29–0.96', 'ε 0.9']
        >>> Setting(feedback=Feedback("svm", 2, 10)).name
        'svm 2×10'
        """
        if self.window:
            return "σ {:g}–{:g}".format(*self.window)
        if self.epsilon is not None:
            return f"ε {self.epsilon:g}"
        if self.neighbours:
            return f"neighbours by {self.neighbours}"
        if self.feedback:
            return f"{self.feedback.way} {self.feedback.rounds}×{self.feedback.shown}"
        return "query kept" if self.keeps_query else ""

    @property
    def label(self) -> str:
        """The name in a table or plot."""
        return self.name or "no filter"

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """The place among settings: plain, query kept, windows, ε, neighbours, feedback."""
        f = self.feedback
        kinds = self.keeps_query, self.window, self.epsilon is not None, self.neighbours, f
        place = max((i for i, kind in enumerate(kinds, start=1) if kind), default=0)
        rest = (f.way, f.rounds) if f else self.window or (self.epsilon or 0, self.neighbours)
        return place, *rest


PLAIN, KEPT = Setting(), Setting(keeps_query=True)


def filter_settings(windows: Sequence[Window], epsilons: Sequence[float]) -> tuple[Setting, ...]:
    """Return the plain setting, the query kept, and one setting for each filter.

    Raises:
        InputError: for a window or ε out of range.
    """
    for low, high in windows:
        if not 0 <= low <= high <= 1:
            raise InputError(f"a σ window is {low:g} {high:g}; give 0 <= LOW <= HIGH <= 1")
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
