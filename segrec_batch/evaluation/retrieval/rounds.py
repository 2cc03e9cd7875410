"""The section on relevance feedback."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segrec_batch.evaluation.items import Plot, Section, Table, Text
from segrec_batch.evaluation.plots import Line, line_plot
from segrec_batch.evaluation.retrieval.conditions import NONE, Feedback, Setting
from segrec_batch.evaluation.retrieval.findings import Findings
from segrec_batch.evaluation.statistics import Estimate

_ABOUT = (
    "In each round a simulated user marks the first {0} images that are not marked yet, by the "
    "ground truth; all others are then ranked again, from the query and all marks so far. Marked "
    "images keep the ranks at which they were shown, so that all gains are of images not seen "
    "before (residual rankings). mAP is that of what was shown and, behind it, the new ranking of "
    "the rest. Precision of new images is that of the {0} shown next; without feedback they are "
    "the next page of the one ranking. An SVM needs images of both kinds: until there are, the "
    "order stays."
)
_DRAWN = 2  # methods in a plot: each has three curves


@dataclass(frozen=True)
class _Course:
    """A method with one way of feedback. settings, pages: by round, from 0; see `Feedback`."""

    method: str
    way: str
    settings: Sequence[str]
    pages: Sequence[int]

    @property
    def name(self) -> str:
        return f"{self.method}, {self.way}"

    def figures(self, f: Findings, name: str) -> list[Estimate | None]:
        """A measure by round."""
        at = self.pages if name == "new_precision" else [0] * len(self.pages)
        return [
            f.figure(name, self.method, setting, k=k)
            for setting, k in zip(self.settings, at, strict=True)
        ]


def feedback(f: Findings) -> Section | None:
    """What each round gains; None if there was no feedback."""
    found = [x for s in f.settings if (x := Setting.parse(s).feedback)]
    courses = _courses(f, found)
    if not courses:
        return None
    items: list[Text | Table | Plot] = [Text(_ABOUT.format(found[0].shown))]
    for label, name in (("mAP", "map"), ("Precision of new images", "new_precision")):
        items += [_table(f, courses, label, name), _plot(f, courses, label, name)]
    return Section("Relevance feedback", items)


def _courses(f: Findings, found: Sequence[Feedback]) -> list[_Course]:
    """Of each method that had feedback: without it, then each way."""
    courses = []
    for method in f.methods:
        known = [x for x in found if f.figure("map", method, Setting(feedback=x).name)]
        pages = sorted({x.page for x in known} | {x.shown for x in known})
        if known:
            courses.append(_Course(method, "no feedback", [NONE] * len(pages), pages))
        for way in dict.fromkeys(x.way for x in known):
            names = [Setting(feedback=x).name for x in known if x.way == way]
            courses.append(_Course(method, way, [NONE, *names], pages[: len(names) + 1]))
    return courses


def _table(f: Findings, courses: Sequence[_Course], label: str, name: str) -> Table:
    rounds = max(len(c.pages) for c in courses)
    rows = [[c.name, *(e or "not run" for e in c.figures(f, name))] for c in courses]
    header = ["method", *(f"round {i}" for i in range(rounds))]
    return Table(f"{label} by round of feedback", header, rows)


def _plot(f: Findings, courses: Sequence[_Course], label: str, name: str) -> Plot:
    lines = {}
    best = [m for m in f.ranked if any(c.method == m for c in courses)][:_DRAWN]
    for c in (c for c in courses if c.method in best):
        rows = [(e.value, e.low, e.high) if e else (None,) * 3 for e in c.figures(f, name)]
        lines[c.name] = Line(range(len(rows)), *np.array(rows, float).T)
    svg = line_plot(lines, "round of feedback", label, y_range=None, whole=True)
    text = (
        f"{label} over the rounds, a curve for each way, with its 95 % band, of the {len(best)} "
        "methods with the greatest mAP without feedback."
    )
    return Plot(f"{label} over rounds of feedback", svg, text)
