"""Principal components against the full vector, for ever more of them (Krupa 2022)."""

from dataclasses import replace

import numpy as np

from segrec_batch.evaluation.items import Plot, Section, Table, Text
from segrec_batch.evaluation.plots import Line, line_plot
from segrec_batch.evaluation.retrieval.collection import Collection
from segrec_batch.evaluation.retrieval.conditions import NEIGHBOURS, NONE, PLAIN, Setting
from segrec_batch.evaluation.retrieval.findings import Columns, Findings
from segrec_batch.evaluation.statistics import Estimate

SWEPT = "pca-cosine"
"""The method whose vectors are cut: their first d values are the projection on d components."""
_FULL = ("cosine", "pearson")
"""Metrics on the full vector that it is compared with."""
_BY_TRUTH: Columns = [("mAP", "map", 0), ("precision@10", "precision", 10)]


def sweep(images: Collection) -> tuple[tuple[str, ...], tuple[Setting, ...]]:
    """The methods for 2, 4, 8, … components up to all, and the settings to judge them in."""
    length = images.vectors[SWEPT.partition("-")[0]].shape[1]
    some = [2**i for i in range(1, length.bit_length()) if 2**i < length]
    methods = tuple(f"{SWEPT}@{d}" for d in (*some, length))
    return methods, (PLAIN, *(Setting(neighbours=metric) for metric in _FULL))


def dimensions(f: Findings) -> Section | None:
    """What is left of the full vector's answers."""
    if not f.cut:
        return None
    about = (
        "The features projected on their first principal components and compared by cosine. "
        f"Recall of neighbours: how many of the {NEIGHBOURS} images nearest to the query by the "
        f"full vector are among the first {NEIGHBOURS}. The other measures are by the ground truth."
    )
    return Section("Principal components", [Text(about), _plot(f), _table(f)])


def _table(f: Findings) -> Table:
    header = ["components", *map(_recall, _FULL), *(label for label, *_ in _BY_TRUTH)]
    rows = [
        [
            str(d),
            *(f.cell("recall", m, _neighbours(metric), NEIGHBOURS) for metric in _FULL),
            *_by_truth(f, m),
        ]
        for d, m in f.cut.items()
    ]
    full = [[f"full vector, {m}", *[""] * len(_FULL), *_by_truth(f, m)] for m in _FULL]
    return Table("By the number of components", header, [*rows, *full])


def _by_truth(f: Findings, method: str) -> list[Estimate | str]:
    return [f.cell(name, method, k=k) for _, name, k in _BY_TRUTH]


def _plot(f: Findings) -> Plot:
    lines = {_recall(m): _line(f, "recall", _neighbours(m), NEIGHBOURS) for m in _FULL}
    for label, name, k in _BY_TRUTH:
        level = f.figure(name, _FULL[0], k=k)
        lines[label] = replace(_line(f, name, NONE, k), level=level.value if level else None)
    text = "Each measure over the number of components, with its 95 % band."
    svg = line_plot(lines, "principal components", "value", log=True)
    return Plot("By the number of components; dotted: the full vector by cosine", svg, text)


def _line(f: Findings, name: str, setting: str, k: int) -> Line:
    return Line(list(f.cut), *np.hstack([f.values(name, m, [setting], k) for m in f.cut.values()]))


def _neighbours(metric: str) -> str:
    return Setting(neighbours=metric).name


def _recall(metric: str) -> str:
    return f"recall of neighbours by {metric}"
