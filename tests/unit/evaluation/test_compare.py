"""Reports side by side: which differences have an interval, and what is not compared in silence."""

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


def judge(counts: pa.Table) -> list[Evaluation]:
    """A measure of each method, of the queries."""
    methods = counts["method"].unique().to_pylist()
    parts = {m: counts.filter(pc.equal(counts["method"], m)) for m in methods}
    measures = {
        replace(HIT, method=m): Measure.of(part["hit"].to_numpy()) for m, part in parts.items()
    }
    return [Evaluation(tuple(parts[methods[0]]["query"].to_pylist()), measures)]


JUDGES = {"retrieval": judge}


def counts(hits: dict[str, np.ndarray], first: int = 0) -> pa.Table:
    units = [f"q{first + i}" for i in range(len(HARD))]
    parts = [
        pa.table({"query": units, "method": [method] * len(units), "hit": values})
        for method, values in hits.items()
    ]
    return pa.concat_tables(parts)


def written(folder: Path, made: pa.Table, data: str = "d", speed: float = 2.0) -> str:
    """The folder of a report on some counts, which has a figure beside them."""
    estimates = [e for j in judge(made) for e in j.estimates()]
    estimates.append(Estimate(SPEED, speed, None, None, 1))
    provenance = Provenance("retrieval", data, "by image_id", model_id=f"{1:016x}")
    Report("r", provenance, estimates, made, []).write(str(folder))
    return str(folder)


def compared(*reports: str, **settings: tuple[str, ...]) -> Report:
    return compare_report(Settings(reports, **settings), JUDGES)


def found(report: Report) -> dict[Key, Estimate]:
    return {e.key: e for e in report.estimates}


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    ours, theirs = counts({"": HARD}), counts({"": HARD + 0.05})
    return written(tmp_path / "a", ours), written(tmp_path / "b", theirs, speed=5)


def how(report: Report) -> dict[str, str]:
    """The last column of the differences, by the name of the figure."""
    tables = [
        i for s in report.sections for i in s.items
        if isinstance(i, Table) and i.header[-1] == "interval"
    ]  # fmt: skip
    return {str(row[0]): str(row[-1]) for table in tables for row in table.rows}


def test_the_same_units_are_compared_in_pairs(two: tuple[str, str]) -> None:
    report = compared(two[0], f"{two[1]}/metrics.json", names=("before", "after"))
    gain = found(report)[Key("hit", setting="after − before")]
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.05, 0.05, 0.05))
    assert how(report) == {"hit": "paired", "speed": "none: not of single units"}
    speed = found(report)[Key("speed", setting="after − before")]
    assert (speed.value, speed.low, speed.high) == (3, None, None)
    assert report.notice is None


def test_other_units_are_compared_as_independent(tmp_path: Path) -> None:
    ours, theirs = counts({"": HARD}), counts({"": HARD + 0.05}, first=100)
    uris = written(tmp_path / "a", ours), written(tmp_path / "b", theirs, data="e")
    report = compared(*uris)
    (expected,) = difference(judge(ours)[0], judge(theirs)[0])
    gain = found(report)[Key("hit", setting="B − A")]
    assert (gain.low, gain.high) == (expected.low, expected.high)
    assert expected.low is not None
    assert expected.low < 0
    assert how(report)["hit"] == "independent"
    assert report.notice == "Not the same data, so that differences are not of models alone: " \
        "A: d; B: e."  # fmt: skip


def test_clear_differences_come_first_and_are_marked(two: tuple[str, str]) -> None:
    report = compared(*two)
    (table,) = [i for i in report.sections[1].items if isinstance(i, Table)]
    assert [(row[0], row[4]) for row in table.rows] == [("hit", "▲ more"), ("speed", "–")]


def test_without_counts_there_is_no_interval(two: tuple[str, str]) -> None:
    Path(two[1], "counts.parquet").unlink()
    report = compared(*two)
    gain = found(report)[Key("hit", setting="B − A")]
    assert (gain.value, gain.low) == (pytest.approx(0.05), None)
    assert set(how(report).values()) == {"none: no counts"}
    assert "B: no counts.parquet beside metrics.json" in (report.notice or "")


def test_counts_of_another_report_give_no_interval(two: tuple[str, str]) -> None:
    pq.write_table(counts({"": HARD + 0.1}), Path(two[1], "counts.parquet"))
    report = compared(*two)
    gain = found(report)[Key("hit", setting="B − A")]
    assert (gain.value, gain.low) == (pytest.approx(0.05), None)
    assert how(report)["hit"] == "none: the counts give another figure"
    assert "do not follow from the counts beside them" in (report.notice or "")


def test_methods_are_paired_by_name(tmp_path: Path) -> None:
    both = counts({"pearson": HARD, "region": HARD + 0.2})
    uri = written(tmp_path / "a", both)
    report = compared(uri, uri, methods=("pearson", "region"))
    gain = found(report)[Key("hit", setting="B − A")]
    assert (gain.value, gain.low) == pytest.approx((0.2, 0.2))
    with pytest.raises(InputError, match="no method 'magic'; it has pearson, region"):
        compared(uri, uri, methods=("pearson", "magic"))


def test_figures_that_not_all_have_are_listed(tmp_path: Path) -> None:
    ours = written(tmp_path / "a", counts({"old": HARD, "svm": HARD}))
    theirs = written(tmp_path / "b", counts({"svm": HARD, "new": HARD}))
    report = compared(ours, theirs)
    assert report.details["not_shared"] == {"A": ["hit · old"], "B": ["hit · new"]}
    tables = [i for i in report.sections[0].items if isinstance(i, Table)]
    assert tables[1].rows == [["A", "1", "hit · old"], ["B", "1", "hit · new"]]
    assert {k.method for k in found(report)} == {"svm", ""}


def test_three_reports_are_compared_with_the_first(two: tuple[str, str]) -> None:
    report = compared(*two, two[0])
    assert {k.setting for k in found(report)} == {"B − A", "C − A"}
    assert found(report)[Key("hit", setting="C − A")].value == 0


def test_differences_follow_from_the_counts_of_the_comparison(
    two: tuple[str, str], tmp_path: Path
) -> None:
    compared(*two).write(str(tmp_path / "compare"))
    table = pq.read_table(tmp_path / "compare" / "counts.parquet")
    ours, theirs = (
        judge(table.filter(pc.equal(table["report"], name)).drop(["report"]))[0] for name in "AB"
    )
    (expected,) = difference(ours, theirs)
    row = read_metrics(str(tmp_path / "compare"))["measures"][0]
    assert (row["value"], row["low"], row["high"]) == (expected.value, expected.low, expected.high)


def test_reports_that_cannot_be_compared(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 to 26 reports"):
        compared(two[0])
    with pytest.raises(InputError, match="--names has 1, for 2"):
        compared(*two, names=("a",))
    with pytest.raises(InputError, match="a name of its own"):
        compared(*two, names=("a", "a"))
    compared(*two).write(str(tmp_path / "c"))
    with pytest.raises(InputError, match="of a report of compare; give one of retrieval"):
        compared(two[0], str(tmp_path / "c"))
    other = Report("r", Provenance("drift", "d", "t"), [], counts({"": HARD}), [])
    other.write(str(tmp_path / "drift"))
    with pytest.raises(InputError, match="only reports of one kind"):
        compare_report(Settings((two[0], str(tmp_path / "drift"))), {**JUDGES, "drift": judge})
    lonely = written(tmp_path / "lonely", counts({"other": HARD}))
    with pytest.raises(InputError, match="no method 'other'"):
        compared(two[0], lonely, methods=("other", "other"))
