"""Tables and goals of the GPU benchmark."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.timed_parts import Outcome
from benchmarks.gpu.case import GpuCase, Row, write_shape
from segrec_batch.common import console

log = logging.getLogger("segrec_batch.benchmarks")

MIN_SHARE_OF_PEAK = 0.5
MIN_WHOLE_TO_BARE = 0.9
MIN_RATE = 2000  # images/s at the larger shape on one H200
ABSENT = "absent"
_BARE = ("bare", "compiled", "autotuned")
_COUNTS = ("passed", "failed", "skipped")
_TEXT = 100  # characters of an error in a table

Outcomes = Mapping[str, Outcome]


def show(case: GpuCase, outcomes: Outcomes) -> None:
    """Print all tables."""
    console.show(_parts_table(outcomes))
    if rows := _rows(outcomes, *_BARE):
        console.show(_bare_table(rows, _peak(outcomes)))
    if rows := _rows(outcomes, "whole"):
        console.show(_whole_table(rows, outcomes))
    if rows := _rows(outcomes, "decode"):
        console.show(_decode_table(rows))
    console.show(_goals_table(check_goals(case, outcomes)))
    device = _rows(outcomes, "device")[0]
    log.info(", ".join(f"{key} {value}" for key, value in device.items()))


def check_goals(case: GpuCase, outcomes: Outcomes) -> list[Row]:
    """Return name, figure (None if not measured), goal and verdict of each goal.

    The bare network counts with its fastest variant and batch of a shape.
    """
    peak = _peak(outcomes)
    goals = []
    for shape in map(write_shape, case.sizes.shapes):
        bare, whole = _best_bare(outcomes, shape), _whole(outcomes, shape)
        share = bare["flops/s"] / peak if bare and peak else None
        ratio = whole["images/s"] / bare["images/s"] if bare and whole else None
        goals.append(_check_goal(f"bare / bf16 matrix product, {shape}", share, MIN_SHARE_OF_PEAK))
        goals.append(_check_goal(f"whole job / bare, {shape}", ratio, MIN_WHOLE_TO_BARE))
    shape = write_shape(case.sizes.shapes[0])
    whole = _whole(outcomes, shape)
    goals.append(
        _check_goal(f"whole job, images/s, {shape}", whole and whole["images/s"], MIN_RATE)
    )
    return goals


def _check_goal(name: str, figure: Any, minimum: float) -> Row:
    return {
        "name": name,
        "figure": figure,
        "goal": minimum,
        "met": None if figure is None else figure >= minimum,
    }


def _rows(outcomes: Outcomes, *parts: str) -> list[Row]:
    """Return the rows of parts without the rows that state peak memory."""
    rows = [row for part in parts if part in outcomes for row in outcomes[part].rows]
    return [row for row in rows if set(row) != {"peak bytes"}]


def _peak(outcomes: Outcomes) -> float | None:
    rates = [row["flops/s"] for row in _rows(outcomes, "peak")]
    return float(rates[0]) if rates else None


def _best_bare(outcomes: Outcomes, shape: str) -> Row | None:
    rows = [r for r in _rows(outcomes, *_BARE) if "images/s" in r and r["shape"] == shape]
    return max(rows, key=lambda row: row["images/s"], default=None)


def _whole(outcomes: Outcomes, shape: str) -> Row | None:
    rows = [r for r in _rows(outcomes, "whole") if "images/s" in r and r["shape"] == shape]
    return rows[0] if rows else None


def _parts_table(outcomes: Outcomes) -> str:
    rows = []
    for name, outcome in outcomes.items():
        peaks = [row["peak bytes"] for row in outcome.rows if "peak bytes" in row]
        peaks += [row["peak device bytes"] for row in outcome.rows if "peak device bytes" in row]
        memory = f"{max(peaks) / 1e9:.2f}" if peaks and max(peaks) else ABSENT
        errors = sum("error" in row for row in outcome.rows)
        note = _last_line(outcome.error) or (f"{errors} rows failed" if errors else "")
        if name == "tests" and not note:
            counts = [(row[key], key) for row in outcome.rows for key in _COUNTS if key in row]
            note = ", ".join(f"{number} {status}" for number, status in counts)
        rows.append([name, outcome.status, f"{outcome.seconds:.0f}", memory, note])
    return console.table("parts", ["part", "", "s", "peak device memory, GB", "note"], rows)


def _last_line(error: str) -> str:
    return error.strip().rsplit("\n", 1)[-1][:_TEXT]


def _note(row: Row) -> str:
    """Return the reason why a row has no figures."""
    return str(row.get("error") or row.get("skipped") or "").split("\n")[0][:_TEXT]


def _format_figure(row: Row, key: str, digits: str, scale: float = 1.0) -> str:
    return f"{row[key] / scale:{digits}}" if key in row else ABSENT


def _bare_table(rows: Sequence[Row], peak: float | None) -> str:
    lines = []
    for row in rows:
        share = f"{row['flops/s'] / peak:.2f}" if peak and "flops/s" in row else ABSENT
        lines.append(
            [
                row["variant"],
                str(row.get("shape", ABSENT)),
                str(row.get("batch", ABSENT)),
                _format_figure(row, "images/s", ",.1f"),
                _format_figure(row, "flops/s", ",.3f", 1e12),
                share,
                _format_figure(row, "difference", ".1e"),
                _note(row),
            ]
        )
    product = f"; bf16 matrix product: {peak / 1e12:,.3f} TFLOP/s" if peak else ""
    header = [
        "variant",
        "shape",
        "batch",
        "images/s",
        "TFLOP/s",
        "share of product",
        "difference",
        "note",
    ]
    return console.table(f"bare 13 convolutions, bf16{product}", header, lines)


def _whole_table(rows: Sequence[Row], outcomes: Outcomes) -> str:
    lines = []
    for row in rows:
        bare = _best_bare(outcomes, row["shape"])
        ratio = ABSENT
        if bare and "images/s" in row:
            ratio = f"{row['images/s'] / bare['images/s']:.2f}"
        lines.append(
            [
                row["shape"],
                str(row["batch"]),
                f"{row['images']:,}",
                _format_figure(row, "images/s", ",.1f"),
                _format_figure(row, "images/s with start-up", ",.1f"),
                _format_figure(row, "cpu", ".1f", 1e-3),
                ratio,
                _note(row),
            ]
        )
    header = ["shape", "batch", "N", "images/s", "with start-up", "CPU ms", "whole / bare", "note"]
    return console.table("whole job without Ray: of the second N of 2 N", header, lines)


def _decode_table(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["decoder"],
            row["where"],
            str(row.get("processes", ABSENT)),
            _format_figure(row, "images/s", ",.0f"),
            str(row.get("resized", ABSENT)),
            _note(row),
        ]
        for row in rows
    ]
    header = ["decoder", "where", "processes", "JPEGs/s", "resized", "note"]
    return console.table("JPEGs of 640×480", header, lines)


def _goals_table(goals: Sequence[Row]) -> str:
    verdicts = {None: "not measured", True: "met", False: "missed"}
    lines = [
        [
            goal["name"],
            ABSENT if goal["figure"] is None else f"{goal['figure']:,.2f}",
            f"{goal['goal']:,g}",
            verdicts[goal["met"]],
        ]
        for goal in goals
    ]
    return console.table("goals, of one H200", ["", "figure", "goal", ""], lines)
