"""Tests of the files of a report: content, escaping of hostile names, accessibility."""

import json
import re
from dataclasses import replace
from pathlib import Path

import duckdb
import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.report import FIGURES, check_report_place, read_counts, read_metrics
from segrec_batch.evaluation.statistics import Estimate, Key
from tests.support.browser import Page, accessible, chromium, complaints_of, needs_chromium
from tests.support.builders import ODD_NAMES
from tests.support.reports import ABSENT, IOU, plots, report


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report().write(str(folder))
    return folder


def test_report_writes_and_reads_four_files(written: Path) -> None:
    names = {p.name for p in written.iterdir()}
    assert names == {"report.html", "metrics.json", "metrics.parquet", "counts.parquet"}
    metrics = read_metrics(str(written))
    assert metrics == read_metrics(str(written / "metrics.json")) == report().metrics()
    for uri in (written, written / "metrics.json"):
        assert read_counts(str(uri)) == report().counts


def test_metrics_match_schema(written: Path) -> None:
    schema = json.loads((Path(__file__).parents[3] / "schemas/metrics.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    metrics = json.loads((written / "metrics.json").read_text())
    jsonschema.validate(metrics, schema)
    metrics["measures"][0]["value"] = "0.5"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metrics, schema)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', "\x80"])
def test_read_metrics_refuses_other_files(text: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(text)
    with pytest.raises(InputError, match=re.escape(str(file))):
        read_metrics(str(file))


def test_check_report_place_refuses_deeply_nested_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="no report of this program"):
        check_report_place(str(tmp_path))


def test_read_counts_of_missing_and_damaged_files(tmp_path: Path) -> None:
    assert read_counts(str(tmp_path / "metrics.json")) is None
    (tmp_path / "counts.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"counts\.parquet"):
        read_counts(str(tmp_path))


def test_absent_values_are_null_and_shown_as_absent(written: Path) -> None:
    text = (written / "metrics.json").read_text()
    assert "NaN" not in text
    rows = json.loads(text)["measures"]
    assert [row["value"] for row in rows] == [0.5, None]
    assert [row["low"] for row in rows] == [0.41, None]
    assert pq.read_table(written / "metrics.parquet")["value"].to_pylist() == [0.5, None]
    page = Page((written / "report.html").read_text())
    assert "absent" in page.text("td")


def test_write_refuses_nan_before_any_file(tmp_path: Path) -> None:
    nan = Estimate(Key("iou"), float("nan"), None, None, 1)
    with pytest.raises(ValueError, match="JSON"):
        replace(report(), estimates=[nan]).write(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_metrics_parquet_gives_trends_in_sql(tmp_path: Path) -> None:
    for night, iou in enumerate((0.5, 0.6, None), start=20):
        estimate = replace(IOU, value=iou)
        night_report = report(created_at=f"2026-11-{night}T03:00:00+01:00")
        replace(night_report, estimates=[estimate, ABSENT]).write(str(tmp_path / str(night)))
    trend = duckdb.sql(
        "SELECT created_at::TIMESTAMP::VARCHAR, value - lag(value) OVER (ORDER BY created_at) "
        f"FROM read_parquet('{tmp_path}/*/metrics.parquet') "
        "WHERE measure = 'iou' AND class = 'car' ORDER BY created_at"
    ).fetchall()
    assert [gain and round(gain, 6) for _, gain in trend] == [None, 0.1, None]
    assert pq.read_schema(tmp_path / "20" / "metrics.parquet").equals(FIGURES)


EVIL = [
    *ODD_NAMES, "/data/\udcff.jpg", "{{ 7 * 7 }} {% raw %}", "</style></title></svg><script>",
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;",
]  # fmt: skip


def test_page_escapes_hostile_names(tmp_path: Path) -> None:
    name = " | ".join(EVIL)
    report(name).write(str(tmp_path))
    page = Page((tmp_path / "report.html").read_bytes().decode())
    assert page.all("script") == []
    assert not [key for _, attrs in page.elements for key in attrs if key.startswith("on")]
    assert not [attrs for attrs in page.all("img") if not (attrs["src"] or "").startswith("data:")]
    text_name = name.replace("\udcff", r"\udcff")
    on_page = text_name.replace("\t", r"\t").replace("\r", r"\r").replace("\x01", r"\x01")
    assert f"Untrained: {on_page}" in page.text("p")
    assert f"Report of {on_page}" in page.text("h1")
    assert on_page in page.text("figcaption")
    assert on_page in page.text("th")
    assert [text for text in page.text("p") if text == f"How good is {on_page}?"]
    assert len([e for e in page.elements if e[0] == "figure"]) == 8
    assert read_metrics(str(tmp_path))["details"] == {text_name: [text_name]}
    data = pq.read_table(tmp_path / "metrics.parquet")["data"].to_pylist()
    assert data == 2 * [f"data {text_name}"]


@pytest.mark.parametrize("kind", plots())
def test_plots_use_colours_of_the_page(kind: str) -> None:
    svg = plots()[kind]
    assert set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", svg)) <= {
        "none", *(f"var(--{n})" for n in ("text", "line", *(f"series-{i}" for i in range(1, 9)))),
    }  # fmt: skip
    assert not re.search(r"#[0-9a-fA-F]{6}\b|rgb\(|<style|font-family", svg)
    assert "<text" in svg


def test_plots_are_deterministic() -> None:
    assert plots.__wrapped__() == plots()


def test_plots_escape_names() -> None:
    for svg in plots("<script>&\"'{{ 7 * 7 }} $\\alpha$").values():
        assert "<script" not in svg
        assert "{{ 7 * 7 }}" in svg


def test_page_ids_are_unique_and_complete(written: Path) -> None:
    text = (written / "report.html").read_text()
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    named = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert any(name.startswith("plot-") for name in named)
    assert named <= set(ids)


def test_page_loads_nothing(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = Page(text)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert (policy["content"] or "").startswith("default-src 'none'; img-src data:")
    loaded = [attrs.get("src") or attrs.get("href") for _, attrs in page.elements]
    links = [link for attrs in page.all("a") if (link := attrs["href"])]
    assert {(link or "#")[0] for link in loaded} - {"d"} == {"#"}
    assert all(link.startswith("#section-") for link in links)
    assert not re.search(r"url\((?!#)|@import", text)


@needs_chromium
def test_page_opens_without_browser_messages(written: Path, tmp_path: Path) -> None:
    run = chromium(written / "report.html", tmp_path)
    assert complaints_of(run) == []
    assert "Report of car.jpg" in Page(run.stdout).text("h1")


@needs_chromium
def test_page_is_accessible(written: Path) -> None:
    assert accessible(written / "report.html") == []


@pytest.mark.slow
@needs_chromium
def test_accessibility_check_finds_faults(written: Path, tmp_path: Path) -> None:
    bad = (written / "report.html").read_text().replace("--soft: #5a5a55", "--soft: #cccccc")
    (tmp_path / "bad.html").write_text(bad.replace('alt=""', ""))
    faults = {v.split(":")[0] for v in accessible(tmp_path / "bad.html")}
    assert {"color-contrast", "image-alt"} <= faults


def test_read_counts_keeps_types(written: Path) -> None:
    counts = read_counts(str(written))
    assert counts is not None
    assert counts.schema == pa.schema([("image", pa.string()), ("hits", pa.int64())])
