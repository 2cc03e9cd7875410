"""Tests of the drift between two snapshots: counts, metric values and limits."""

import csv
import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from segrec_batch.common.errors import DriftError, IndexStateError, InputError
from segrec_batch.evaluation.drift.comparison import Limits, Settings, open_pair
from segrec_batch.evaluation.drift.figures import (
    MEASURES,
    evaluate,
    figures,
    ks_p_value,
    ks_statistic,
)
from segrec_batch.evaluation.drift.golden import average_overlap, overlap, read_golden
from segrec_batch.evaluation.drift.report import drift_report
from segrec_batch.evaluation.drift.snapshots import Pair
from segrec_batch.evaluation.items import Table
from segrec_batch.evaluation.report import Report, read_metrics
from segrec_batch.evaluation.statistics import Estimate, Key
from segrec_batch.index import snapshot as store
from segrec_batch.index.column_values import image_id
from segrec_batch.index.history import history
from segrec_batch.maintenance.versions import vacuum
from segrec_batch.search.database import open_index
from tests.support.builders import quick
from tests.support.feature_index import Bundle, image_files, write_index
from tests.support.report_inputs import (
    COVERAGE,
    FEATURES,
    GOLDEN,
    NEW_COVERAGE,
    NEW_FEATURES,
    URIS,
    changed_index,
)
from tests.support.s3 import new_bucket, put


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("drift")
    changed_index(str(folder / "index"))
    golden = [*(URIS[i] for i in GOLDEN), "/nobody.jpg"]
    (folder / "golden.txt").write_text("\n".join(golden) + "\n")
    settings = Settings(str(folder / "index"), golden=str(folder / "golden.txt"), k=5)
    return drift_report(settings), folder


def estimates(report: Report) -> dict[Key, Estimate]:
    return {e.key: e for e in report.estimates}


def value(report: Report, name: str, setting: str = "", cls: str = "", k: int = 0) -> Any:
    return estimates(report)[Key(name, setting=setting, cls=cls, k=k)].value


def test_drift_counts_images_and_failures(drift: tuple[Report, Path]) -> None:
    report, _ = drift
    expected = {"before": 40, "after": 43, "new": 5, "gone": 2, "changed": 4, "unchanged": 34}
    assert {s: value(report, "images", s) for s in expected} == expected
    expected = {"before": 3, "after": 2, "new": 1, "mended": 1, "gone": 1}
    assert {s: value(report, "failures", s) for s in expected} == expected
    assert value(report, "drift_failures") == 1 / 45
    assert value(report, "drift_gone") == 2 / 40


def test_drift_lists_failures_by_stage_and_reason(drift: tuple[Report, Path]) -> None:
    report, _ = drift
    (table,) = [
        i for s in report.sections for i in s.items
        if isinstance(i, Table) and i.header[0] == "stage"
    ]  # fmt: skip
    assert table.rows == [
        ["segment", "huge", "0", "1", "1", "0", "0"],
        ["decode", "cut", "2", "1", "0", "1", "0"],
        ["read", "no", "1", "0", "0", "0", "1"],
    ]


def test_drift_coverage_matches_numpy_and_scipy(drift: tuple[Report, Path]) -> None:
    report, _ = drift
    after = COVERAGE.copy()
    after[28:32] = NEW_COVERAGE[28:32]
    populations = {
        "all images": (COVERAGE[:40], np.delete(after, [34, 35])),
        "images in both": tuple(np.delete(c[:40], [34, 35]) for c in (COVERAGE, after)),
        "new images against all before": (COVERAGE[:40], after[40:]),
    }
    for population, (old, new) in populations.items():
        for side, shares in (("before", old), ("after", new)):
            setting = f"{population}, {side}"
            assert value(report, "coverage_mean", setting, "car") == pytest.approx(shares.mean())
            share = value(report, "coverage_share", setting, "car")
            assert share == pytest.approx((shares > 0).mean())
        theirs = ks_2samp(np.ceil(old * 1000), np.ceil(new * 1000), method="asymp")
        assert value(report, "coverage_ks", population, "car") == pytest.approx(theirs.statistic)
        assert value(report, "coverage_ks_p", population, "car") == pytest.approx(theirs.pvalue)
    assert value(report, "coverage_ks", "all images", "person") == 0
    assert value(report, "drift_coverage") == value(report, "coverage_ks", "all images", "car")


def test_drift_features_of_golden_images(drift: tuple[Report, Path]) -> None:
    report, _ = drift
    distances = [0, *(1 - np.corrcoef(FEATURES[i], NEW_FEATURES[i])[0, 1] for i in (28, 32))]
    assert value(report, "drift_features") == pytest.approx(np.mean(distances), abs=1e-6)
    assert value(report, "features_changed") == pytest.approx(2 / 3)
    assert value(report, "features_changed", "unchanged content") == 0.5
    change = abs(float(COVERAGE[28]) / 2) / 3
    assert value(report, "coverage_change", cls="car") == pytest.approx(change, abs=1e-6)
    assert report.notice is not None
    assert "Golden images with the same content and another feature: 1." in report.notice
    assert "not in both snapshots, left out: 2." in report.notice
    assert sorted(report.details["golden"]) == sorted(image_id(URIS[i]) for i in (0, 28, 32))


def test_drift_overlap_matches_both_recommendations(drift: tuple[Report, Path]) -> None:
    report, folder = drift
    versions = [report.details[side]["version"] for side in ("from", "to")]
    indexes = [open_index(str(folder / "index"), v).connection for v in versions]
    sql = "SELECT image_id FROM recommend(?::VARCHAR, k := 5) ORDER BY rank"
    shares = []
    for name in report.details["golden"]:
        a, b = ({row[0] for row in c.sql(sql, params=[name]).fetchall()} for c in indexes)
        shares.append(len(a & b) / 5)
    assert value(report, "topk_overlap", "whole images", k=5) == pytest.approx(np.mean(shares))
    assert value(report, "drift_overlap") == pytest.approx(1 - np.mean(shares))
    regions = estimates(report)[Key("topk_overlap", setting="regions of the dominant class", k=5)]
    assert regions.units == sum(COVERAGE[i] > 0 for i in (0, 28, 32)) > 0


def test_open_pair_finds_version_of_a_time(tmp_path: Path) -> None:
    index = str(tmp_path)
    before, after = changed_index(index)
    times = {c.version: c.time for c in history(index)}
    for time, version in (
        (times[before.version], before.version),
        (times[after.version] - dt.timedelta(milliseconds=1), before.version),
        (times[after.version], after.version),
        (times[0] - dt.timedelta(days=1), 0),  # the empty index that it began as
    ):
        pair = open_pair(Settings(index, time))
        assert [s.version for s in pair] == [version, after.version]


def test_drift_values_follow_from_written_counts(drift: tuple[Report, Path]) -> None:
    report, folder = drift
    report.write(str(folder / "report"))
    counts = pq.read_table(folder / "report" / "counts.parquet")
    again = [*figures(counts), *(e for j in evaluate(counts) for e in j.estimates())]
    assert again == report.estimates
    assert {f"drift_{name}" for name in MEASURES} <= {e.key.name for e in again}


def test_limits_name_exceeding_values(drift: tuple[Report, Path]) -> None:
    report, _ = drift
    with pytest.raises(DriftError, match=r"failures 0\.02222 > 0\.01") as error:
        Limits.parse("failures=0.01,gone=0.05").check(report.estimates)
    assert "gone" not in str(error.value), "0.05 is not above 0.05"
    Limits.parse("1").check(report.estimates)
    assert len(Limits.parse("0").exceeded(report.estimates)) == 5


@pytest.mark.parametrize("text", ["", "x", "2", "-0.1", "nan", "hue=0.1", "gone=0.1,gone=0.2"])
def test_limits_refuse_invalid_texts(text: str) -> None:
    with pytest.raises(InputError, match="--fail-over"):
        Limits.parse(text)


def test_drift_without_change_is_0_and_without_images_absent(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    write_index(index, FEATURES[:6], COVERAGE[:6])
    same = drift_report(Settings(index, before=1, after=1, golden_size=1))
    assert [value(same, f"drift_{name}") for name in MEASURES] == [0] * 5
    first = drift_report(Settings(index))  # from version 0, which is empty
    measured = {name: value(first, f"drift_{name}") for name in MEASURES}
    assert measured == {"failures": 0, **dict.fromkeys(list(MEASURES)[1:])}
    first.write(str(tmp_path / "report"))
    Limits.parse("0").check(first.estimates)
    with pytest.raises(DriftError, match="features is absent"):
        Limits.parse("features=0.1").check(first.estimates)


def test_drift_of_two_models_has_no_features(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    before = write_index(index, FEATURES[:6], COVERAGE[:6])
    other = Bundle()
    other.model_id = other.bundle_id = f"{2:016x}"
    other.save(store.model_uri(index, other.model_id))
    other_model = replace(before, model_id=other.model_id, files=dict.fromkeys(before.files, ()))
    files = image_files(index, URIS[:6], FEATURES[6:12, :8], COVERAGE[:6])
    store.replace(before, store.with_changes(other_model, files))
    report = drift_report(Settings(index, golden_size=1, k=2))
    assert report.notice is not None
    assert "Two models: 0000000000000001 before, 0000000000000002 after" in report.notice
    assert value(report, "drift_features") is None
    assert value(report, "drift_coverage") == 0
    assert value(report, "drift_overlap") is not None


def test_drift_refuses_missing_versions(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    changed_index(index)
    with pytest.raises(InputError, match="no version before 0"):
        drift_report(Settings(index, after=0))
    vacuum(index, dt.timedelta(0), force=True)
    with pytest.raises(IndexStateError, match="version 1 cannot be opened"):
        drift_report(Settings(index))


@pytest.mark.slow
def test_drift_of_index_in_bucket(drift: tuple[Report, Path], s3: dict[str, str]) -> None:
    report, folder = drift
    bucket = new_bucket()
    files = [p for p in (folder / "index").rglob("*") if p.is_file()]
    put({f"{bucket}/{p.relative_to(folder)}": p.read_bytes() for p in files})
    golden = str(folder / "golden.txt")
    remote = drift_report(Settings(f"{bucket}/index", golden=golden, k=5))
    assert remote.counts.drop(["value"]) == report.counts.drop(["value"])
    sums = (r.counts["value"].to_numpy(zero_copy_only=False) for r in (remote, report))
    np.testing.assert_allclose(*sums)
    remote.write(f"{bucket}/report")
    assert read_metrics(f"{bucket}/report") == remote.metrics()


def test_choose_golden_takes_lowest_hashes(tmp_path: Path) -> None:
    before, after = changed_index(str(tmp_path / "index"))
    pair = Pair(before, after, tmp_path)
    assert pair.choose_golden(7, None) == 7
    both = [image_id(u) for i, u in enumerate(URIS[:40]) if i not in (34, 35)]
    lowest = sorted(both, key=lambda i: hashlib.md5(i.encode()).hexdigest())[:7]  # noqa: S324
    assert pair.golden()["image_id"].to_pylist() == sorted(lowest)
    pair.close()


def test_read_golden_formats(tmp_path: Path) -> None:
    odd = '/data/a, "b".jpg'
    ids = [image_id("/data/x.jpg"), image_id(odd), "0" * 32]
    named = ["/data/x.jpg", odd, "0" * 32, "/data/x.jpg"]
    (tmp_path / "a.txt").write_text("\r\n".join(named))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n", "uri"], *(["1", n] for n in named)])
    pq.write_table(pa.table({"image_id": ids, "uri": ids}), tmp_path / "a.parquet")
    for kind in ("txt", "csv", "parquet"):
        assert read_golden(str(tmp_path / f"a.{kind}")) == ids


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"x,y\n1,2\n"),
        ("a.parquet", b"x"),
        ("a.txt", b"\n"),
        ("a.txt", b"\xff"),
        ("a", b"x"),
    ],
)
def test_read_golden_refuses_file_without_images(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_golden(str(tmp_path / name))


def of(values: Sequence[int]) -> np.ndarray:
    return np.bincount(np.array(values, int), minlength=1001)


def test_ks_matches_scipy() -> None:
    rng = np.random.default_rng(2)
    for n, m, most in ((2, 1, 1), (5, 9, 3), (40, 30, 1000), (300, 7, 20), (50, 50, 0)):
        a, b = rng.integers(most + 1, size=n).tolist(), rng.integers(most + 1, size=m).tolist()
        theirs = ks_2samp(a, b, method="asymp")
        assert ks_statistic(of(a), of(b)) == pytest.approx(theirs.statistic)
        assert ks_p_value(of(a), of(b)) == pytest.approx(theirs.pvalue)


def test_ks_of_too_small_samples_is_none() -> None:
    assert ks_p_value(of([1]), of([2])) is None
    assert ks_p_value(of([1, 2]), of([])) is None
    assert ks_statistic(of([1]), of([])) is None


def test_ks_of_millions_is_small_with_tiny_p() -> None:
    a, b = (np.array([n, 10**8 - n]) for n in (50_000_000, 50_100_000))
    assert ks_statistic(a, b) == pytest.approx(0.001)
    p = ks_p_value(a, b)
    assert p is not None
    assert 0 < p < 1e-40


rankings = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=5)


@quick
@given(rankings, rankings)
def test_overlap_is_symmetric_share(a: list[str], b: list[str]) -> None:
    for measure in (overlap, average_overlap):
        share = measure(a, b)
        assert share == measure(b, a)
        if a or b:
            assert share is not None
            assert 0 <= share <= 1
            assert (share == 1) == (a == b if measure is average_overlap else {*a} == {*b})
        else:
            assert share is None
