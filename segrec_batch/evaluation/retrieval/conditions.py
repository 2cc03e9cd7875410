"""The conditions under which methods are compared, each one step away from the plain one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from segrec_batch.common.errors import InputError

Window = tuple[float, float]
NEIGHBOURS = 10


@dataclass(frozen=True)
class Feedback:
    """What came before a ranking: rounds of feedback, each with marks on `shown` images more.

    way: how marks became the ranking, of `segrec_batch.search.feedback`.
    """

    way: str
    rounds: int
    shown: int

    @property
    def page(self) -> int:
        """The last rank of the images that this ranking shows next."""
        return self.shown * (self.rounds + 1)


@dataclass(frozen=True)
class Setting:
    """Who can be retrieved. kept: the query, too. window: only images whose σ of the query's
    dominant foreground class lies in it, both by the index; nobody for a query without foreground.
    epsilon: only images within this semantic distance. None lets everybody pass.

    neighbours: a metric; then relevant is not what the ground truth says, but the NEIGHBOURS others
    that are nearest to the query by it, compared by the whole feature. feedback: what marks came
    before; everybody passes.
    """

    kept: bool = False
    window: Window | None = None
    epsilon: float | None = None
    neighbours: str = ""
    feedback: Feedback | None = None

    @property
    def name(self) -> str:
        """As in the counts; "" for the plain one.

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
        return "query kept" if self.kept else ""

    @classmethod
    def parse(cls, name: str) -> "Setting":
        """The setting of a name. Raises InputError for what is none."""
        if edges := re.fullmatch(r"σ ([\d.]+)–([\d.]+)", name):
            return cls(window=(float(edges[1]), float(edges[2])))
        if limit := re.fullmatch(r"ε ([\d.]+)", name):
            return cls(epsilon=float(limit[1]))
        if metric := re.fullmatch(r"neighbours by (\w+)", name):
            return cls(neighbours=metric[1])
        if marks := re.fullmatch(r"(\w+) (\d+)×(\d+)", name):
            return cls(feedback=Feedback(marks[1], int(marks[2]), int(marks[3])))
        if name not in (NONE, KEPT):
            raise InputError(f"{name!r} is no setting of a retrieval report")
        return cls(kept=name == KEPT)


PLAIN = Setting()
NONE, KEPT = PLAIN.name, Setting(kept=True).name


def in_order(names: Iterable[str]) -> list[str]:
    """No filter, the query kept, windows by their edges, ε ascending, neighbours, feedback by its
    rounds.

    >>> in_order(["ε 1.1", "σ 0.3–0.9", "ε 0.9", "query kept", "", "σ 0.1–0.9"])
    ['', 'query kept', 'σ 0.1–0.9', 'σ 0.3–0.9', 'ε 0.9', 'ε 1.1']
    """
    return sorted(set(names), key=_place)


def named(name: str) -> str:
    """A setting in words."""
    return name or "no filter"


def _place(name: str) -> tuple[float | str, ...]:
    found = Setting.parse(name)
    if found.feedback:
        return 5, found.feedback.way, found.feedback.rounds
    if found.neighbours:
        return 4, found.neighbours
    if found.epsilon is not None:
        return 3, found.epsilon
    return (2, *found.window) if found.window else (found.kept,)
