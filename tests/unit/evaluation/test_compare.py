"""Tests of the comparison of reports: intervals of differences, and warnings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.compare.report import compare_report
from segrec_batch.evaluation.compare.reports import Settings
from segrec_batch.evaluation.items import Table
from segrec_batch.evaluation.report import Provenance, Report, read_metrics
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key, Measure, difference

HIT, SPEED = Key("hit"), Key("speed")
RNG = np.random.default_rng(4)
HARD = RNG.normal(0.5, 0.2, 40)


def evaluate(counts: pa.Table) -> list[Evaluation]:
    """Return one measure of each method over the queries."""
    methods = counts["method"].unique().to_pylist()
    parts = {m: counts.filter(pc.equal(counts["method"], m)) for m in methods}
    measures = {
        replace(HIT, method=m): Measure.of(part["hit"].to_numpy()) for m, part in parts.items()
    }
    return [Evaluation(tuple(parts[methods[0]]["query"].to_pylist()), measures)]


EVALUATORS = {"retrieval": evaluate}


def counts(hits: dict[str, np.ndarray], first: int = 0) -> pa.Table:
    units = [f"q{first + i}" for i in range(len(HARD))]
    parts = [
        pa.table({"query": units, "method": [method] * len(units), "hit": values})
        for method, values in hits.items()
    ]
    return pa.concat_tables(parts)


def write(folder: Path, table: pa.Table, data: str = "d", speed: float = 2.0) -> str:
    """Write a report with a value that its counts do not have; return its folder."""
    estimates = [e for part in evaluate(table) for e in part.estimates()]
    estimates.append(Estimate(SPEED, speed, None, None, 1))
    provenance = Provenance("retrieval", data, "by image_id", model_id=f"{1:016x}")
    Report("r", provenance, estimates, table, []).write(str(folder))
    return str(folder)


def compare(*reports: str, **settings: tuple[str, ...]) -> Report:
    return compare_report(Settings(reports, **settings), EVALUATORS)


def estimates(report: Report) -> dict[Key, Estimate]:
    return {e.key: e for e in report.estimates}


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    ours, theirs = counts({"": HARD}), counts({"": HARD + 0.05})
    return write(tmp_path / "a", ours), write(tmp_path / "b", theirs, speed=5)


def intervals(report: Report) -> dict[str, str]:
    """Return the last column of the differences by metric value."""
    tables = [
        i for s in report.sections for i in s.items
        if isinstance(i, Table) and i.header[-1] == "interval"
    ]  # fmt: skip
    return {str(row[0]): str(row[-1]) for table in tables for row in table.rows}


def test_compare_same_units_is_paired(two: tuple[str, str]) -> None:
    report = compare(two[0], f"{two[1]}/metrics.json", names=("before", "after"))
    gain = estimates(report)[Key("hit", setting="after − before")]
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.05, 0.05, 0.05))
    assert intervals(report) == {"hit": "paired", "speed": "none: not of single units"}
    speed = estimates(report)[Key("speed", setting="after − before")]
    assert (speed.value, speed.low, speed.high) == (3, None, None)
    assert report.notice is None


def test_compare_other_units_is_independent(tmp_path: Path) -> None:
    ours, theirs = counts({"": HARD}), counts({"": HARD + 0.05}, first=100)
    uris = write(tmp_path / "a", ours), write(tmp_path / "b", theirs, data="e")
    report = compare(*uris)
    (expected,) = difference(evaluate(ours)[0], evaluate(theirs)[0])
    gain = estimates(report)[Key("hit", setting="B − A")]
    assert (gain.low, gain.high) == (expected.low, expected.high)
    assert expected.low is not None
    assert expected.low < 0
    assert intervals(report)["hit"] == "independent"
    assert report.notice == "Not the same data, so that differences are not of models alone: " \
        "A: d; B: e."  # fmt: skip


def test_compare_marks_clear_differences_first(two: tuple[str, str]) -> None:
    report = compare(*two)
    (table,) = [i for i in report.sections[1].items if isinstance(i, Table)]
    assert [(row[0], row[4]) for row in table.rows] == [("hit", "▲ more"), ("speed", "–")]


def test_compare_without_counts_has_no_interval(two: tuple[str, str]) -> None:
    Path(two[1], "counts.parquet").unlink()
    report = compare(*two)
    gain = estimates(report)[Key("hit", setting="B − A")]
    assert (gain.value, gain.low) == (pytest.approx(0.05), None)
    assert set(intervals(report).values()) == {"none: no counts"}
    assert "B: no counts.parquet beside metrics.json" in (report.notice or "")


def test_compare_with_other_counts_has_no_interval(two: tuple[str, str]) -> None:
    pq.write_table(counts({"": HARD + 0.1}), Path(two[1], "counts.parquet"))
    report = compare(*two)
    gain = estimates(report)[Key("hit", setting="B − A")]
    assert (gain.value, gain.low) == (pytest.approx(0.05), None)
    assert intervals(report)["hit"] == "none: the counts give another value"
    assert "do not follow from the counts beside them" in (report.notice or "")


def test_compare_pairs_methods_by_name(tmp_path: Path) -> None:
    both = counts({"pearson": HARD, "region": HARD + 0.2})
    uri = write(tmp_path / "a", both)
    report = compare(uri, uri, methods=("pearson", "region"))
    gain = estimates(report)[Key("hit", setting="B − A")]
    assert (gain.value, gain.low) == pytest.approx((0.2, 0.2))
    with pytest.raises(InputError, match="no method 'magic'; it has pearson, region"):
        compare(uri, uri, methods=("pearson", "magic"))


def test_compare_lists_values_not_shared(tmp_path: Path) -> None:
    ours = write(tmp_path / "a", counts({"old": HARD, "svm": HARD}))
    theirs = write(tmp_path / "b", counts({"svm": HARD, "new": HARD}))
    report = compare(ours, theirs)
    assert report.details["not_shared"] == {"A": ["hit · old"], "B": ["hit · new"]}
    tables = [i for i in report.sections[0].items if isinstance(i, Table)]
    assert tables[1].rows == [["A", "1", "hit · old"], ["B", "1", "hit · new"]]
    assert {k.method for k in estimates(report)} == {"svm", ""}


def test_compare_three_reports_with_the_first(two: tuple[str, str]) -> None:
    report = compare(*two, two[0])
    assert {k.setting for k in estimates(report)} == {"B − A", "C − A"}
    assert estimates(report)[Key("hit", setting="C − A")].value == 0


def test_compare_follows_from_its_own_counts(two: tuple[str, str], tmp_path: Path) -> None:
    compare(*two).write(str(tmp_path / "compare"))
    table = pq.read_table(tmp_path / "compare" / "counts.parquet")
    ours, theirs = (
        evaluate(table.filter(pc.equal(table["report"], name)).drop(["report"]))[0] for name in "AB"
    )
    (expected,) = difference(ours, theirs)
    row = read_metrics(str(tmp_path / "compare"))["measures"][0]
    assert (row["value"], row["low"], row["high"]) == (expected.value, expected.low, expected.high)


def test_compare_refuses_reports(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 to 26 reports"):
        compare(two[0])
    with pytest.raises(InputError, match="--names has 1, for 2"):
        compare(*two, names=("a",))
    with pytest.raises(InputError, match="a name of its own"):
        compare(*two, names=("a", "a"))
    compare(*two).write(str(tmp_path / "c"))
    with pytest.raises(InputError, match="of a report of compare; give one of retrieval"):
        compare(two[0], str(tmp_path / "c"))
    other = Report("r", Provenance("drift", "d", "t"), [], counts({"": HARD}), [])
    other.write(str(tmp_path / "drift"))
    with pytest.raises(InputError, match="only reports of one kind"):
        compare_report(
            Settings((two[0], str(tmp_path / "drift"))), {**EVALUATORS, "drift": evaluate}
        )
    lonely = write(tmp_path / "lonely", counts({"other": HARD}))
    with pytest.raises(InputError, match="no method 'other'"):
        compare(two[0], lonely, methods=("other", "other"))
