"""The sections on other settings: filters, and the query in its own ground truth."""

from collections.abc import Sequence

import numpy as np

from segrec_batch.evaluation.items import Plot, Section, Table, Text, figure
from segrec_batch.evaluation.plots import SERIES, Line, dot_plot, heat_map, line_plot
from segrec_batch.evaluation.retrieval.conditions import KEPT, NONE, Setting, named
from segrec_batch.evaluation.retrieval.findings import Columns, Findings
from segrec_batch.evaluation.statistics import Estimate, Key, contrast

_MAIN: Columns = [("mAP", "map", 0), ("precision@10", "precision", 10)]


def filters(f: Findings) -> Section | None:
    """What filters on coverage and on the semantic distance gain and lose."""
    limits = [s for s in f.settings if Setting.parse(s).epsilon is not None]
    windows = [s for s in f.settings if Setting.parse(s).window]
    if not (limits or windows):
        return None
    about = (
        "Relevant lost: the share of a query's relevant candidates that the filter drops, or that "
        "a method has no score for; no ranking can find them again. Candidates left: the share "
        "that is ranked at all."
    )
    items: list[Text | Table | Plot] = [Text(about)]
    if windows:
        items += [_over_windows(f, windows, *measure) for measure in _MAIN]
        items += _tables(f, "window on coverage σ", windows)
    if limits:
        items += [_over_limits(f, limits, *measure) for measure in _MAIN]
        items += _tables(f, "limit ε on the semantic distance", limits)
    return Section("Filters", items)


def _tables(f: Findings, by: str, settings: Sequence[str]) -> list[Table]:
    """A row for each method, a column for each setting, the first without a filter."""
    columns = [NONE, *settings]
    header = ["method", *map(named, columns)]
    figures = [
        Table(
            f"{label} by {by}",
            header,
            [[m, *(f.cell(name, m, s, k) for s in columns)] for m in f.methods],
        )
        for label, name, k in _MAIN
    ]
    passed = [[m, *(_lost_and_left(f, m, s) for s in columns)] for m in f.methods]
    return [*figures, Table(f"Relevant lost / candidates left by {by}", header, passed)]


def _lost_and_left(f: Findings, method: str, setting: str) -> str:
    lost, left = (f.figure(name, method, setting) for name in ("relevant_lost", "candidates_left"))
    if lost is None or left is None:
        return "not run"
    return f"{figure(lost, interval=False)} / {figure(left, interval=False)}"


def _over_windows(f: Findings, windows: Sequence[str], label: str, name: str, k: int) -> Plot:
    caption = f"{label} by window on coverage σ"
    if len(f.methods) > SERIES:
        return _map(f, windows, caption, name, k)
    rows = {
        named(s): {m: e for m in f.methods if (e := f.figure(name, m, s, k=k))}
        for s in (NONE, *windows)
    }
    text = f"{label} without a filter and for each window, a mark for each method."
    return Plot(caption, dot_plot(rows, label), text)


def _over_limits(f: Findings, limits: Sequence[str], label: str, name: str, k: int) -> Plot:
    caption = f"{label} by limit ε on the semantic distance"
    if len(f.methods) > SERIES:
        return _map(f, limits, caption, name, k)
    lines = {m: _over(f, m, limits, name, k) for m in f.methods}
    text = f"{label} over ε, a curve for each method; dotted lines are the levels without a filter."
    svg = line_plot(lines, "ε, greatest semantic distance that passes", label, y_range=None)
    return Plot(f"{caption}; dotted: no filter", svg, text)


def _map(f: Findings, settings: Sequence[str], caption: str, name: str, k: int) -> Plot:
    """What more methods than curves can be told apart leave to draw."""
    columns = [NONE, *settings]
    values = np.stack([f.values(name, m, columns, k)[0] for m in f.methods])
    svg = heat_map(values, f.methods, [named(s) for s in columns], "method", "filter")
    text = "A row for each method, a column for each filter; the table has the figures."
    return Plot(caption, svg, text)


def _over(f: Findings, method: str, limits: Sequence[str], name: str, k: int) -> Line:
    x = np.array([Setting.parse(s).epsilon for s in limits], float)
    value, low, high = f.values(name, method, limits, k)
    return Line(x, value, low, high, level=float(f.values(name, method, [NONE], k)[0, 0]))


def query_kept(f: Findings) -> Section | None:
    """What it changes if the query is in its own ground truth."""
    if KEPT not in f.settings:
        return None
    rows = [
        [m, *(cell for _, name, k in _MAIN for cell in _out_and_in(f, m, name, k))]
        for m in f.methods
        if f.figure("map", m, KEPT)
    ]
    header = [
        f"{name}, {which}" for name, *_ in _MAIN for which in ("left out", "kept", "difference")
    ]
    about = (
        "Some papers leave the query among the candidates and count it as found. It is then always "
        "the first result or near it, which flatters every method; the figures of all other "
        "sections leave it out."
    )
    return Section(
        "Query in or out of the ground truth",
        [Text(about), Table("The query left out and kept", ["method", *header], rows)],
    )


def _out_and_in(f: Findings, method: str, name: str, k: int) -> list[Estimate | str]:
    out, kept = (Key(name, method, setting=s, k=k) for s in (NONE, KEPT))
    change = Key(f"{name}_difference", method, setting=KEPT, k=k)
    (difference,) = contrast(f.judged, {change: (kept, out)}, seed=f.seed)
    return [f.cell(name, method, k=k), f.cell(name, method, KEPT, k), difference]
