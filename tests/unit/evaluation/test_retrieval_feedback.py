"""Tests of feedback by simulated users against a literal loop, and of its section."""

import html
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.svm import SVC

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.report import Provenance
from segrec_batch.evaluation.retrieval.collection import Collection
from segrec_batch.evaluation.retrieval.counts import CONDITION
from segrec_batch.evaluation.retrieval.measures import evaluate
from segrec_batch.evaluation.retrieval.ranking import count_block
from segrec_batch.evaluation.retrieval.report import build_report
from segrec_batch.evaluation.retrieval.settings import PLAIN, Feedback, Setting, feedback_settings
from segrec_batch.evaluation.retrieval.truth import GroundTruth
from segrec_batch.evaluation.statistics import Key
from tests.support.builders import quick

N, WIDTH, SHOWN, ROUNDS = 40, 6, 4, 3
OF = [PLAIN] + [
    Setting(feedback=Feedback(way, i, SHOWN)) for way in ("rocchio", "svm") for i in (1, 2, 3)
]
Floats = NDArray[np.float64]


def collection(seed: int, masks: bool = False) -> tuple[Collection, GroundTruth]:
    """Return images of three kinds, one of them constant; with masks, some others overlap."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, N)
    features = (rng.random((3, WIDTH))[group] + rng.random((N, WIDTH))).astype(np.float32)
    features[0] = 1
    ids = pa.array([f"{i:04x}" for i in range(N)])
    none, words = {}, rng.integers(1, 2**8, (N, 1))
    images = Collection(
        ids=ids, uris=ids, contents=ids, classes=("car",),
        coverages=np.ones((N, 2), np.float32) / 2, features=features,
        sign_bits=np.empty((N, 0), np.int64), masks=np.empty((N, 0), np.int64), regions=none,
    )  # fmt: skip
    return images, GroundTruth(group, "", "", ("a", "b", "c"), masks=words if masks else None)


def prepared(method: str, x: Floats) -> Floats | None:
    """Return the vector of an image that a method compares."""
    if method == "euclidean":
        return x
    x = x - x.mean() if method == "pearson" else x
    length = math.sqrt(math.fsum(v * v for v in x))
    return x / length if length > 1e-6 else None


def literal_mark(truth: GroundTruth, q: int, i: int) -> float:
    assert truth.labels is not None
    if truth.labels[i] == truth.labels[q]:
        return 1.0
    if truth.masks is None:
        return 0.0
    a, b = int(truth.masks[q, 0]), int(truth.masks[i, 0])
    return 0.5 if (a & b).bit_count() / (a | b).bit_count() >= 0.5 else 0.0


def literal_vector(way: str, q: Floats, marked: list[tuple[float, Floats]]) -> Floats | None:
    good = [(m, x) for m, x in marked if m > 0]
    bad = [x for m, x in marked if m == 0]
    if way == "svm":
        if not good or not bad:
            return None
        rows = np.array([q, *(x for _, x in good), *bad])
        size = math.sqrt((rows**2).sum(axis=1).mean())
        fitted = SVC(kernel="linear", C=1.0)
        fitted.fit(
            rows / size,
            [1] * (1 + len(good)) + [0] * len(bad),
            sample_weight=[1, *(m for m, _ in good), *([1] * len(bad))],
        )
        return np.asarray(fitted.coef_[0] / np.linalg.norm(fitted.coef_[0]))
    result, share = q.copy(), 1.0
    for m, x in good:
        result, share = result + 0.75 * m / len(good) * x, share + 0.75 * m / len(good)
    for x in bad:
        result, share = result - 0.15 / len(bad) * x, share - 0.15 / len(bad)
    return result / share


def literal_score(method: str, way: str, q: Floats, x: Floats) -> float:
    if method == "euclidean" and way != "svm":
        return -math.dist(q, x)
    return float(q @ x)


def literal_rounds(
    images: Collection, truth: GroundTruth, method: str, way: str, q: int
) -> list[list[int]]:
    """Return the rankings after 0, 1, 2 … rounds, one step of a user at a time."""
    known = {
        i: x
        for i in range(N)
        if (x := prepared(method, images.features[i].astype(float))) is not None
    }
    if q not in known:
        return [[]] * (ROUNDS + 1)
    left = [i for i in known if i != q]
    left.sort(key=lambda i: (-literal_score(method, "query", known[q], known[i]), i))
    shown: list[int] = []
    rankings = [list(left)]
    for _ in range(ROUNDS):
        shown, left = [*shown, *left[:SHOWN]], left[SHOWN:]
        marked = [(literal_mark(truth, q, i), known[i]) for i in shown]
        vector = literal_vector(way, known[q], marked)
        if vector is not None:
            scores = {i: literal_score(method, way, vector, known[i]) for i in left}
            left.sort(key=lambda i, s=scores: (-s[i], i))
        rankings.append([*shown, *left])
    return rankings


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("method", ["pearson", "cosine", "euclidean"])
def test_feedback_rankings_equal_a_literal_loop(method: str, masks: bool) -> None:
    images, truth = collection(5, masks)
    rows = np.arange(0, N, 3)
    result = count_block(rows, images, truth, [method], OF).to_pylist()
    assert len(result) == len(OF) * len(rows)
    changed = 0
    for setting, row in zip(np.repeat(OF, len(rows)), result, strict=True):
        q = int(row["query"], 16)
        rounds = literal_rounds(images, truth, method, way(setting), q)
        order = rounds[setting.feedback.rounds if setting.feedback else 0]
        relevant = [r for r, i in enumerate(order, 1) if literal_mark(truth, q, i) == 1]
        assert (row["setting"], row["ranks"]) == (setting.name, relevant)
        assert row["retrieved"] == len(order)
        changed += order != rounds[0]
    assert changed > len(rows)


def way(setting: Setting) -> str:
    return setting.feedback.way if setting.feedback else "query"


def test_feedback_keeps_ranks_of_marked_images_in_any_block() -> None:
    images, truth = collection(2)
    rows = np.arange(N)
    table = count_block(rows, images, truth, ["pearson", "histogram"], OF)
    parts = [count_block(rows[i::2], images, truth, ["pearson", "histogram"], OF) for i in (0, 1)]
    key = [("method", "ascending"), ("setting", "ascending"), ("query", "ascending")]
    assert pa.concat_tables(parts).sort_by(key).equals(table.sort_by(key).combine_chunks())
    result = {
        (r["setting"], r["query"]): r["ranks"]
        for r in table.to_pylist()
        if r["method"] == "pearson"
    }
    for setting in OF[2:]:
        assert setting.feedback is not None
        before = replace(setting.feedback, rounds=setting.feedback.rounds - 1)
        name = Setting(feedback=before).name if before.rounds else ""
        for query in images.ids.to_pylist():
            old, new = (
                [r for r in result[s, query] if r <= before.page] for s in (name, setting.name)
            )
            assert old == new
    assert {r["setting"] for r in table.to_pylist() if r["method"] == "histogram"} == {""}


@quick
@given(arrays(np.float32, (8, 3), elements=st.floats(-4, 4, width=32)))
def test_feedback_without_defined_scores_lists_nothing(features: NDArray[np.float32]) -> None:
    """Constant images have no Pearson: none is shown, marked or listed."""
    images, _ = collection(0)
    features[:] = features[:, :1]
    images = replace(images, ids=images.ids[:8], uris=images.uris[:8], features=features,
                     coverages=images.coverages[:8])  # fmt: skip
    truth = GroundTruth(np.zeros(8, np.int64), "", "")
    result = count_block(np.arange(8), images, truth, ["pearson"], OF)
    assert set(result["retrieved"].to_pylist()) == {0}


def test_feedback_metrics_follow_from_the_counts(tmp_path: Path) -> None:
    images, truth = collection(4)
    rows = np.arange(1, N)
    of = [PLAIN, *feedback_settings(2)]
    counts = count_block(rows, images, truth, ["pearson", "histogram"], of)
    (evaluation,) = evaluate(counts)
    ranks = {}
    for row in counts.to_pylist():
        ranks.setdefault((row["method"], row["setting"]), []).append(row["ranks"])

    def precision(method: str, setting: str, page: int) -> float:
        hits = [sum(page - 10 < r <= page for r in some) for some in ranks[method, setting]]
        return sum(hits) / (10 * len(hits))

    pages = {key: m for key, m in evaluation.measures.items() if key.name == "new_precision"}
    expected = [("", 10), ("", 20), ("", 30), ("rocchio 1×10", 20), ("rocchio 2×10", 30),
              ("svm 1×10", 20), ("svm 2×10", 30)]  # fmt: skip
    assert set(pages) == {Key("new_precision", "pearson", setting=s, k=k) for s, k in expected}
    for key, measure in pages.items():
        assert measure.value == pytest.approx(precision(key.method, key.setting, key.k))

    report = build_report(counts, Provenance("retrieval", "0", "id"), "By kind.")
    (section,) = (s for s in report.sections if s.title == "Relevance feedback")
    tables = [item for item in section.items if hasattr(item, "header")]
    names = ["pearson, no feedback", "pearson, rocchio", "pearson, svm"]
    assert [[row[0] for row in t.rows] for t in tables] == [names, names]
    first = [t.texts(interval=False)[0] for t in tables]
    assert len(set(first[0][1:])) == 1
    assert first[1][1:] == [f"{precision('pearson', '', k):.3f}" for k in (10, 20, 30)]
    report.write(str(tmp_path))
    assert "residual rankings" in html.unescape((tmp_path / "report.html").read_text())


def test_report_without_rounds_has_no_feedback_section() -> None:
    images, truth = collection(4)
    counts = count_block(
        np.arange(1, N), images, truth, ["pearson"], [PLAIN, *feedback_settings(0)]
    )
    report = build_report(counts, Provenance("retrieval", "0", "id"), "By kind.")
    assert "Relevance feedback" not in [section.title for section in report.sections]
    with pytest.raises(InputError, match="-1 rounds of feedback"):
        feedback_settings(-1)


def test_settings_round_trip_and_sort() -> None:
    rounds = feedback_settings(11)
    names = [setting.name for setting in rounds]
    cells = pa.array([asdict(setting) for setting in rounds], CONDITION).to_pylist()
    assert [Setting.from_row(cell).name for cell in cells] == names
    some = {PLAIN, Setting(epsilon=0.9), *rounds[::-1]}
    ordered = sorted(some, key=lambda setting: setting.sort_key)
    assert [setting.name for setting in ordered] == ["", "ε 0.9", *names]
