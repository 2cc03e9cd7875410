"""Tests of `segrec evaluate`: reports of an index, exit codes, messages."""

from pathlib import Path

import numpy as np
import pytest

from segrec_batch.evaluation.report import METRICS, read_metrics
from tests.support.commands import exit_code
from tests.support.feature_index import add_images, write_index

EVALUATE = "jobs/evaluate.py"


@pytest.mark.slow
def test_retrieval_and_compare_reports(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["retrieval", "--index", index, "--labels", "folder", "--sigma", "0.1-1"]
    options += ["--feedback-rounds", "2"]
    for name, methods in (("before", "pearson,random"), ("after", "pearson,euclidean")):
        report = ["--methods", methods, "--report", str(tmp_path / name)]
        assert exit_code(EVALUATE, *options, *report) == 0
        printed = capsys.readouterr()
        assert "pearson" in printed.out
        assert "Untrained backbone" in printed.err
    metrics = read_metrics(str(tmp_path / "before"))
    settings = {m["setting"] for m in metrics["measures"]}
    assert settings >= {"", "query kept", "σ 0.1–1", "ε 0.9", "svm 2×10"}
    provenance = metrics["provenance"]
    assert (provenance["kind"], provenance["version"]) == ("retrieval", 1)
    assert "24 queries among 24 images" in provenance["data"]

    both = [str(tmp_path / "before" / METRICS), str(tmp_path / "after")]
    named = ["--names", "before,after", "--report", str(tmp_path / "compared")]
    assert exit_code(EVALUATE, "compare", *both, *named) == 0
    assert "after" in capsys.readouterr().out
    changes = read_metrics(str(tmp_path / "compared"))
    assert {m["method"] for m in changes["measures"]} == {"pearson"}
    assert {m["value"] for m in changes["measures"]} == {0, None}


@pytest.mark.slow
def test_drift_over_limit_writes_report_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    index = str(tmp_path / "index")
    share = np.full(20, 0.2, np.float32)
    base = write_index(index, rng.random((20, 8), dtype=np.float32), share)
    add_images(base, rng.random((20, 8), dtype=np.float32), share + 0.5)
    limit = ["--fail-over", "coverage=0.1", "--report", str(tmp_path / "r")]
    assert exit_code(EVALUATE, "drift", "--index", index, *limit) == 1
    printed = capsys.readouterr()
    assert "error: drift above --fail-over: coverage 0.5 > 0.1" in printed.err
    assert "0.500" in printed.out
    assert (tmp_path / "r" / "report.html").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["retrieval", "--index", "INDEX", "--labels", "csv"], "--labels csv needs --pairs"),
        (["retrieval", "--index", "INDEX", "--labels", "masks"], "needs --masks and --classes"),
        (["retrieval", "--index", "INDEX", "--labels", "folder", "--sigma", "1"], "LOW-HIGH"),
        (
            [
                *("segmentation", "--images", "a", "--masks", "b", "--classes", "c", "--train"),
                *("--test-images", "d"),
            ],
            "go together",
        ),
    ],
)
def test_evaluate_refuses_bad_arguments(
    wrong: list[str], message: str, index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [index if word == "INDEX" else word for word in wrong]
    assert exit_code(EVALUATE, *arguments, "--report", str(tmp_path)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compare_refuses_non_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    assert exit_code(EVALUATE, "compare", folder, folder, "--report", f"{folder}/r") == 1
    assert f"error: {tmp_path}/metrics.json: not the metrics of a report" in capsys.readouterr().err
