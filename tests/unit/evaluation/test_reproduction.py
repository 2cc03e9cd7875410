"""Tests that reports reproduce stored figures; `python -m` this module writes them anew."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segrec_batch.evaluation.compare.report import compare_report
from segrec_batch.evaluation.compare.reports import Settings as Compare
from segrec_batch.evaluation.drift.comparison import Settings as Drift
from segrec_batch.evaluation.drift.report import drift_report
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.segmentation.counts import SEGREC, class_names, counts_by_method
from segrec_batch.evaluation.segmentation.figures import calibration, dominant, estimates, evaluate
from segrec_batch.evaluation.statistics import Estimate
from tests.support.report_inputs import GOLDEN, URIS, changed_index, segmentation_counts

EXPECTED = Path(__file__).parent / "expected"
DIGITS = 1e-11  # relative; sums of BLAS differ in the last digits between processors


def rows(report: Report) -> list[list[Any]]:
    return [list(row.values()) for row in report.metrics()["measures"]]


def segmentation_figures(folder: Path) -> dict[str, Any]:
    counts = segmentation_counts()
    report = written(folder, counts, estimates(counts, seed=3))
    groups = list(counts_by_method(counts))
    main = next(t for t in groups if t.method == SEGREC)
    return {
        "measures": rows(report),
        "classes": class_names(counts),
        "calibration": [calibration(main, k) for k in range(1, 4)],
        "confusion": [
            [t.split, t.method, t.confusion.sum(axis=0).tolist(),
             dominant(t.confusion).sum(axis=0).tolist()]
            for t in groups
        ],
    }  # fmt: skip


def drift_figures(folder: Path) -> dict[str, Any]:
    changed_index(str(folder / "index"))
    (folder / "golden.txt").write_text("\n".join([*(URIS[i] for i in GOLDEN), "/nobody.jpg"]))
    report = drift_report(Drift(str(folder / "index"), golden=str(folder / "golden.txt"), k=5))
    counts = [list(row.values()) for row in report.counts.to_pylist()]
    return {"measures": rows(report), "counts": counts, "details": report.metrics()["details"]}


def compare_figures(folder: Path) -> dict[str, Any]:
    uris = []
    for i, offset in enumerate((0.0, 0.08, 0.0)):
        counts = segmentation_counts(offset=offset, images=12 if i < 2 else 15)
        figures = estimates(counts, seed=0, draws=100)
        written(folder / str(i), counts, figures, data=f"d{i // 2}").write(str(folder / str(i)))
        uris.append(str(folder / str(i)))
    report = compare_report(
        Compare(uris, names=("base", "better", "others"), methods=(SEGREC,) * 3),
        {"segmentation": evaluate},
    )
    metrics = report.metrics()
    return {"measures": rows(report), "notice": metrics["notice"],
            "not_shared": metrics["details"]["not_shared"]}  # fmt: skip


def written(folder: Path, counts: pa.Table, figures: list[Estimate], data: str = "d") -> Report:
    provenance = Provenance("segmentation", data, "by class", model_id=f"{1:016x}")
    return Report("made up", provenance, figures, counts, [])


KINDS = {"segmentation": segmentation_figures, "drift": drift_figures, "compare": compare_figures}


def check(values: Any, expected: Any, place: str) -> None:
    """Compare parsed JSON, floats to DIGITS."""
    if isinstance(expected, float) and isinstance(values, int | float):
        assert values == pytest.approx(expected, rel=DIGITS, abs=DIGITS), place
    elif isinstance(expected, list):
        assert len(values) == len(expected), place
        for i, (value, item) in enumerate(zip(values, expected, strict=True)):
            check(value, item, f"{place}[{i}] {expected[:6] if i < 10 else ''}")
    elif isinstance(expected, dict):
        assert values.keys() == expected.keys(), place
        for name, item in expected.items():
            check(values[name], item, f"{place}.{name}")
    else:
        assert values == expected, place


@pytest.mark.parametrize("kind", KINDS)
def test_report_reproduces_stored_figures(kind: str, tmp_path: Path) -> None:
    figures = json.loads(json.dumps(KINDS[kind](tmp_path)))
    check(figures, json.loads((EXPECTED / f"{kind}.json").read_text()), kind)


def write_expected() -> None:
    """Write the expected figures: a line for each row."""
    EXPECTED.mkdir(exist_ok=True)
    for kind, figures in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            parts = [
                f"{json.dumps(name)}: "
                + (json.dumps(part, ensure_ascii=False) if not isinstance(part, list) else "[\n"
                   + ",\n".join(json.dumps(row, ensure_ascii=False) for row in part) + "\n]")
                for name, part in figures(Path(folder)).items()
            ]  # fmt: skip
        (EXPECTED / f"{kind}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    sys.exit(write_expected())
