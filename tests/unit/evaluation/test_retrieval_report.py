"""Tests of the retrieval report: its sections, values and files."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.items import Gallery, Plot, Table
from segrec_batch.evaluation.plots import Line, heat_map, line_plot
from segrec_batch.evaluation.report import Provenance, Report, read_counts, read_metrics
from segrec_batch.evaluation.retrieval.counts import COUNTS
from segrec_batch.evaluation.retrieval.examples import (
    Example,
    Hit,
    average_precisions,
    best_and_worst,
)
from segrec_batch.evaluation.retrieval.latency import Latency
from segrec_batch.evaluation.retrieval.measures import evaluate
from segrec_batch.evaluation.retrieval.report import build_report
from segrec_batch.evaluation.statistics import Key
from segrec_batch.sources.roots import ImageRoots
from tests.support.cards import image
from tests.support.retrieval_counts import counts_table

METHODS = ["region Pearson", "image Pearson", "semantic histogram"]
TRUTH = "An image is relevant to a query of the same class."
ALL = [
    "Metrics",
    "Curves",
    "Filters",
    "Query in or out of the ground truth",
    "Classes",
    "Are the differences real?",
    "Latency",
    "Best and worst queries",
]


def provenance() -> Provenance:
    return Provenance("retrieval", "0f3a9c2e", "of equal scores the smaller image_id", seed=3)


def examples(folder: Path) -> list[Example]:
    uri = str(folder / "a.jpg")
    Path(uri).write_bytes(image(900, 600))
    results = [Hit("a", uri, True, 0.91), Hit("b", str(folder / "gone.jpg"), False, 0.5)]
    roots = ImageRoots((str(folder),))
    return [Example(uri, "car", ap, "image Pearson", results, roots) for ap in (0.2, 0.75)]


@pytest.fixture(scope="module")
def counts() -> pa.Table:
    return counts_table(60)


@pytest.fixture(scope="module")
def report(counts: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(
        counts,
        provenance(),
        TRUTH,
        examples=examples(tmp_path_factory.mktemp("images")),
        latency=[Latency("image Pearson", "", 1.5, 4.0, 0.75, 20)],
        not_run={"region Pearson on sign bits": "the index has none"},
        notice="Untrained backbone: for trying out only.",
    )


def titles(report: Report) -> list[str]:
    return [section.title for section in report.sections]


def test_report_files_follow_from_the_counts(
    counts: pa.Table, report: Report, tmp_path: Path
) -> None:
    report.write(str(tmp_path))
    metrics = read_metrics(str(tmp_path))
    again = read_counts(str(tmp_path / "metrics.json"))
    assert again is not None
    (evaluation,) = evaluate(again)
    figures = {
        Key(m["measure"], m["method"], m["split"], m["setting"], m["class"], m["k"]): m
        for m in metrics["measures"]
    }
    assert len(figures) > 500
    for estimate in evaluation.estimates(seed=3):
        m = figures.pop(estimate.key)
        assert (estimate.value, estimate.low, estimate.high) == (m["value"], m["low"], m["high"])
    assert figures == {}
    assert pq.read_table(tmp_path / "metrics.parquet").num_rows == len(metrics["measures"])


def test_page_has_all_sections_and_definitions(report: Report, tmp_path: Path) -> None:
    report.write(str(tmp_path))
    page = html.unescape((tmp_path / "report.html").read_text())
    assert titles(report) == ALL
    for text in (*ALL, TRUTH, *METHODS, "FIAR = B / (A + B)", "ARR = Σ A / Σ R", "trec_eval"):
        assert text in page, text
    assert "Untrained backbone: for trying out only." in page
    assert "the index has none" in page
    assert page.count("of equal scores the smaller image_id") == 1  # provenance stands once


def test_details_hold_curves_pairs_and_latency(report: Report) -> None:
    details = json.loads(json.dumps(report.details, allow_nan=False))
    assert details["queries"] == {"all": 60, "without_relevant": 0}
    assert details["latency"][0]["ratio"] == 0.75
    assert len(details["significance"]) == 3
    for pair in details["significance"]:
        a, b = (_value(report, Key("map", pair[side])) for side in "ab")
        assert pair["difference"]["value"] == pytest.approx(a - b)
    curve = details["curves"]["precision"]["image Pearson"]
    assert len(curve) == len(details["curves"]["recall"])
    assert curve == sorted(curve, reverse=True)


def _value(report: Report, key: Key) -> float:
    (result,) = (e.value for e in report.estimates if e.key == key)
    assert result is not None
    return result


def test_report_leaves_out_sections_without_counts() -> None:
    counts = counts_table(20, methods=METHODS[:1], settings=("",), gains=False)
    blank = pa.array([""] * len(counts))
    place = COUNTS.get_field_index("class")
    report = build_report(
        counts.set_column(place, COUNTS.field("class"), blank), provenance(), TRUTH
    )
    assert titles(report) == ["Metrics", "Curves"]
    (table, _) = (item for item in report.sections[0].items if hasattr(item, "header"))
    assert "nDCG@10" not in table.header


def test_filter_tables_name_methods_that_were_not_run() -> None:
    counts = counts_table(20, settings=("", "σ 0.29–0.96", "ε 0.5"))
    one = [r for r in counts.to_pylist() if r["method"] != METHODS[1] or not r["setting"]]
    report = build_report(pa.Table.from_pylist(one, COUNTS), provenance(), TRUTH)
    filters = report.sections[titles(report).index("Filters")]
    tables = [item for item in filters.items if hasattr(item, "header")]
    assert len(tables) == 8  # four for each kind of filter
    for table in tables:
        name, first, *others = table.texts()[1]
        assert name == METHODS[1]
        assert first != "not run"
        assert set(others) == {"not run"}


def test_plots_of_many_methods_show_the_best() -> None:
    counts = counts_table(12, settings=("", "σ 0.29–0.96", "ε 0.5", "ε 0.9"))
    names = counts["method"].to_pylist()
    place = COUNTS.get_field_index("method")
    many = [
        counts.set_column(place, COUNTS.field("method"), pa.array([f"{n} {i}" for n in names]))
        for i in range(3)
    ]
    report = build_report(pa.concat_tables(many), provenance(), TRUTH)
    items = {section.title: section.items for section in report.sections}
    ap = {e.key.method: e.value for e in report.estimates if e.key == Key("map", e.key.method)}
    assert report.lead is not None
    best_first = report.lead.plot
    assert best_first is not None
    shown = re.findall("|".join(ap), best_first.svg)
    assert [ap[m] for m in shown if m in ap] == sorted(ap.values(), reverse=True)
    assert len(report.headline.rows) == 9
    for plot in (i for i in items["Curves"] if isinstance(i, Plot)):
        assert len(set(re.findall("|".join(ap), plot.svg))) == 8
    for plot in (i for i in items["Filters"] if isinstance(i, Plot)):
        assert len(set(re.findall("|".join(ap), plot.svg))) == 9
    (pairs,) = (i for i in items["Are the differences real?"] if isinstance(i, Table))
    assert len(pairs.rows) == 8
    assert len(report.details["significance"]) == 36


def test_line_plot_marks_series_of_one_colour_differently() -> None:
    lines = {f"m{i}": Line([0, 1], [i, i]) for i in range(24)}
    svg = line_plot(lines, "x", "y", y_range=None)
    uses = re.findall(r"<use [^>]*?href=\"#(\w+)\"[^>]*?style=\"([^\"]*)\"", svg)
    marks = {(mark, colour) for mark, style in uses
             for colour in re.findall(r"--series-\d", style)}  # fmt: skip
    assert len(marks) == 24


def test_relevant_lost_is_the_share_that_a_filter_drops(counts: pa.Table, report: Report) -> None:
    key = Key("relevant_lost", METHODS[0], setting="ε 0.5")
    lost = [
        1 - len(row["ranks"]) / row["relevant"]
        for row in counts.to_pylist()
        if (row["method"], row["setting"]) == (METHODS[0], "ε 0.5")
    ]
    assert 0 < _value(report, key) == pytest.approx(sum(lost) / len(lost))


def test_line_plot_draws_the_level_of_comparison() -> None:
    def colours(level: float | None) -> int:
        lines = {"a": Line([0.3, 0.9], [0.2, 0.4], level=level), "b": Line([0.3], [float("nan")])}
        svg = line_plot(lines, "ε", "mAP")
        assert "var(--series-2)" not in svg  # nothing is known of b
        return svg.count("var(--series-1)")

    assert colours(0.5) == colours(None) + 1


def test_heat_map_tilts_long_labels() -> None:
    def tilted(columns: list[str]) -> bool:
        return "rotate(-35" in heat_map(np.zeros((1, len(columns))), ["x"], columns, "y", "x")

    assert not tilted(["car", "tree"])
    assert tilted(["Pearson, then mask IoU"] * 5)


def test_headline_has_a_row_for_each_method(report: Report) -> None:
    table = report.headline
    assert [row[0] for row in table.texts()] == METHODS
    assert table.header[1] == "mAP"
    assert table.texts(interval=False)[0][1] == f"{_value(report, Key('map', METHODS[0])):.3f}"


def test_best_and_worst_are_by_ap_then_by_name(counts: pa.Table) -> None:
    (evaluation,) = evaluate(counts)
    ap = evaluation.measures[Key("map", METHODS[0])].numerator[:, 0]
    names = average_precisions(counts, METHODS[0])
    assert names == dict(zip(evaluation.units, ap, strict=True))
    best, worst = best_and_worst(names)
    assert best == sorted(names, key=lambda q: (-names[q], q))[:3]
    assert worst == sorted(names, key=lambda q: (names[q], q))[:3]
    every = best_and_worst(names, n=40)
    assert (len(every[0]), len(every[1])) == (40, 20)
    assert not set(every[0]) & set(every[1])
    with pytest.raises(InputError, match="nothing like it"):
        average_precisions(counts, "nothing like it")


def test_galleries_show_results_and_missing_images(report: Report) -> None:
    (gallery,) = report.sections[-1].items
    assert isinstance(gallery, Gallery)
    assert "image Pearson" in gallery.caption
    (title, images), (other, _) = gallery.strips
    assert title.startswith("car · AP 0.750 · ")
    assert other.startswith("car · AP 0.200 · ")
    assert [p.label for p in images] == ["query", "1 · 0.910", "2 · 0.500"]
    assert [p.mark for p in images] == ["", "good", "bad"]
    assert [p.image and p.image.size for p in images] == [(240, 160), (240, 160), None]


def test_build_report_refuses_counts_without_queries() -> None:
    counts = counts_table(20, settings=("ε 0.5",))
    with pytest.raises(InputError, match="without rankings under the plain setting: image Pearson"):
        build_report(counts, provenance(), TRUTH)
    alone = pa.Table.from_pylist([{**r, "relevant": 0} for r in counts.to_pylist()], COUNTS)
    with pytest.raises(InputError, match="no query has a relevant candidate"):
        build_report(alone, provenance(), TRUTH)
