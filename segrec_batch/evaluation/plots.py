"""Plots of a report page, drawn by matplotlib.

The SVG takes its colours from the page, so that it follows light, dark and print; text stays text.
"""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from segrec_batch.common.encoding import escape_lines
from segrec_batch.evaluation.statistics import Estimate

SERIES = 8  # colours of the page: --series-1, --series-2, …
FEW_POINTS = 12  # up to so many, every point of a line has a marker
FEW_ROWS = 12  # up to so many, rows of a heat map are tall
_STYLES = ("-", "--", "-.", ":")  # series also differ without colour
_MARKS = "osD^vPX*"
_TEXT, _LINE = "#010203", "#010204"
_SERIES = [f"#0102{i:02x}" for i in range(16, 16 + SERIES)]
_PAGE = {_TEXT: "--text", _LINE: "--line"} | {
    c: f"--series-{i}" for i, c in enumerate(_SERIES, start=1)
}
_LABEL = 28  # characters per line of a row's label
_WIDTH = 5.6  # inches; 10 pt text stays legible on a phone
_CELLS = 120  # font size in points times columns at which numbers do not overlap
_LETTERS = 55  # characters that fit below an axis
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 10, "grid.linewidth": 0.6,
    "svg.hashsalt": "segrec",  # equal plots have equal ids
    **dict.fromkeys(("text.parse_math", "axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True), "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor"), _TEXT),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), _TEXT),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), _LINE),
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A curve through (x, y) with a band from `low` to `high`.

    level: y of a dotted horizontal line of the same colour, for comparison.
    """

    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    level: float | None = None


def line_plot(
    lines: Mapping[str, Line],
    x: str,
    y: str,
    *,
    diagonal: bool = False,
    log: bool = False,
    whole: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = (0, 1),
) -> str:
    """Return curves by name over one x axis; curves without a value are left out.

    diagonal: draw y = x. log: logarithmic x. whole: integer ticks of x.
    """

    def draw(axes: Axes) -> None:
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1)
        for i, (name, line) in enumerate(lines.items()):
            if np.isnan(np.asarray(line.y, float)).all():
                continue
            colour, at = _SERIES[i % SERIES], np.asarray(line.x)
            axes.plot(
                at, np.asarray(line.y), label=name, color=colour, linewidth=1.6, markersize=4,
                linestyle=_nth(_STYLES, i), marker=_nth(_MARKS, i),
                markevery=1 if len(at) <= FEW_POINTS else 0.15,
            )  # fmt: skip
            if line.low is not None and line.high is not None:
                low, high = np.asarray(line.low), np.asarray(line.high)
                axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
            if line.level is not None:
                axes.axhline(line.level, color=colour, linestyle=(0, (1, 4)), linewidth=1.2)
        if log:
            axes.set_xscale("log")
            ticks = sorted({float(v) for line in lines.values() for v in np.asarray(line.x)})
            axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axes.minorticks_off()
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if x_range:
            axes.set_xlim(*x_range)
        if y_range:
            axes.set_ylim(y_range[0], y_range[1] * 1.02)

    return _svg(draw, x, y, 3.4, legend=len(lines) > 1)


def _nth(signs: Sequence[str], i: int) -> str:
    """Return the sign of series i; it differs from that of the last series of the same colour."""
    return signs[(i + i // SERIES) % len(signs)]


def dot_plot(rows: Mapping[str, Mapping[str, Estimate]], x: str) -> str:
    """Return estimates with intervals: a row for each name, a mark in it for each series.

    Absent estimates have no mark.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    step = 0.8 / max(len(series), 1)
    labels = [textwrap.fill(name, _LABEL) for name in rows]
    lines = max((label.count("\n") + 1 for label in labels), default=1)

    def draw(axes: Axes) -> None:
        for j, name in enumerate(series):
            points = [(i, row[name]) for i, row in enumerate(rows.values()) if name in row]
            known = [(i, e.value, e.low, e.high) for i, e in points if e.value is not None]
            place, value, low, high = np.array(known, float).reshape(-1, 4).T
            at = place + (j - (len(series) - 1) / 2) * step
            axes.errorbar(
                value, at, xerr=np.abs(np.stack([value - low, high - value])),
                label=name, color=_SERIES[j % SERIES], fmt=_nth(_MARKS, j),
                markersize=5, linewidth=1.4, capsize=2,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)

    height = 0.9 + max(0.2 + 0.15 * lines, 0.17 * len(series)) * len(rows)
    return _svg(draw, x, "", height, legend=len(series) > 1)


def heat_map(
    shares: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], y: str, x: str
) -> str:
    """Return a matrix of values in [0, 1] with the values in the cells; NaN is left blank."""

    def draw(axes: Axes) -> None:
        for (i, j), share in np.ndenumerate(shares):
            if np.isnan(share):
                continue
            alpha = 0.75 * float(np.clip(share, 0, 1))
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=_SERIES[0], alpha=alpha, lw=0))
            axes.text(
                j, i, f"{share:.2f}", ha="center", va="center", color=_TEXT,
                fontsize=min(10, _CELLS / len(columns)),
            )  # fmt: skip
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), list(columns), **_tilt(columns))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.grid(visible=False)

    labels = 0.05 * max(map(len, columns)) if _tilt(columns) else 0.0
    line = 0.42 if len(rows) <= FEW_ROWS else 0.3
    return _svg(draw, x, y, 0.9 + line * len(rows) + labels)


def _tilt(labels: Sequence[str]) -> dict[str, Any]:
    """Return matplotlib settings of labels below an axis; labels that do not fit are rotated."""
    if sum(len(label) + 2 for label in labels) <= _LETTERS:
        return {}
    return {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}


def step_plot(
    shares: Mapping[str, NDArray[np.float64]], edges: NDArray[np.float64], x: str, y: str
) -> str:
    """Return outlines of histograms by name over the same bins."""

    def draw(axes: Axes) -> None:
        for i, (name, share) in enumerate(shares.items()):
            axes.stairs(
                share, edges, label=name, color=_SERIES[i % SERIES],
                linestyle=_nth(_STYLES, i), linewidth=1.6,
            )  # fmt: skip
        axes.set_ylim(bottom=0)

    return _svg(draw, x, y, 2.6, legend=len(shares) > 1)


def _svg(
    draw: Callable[[Axes], None], x: str, y: str, height: float, *, legend: bool = False
) -> str:
    """Return what `draw` draws, as an SVG element without its own size, fonts or colours."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel=y)
        draw(axes)
        if legend:
            figure.legend(loc="outside lower center", ncols=3, fontsize=9)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _adopt(out.getvalue())


def _adopt(svg: str) -> str:
    """Return an SVG file of matplotlib as an element of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = escape_lines(svg)
    for sentinel, name in _PAGE.items():
        svg = svg.replace(sentinel, f"var({name})")
    # keep only the ids that are referred to
    used = set(re.findall(r"[\"(]#([\w-]+)[\")]", svg))
    return re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
