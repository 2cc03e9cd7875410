"""Tests of rankings by descriptors against literal loops, and of reading descriptors."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.report import Provenance
from segrec_batch.evaluation.retrieval.collection import FOREGROUND, Collection, load
from segrec_batch.evaluation.retrieval.latency import measure_latencies
from segrec_batch.evaluation.retrieval.measures import evaluate
from segrec_batch.evaluation.retrieval.methods import BASE_METHODS, resolve_methods, score
from segrec_batch.evaluation.retrieval.ranking import count_block, rank
from segrec_batch.evaluation.retrieval.report import build_report
from segrec_batch.evaluation.retrieval.run import dimension_grid
from segrec_batch.evaluation.retrieval.settings import NEIGHBOURS, PLAIN
from segrec_batch.evaluation.retrieval.truth import GroundTruth
from segrec_batch.evaluation.statistics import Key
from segrec_batch.search import similarity
from segrec_batch.search.database import open_index
from segrec_batch.search.filters import VECTOR_METRICS
from segrec_batch.search.similarity import METRICS, rank_order
from tests.support.builders import quick
from tests.support.descriptor_view import with_descriptors
from tests.support.feature_index import write_index

Vectors = NDArray[np.float32]
NAMED = [f"{name}-{metric}" for name in ("hog", "pca", "localised") for metric in VECTOR_METRICS]
NAMES = ["hog", "pca", "pca-cosine@2", "hog@1", "localised", "dot", *NAMED]


def collection(n: int, seed: int, length: int = 4, values: int = 3) -> Collection:
    """Return random images with few different values, so that many scores are equal.

    Some have no vectors, no category or no foreground; some vectors are zero or constant.
    """
    rng = np.random.default_rng(seed)

    def vectors() -> Vectors:
        result = rng.integers(1 - values, values, (n, length)).astype(np.float32)
        result[rng.random(n) < 0.1] = 0
        result[rng.random(n) < 0.1] = 2
        result[rng.random(n) < 0.15] = np.nan
        return result

    ids = pa.array([f"{i:04x}" for i in range(n)])
    words = rng.choice(rng.integers(-(2**63), 2**63, 3), (n, 16)) * (rng.random((n, 1)) > 0.2)
    return Collection(
        ids=ids,
        uris=pa.array([f"/{'ab'[i % 2]}/{i}.jpg" for i in range(n)]),
        contents=ids,
        classes=("car",),
        coverages=np.full((n, 2), 0.5, np.float32),
        features=np.nan_to_num(vectors()),
        sign_bits=np.zeros((n, 0), np.int64),
        masks=np.zeros((n, 0), np.int64),
        regions={},
        foreground=words,
        vectors={name: vectors() for name in ("hog", "pca", "localised")},
        categories={name: rng.integers(-1, 2, n) for name in ("hog", "pca", "localised")},
    )


# --- literal loops -----------------------------------------------------------------------------


def literal(metric: str, x: Vectors, y: Vectors) -> float:
    a, b = x.astype(np.float64), y.astype(np.float64)
    if metric == "euclidean":
        return -float(np.sqrt(((a - b) ** 2).sum()))
    if metric == "dot":
        return float((a * b).sum())
    if metric == "pearson":
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            return math.nan
        a, b = a - a.mean(), b - b.mean()
    length = np.sqrt((a**2).sum()) * np.sqrt((b**2).sum())
    return float((a * b).sum() / length) if length else math.nan


def literal_iou(x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
    a, b = (sum(int(w) % 2**64 << 64 * i for i, w in enumerate(words)) for words in (x, y))
    return (a & b).bit_count() / (a | b).bit_count() if a | b else -1.0


def literal_ranking(images: Collection, name: str, q: int) -> list[int]:
    """Return all other images that a method retrieves, best first, one by one."""
    cut, _, first = name.partition("@")
    descriptor, _, metric = cut.partition("-")
    of_feature = descriptor in METRICS
    metric = descriptor if of_feature else metric or "euclidean"
    vectors = images.features if of_feature else images.vectors[descriptor]
    vectors = vectors[:, : int(first or vectors.shape[1])]
    categories = images.categories["localised"]
    scored = []
    for i in range(len(images)):
        score = literal(metric, vectors[q], vectors[i])
        elsewhere = categories[i] != categories[q] or categories[i] < 0
        if i == q or math.isnan(score) or (name == "localised" and elsewhere):
            continue
        scored.append((-round(score, 9), i))
    order = [i for _, i in sorted(scored)]
    if name != "localised":
        return order
    again = sorted(
        order[:100], key=lambda i: -literal_iou(images.foreground[q], images.foreground[i])
    )
    return again + order[100:]


def check(images: Collection, names: list[str], rows: NDArray[np.int64]) -> None:
    passes = np.ones((len(rows), len(images)), bool)
    passes[np.arange(len(rows)), rows] = False
    for name in names:
        scores = score(name, rows, images)
        order, listed = rank(scores, rank_order(scores.values), passes)
        for i, q in enumerate(rows):
            expected = literal_ranking(images, name, int(q))
            assert order[i][listed[i]].tolist() == expected, (name, q)


@quick
@given(st.integers(2, 14), st.integers(0, 10**6))
def test_descriptor_rankings_equal_literal_loops(n: int, seed: int) -> None:
    check(collection(n, seed), NAMES, np.arange(n))


def test_localised_reranks_the_first_100_of_the_category() -> None:
    images = collection(450, 7)
    categories = images.categories["localised"]
    rows = np.flatnonzero(categories >= 0)[:8]
    check(images, ["localised"], rows)
    with_vector = ~np.isnan(images.vectors["localised"]).any(axis=1)
    assert np.count_nonzero((categories == categories[rows[0]]) & with_vector) > 110


def test_descriptor_rankings_of_long_vectors_equal_loops() -> None:
    images = collection(40, 3, length=1500)
    check(images, NAMED, np.arange(0, 40, 3))


def test_localised_loses_candidates_of_other_categories() -> None:
    images = collection(60, 4)
    truth = GroundTruth(np.zeros(60, np.int64), "", "")
    rows = np.arange(60)
    for row in count_block(rows, images, truth, ["localised"], [PLAIN]).to_pylist():
        assert row["relevant"] == 59
        assert len(row["ranks"]) == row["retrieved"] < 59


# --- products of long vectors ------------------------------------------------------------------


@pytest.mark.parametrize("length", [511, 513, 2000, 8192])
def test_dots_of_long_vectors_are_exact_in_any_block(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(length)
    vectors = rng.standard_normal((24, length), np.float32)
    vectors[3:6] = 1e-3  # of equal sign, all errors add up
    vectors[3:6, :7] += rng.random((3, 7), np.float32)
    vectors[7], vectors[8] = vectors[1], 0
    vectors[9] = np.nan
    for prepare in (similarity.standardise, similarity.normalise):
        whole = similarity.dot_products(vectors, vectors, prepare)
        exact = prepare(vectors)
        for i in range(10):
            for j in range(i, 10):
                assert whole[i, j] == pytest.approx(
                    math.fsum(exact[i] * exact[j]), abs=1e-12, nan_ok=True
                )
        order = rng.permutation(24)
        with monkeypatch.context() as patched:
            for values in (1, 5 * length, 7 * length):
                patched.setattr(similarity, "_TILE", values)
                again = similarity.dot_products(vectors[order], vectors[order], prepare)
                assert np.array_equal(whole[np.ix_(order, order)], again, equal_nan=True)
                alone = similarity.dot_products(vectors[1:2], vectors, prepare)
                assert np.array_equal(whole[1:2], alone, equal_nan=True)
                squares = similarity.squared_norms(vectors, prepare)
                assert np.array_equal(np.diag(whole), squares, equal_nan=True)
        assert np.array_equal(whole, whole.T, equal_nan=True)
        assert np.array_equal(whole[7], whole[1], equal_nan=True)


@pytest.mark.parametrize("size", [1e-20, 1.0, 3e18])
def test_euclidean_is_independent_of_the_unit(size: float) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.random((30, 700), np.float32) * np.float32(size)
    vectors[4] = vectors[5]
    vectors[6] = np.nan
    result = METRICS["euclidean"].scores(np.arange(30), vectors)
    x = vectors.astype(np.float64)
    expected = -np.sqrt(((x[:, None] - x) ** 2).sum(axis=2))
    assert result == pytest.approx(expected, rel=1e-10, abs=1e-10 * size, nan_ok=True)
    assert result[4, 5] == 0 == result[3, 3]
    assert np.isnan(
        METRICS["euclidean"].scores(np.arange(2), np.full((2, 1), np.nan, np.float32))
    ).all()


# --- names -------------------------------------------------------------------------------------


def test_resolve_methods_expands_all() -> None:
    *others, chance = BASE_METHODS
    has = ["hog", "localised", "pca", "sift"]
    natural = ("hog", "localised", "localised-euclidean", "pca-cosine", "sift")
    assert resolve_methods(["all"], has) == (*others, *natural, chance)
    assert resolve_methods(["all", "hog-dot", "hog"], ["hog"])[-2:] == ("random", "hog-dot")
    assert resolve_methods(["dot", "hog-cosine"], ["hog"]) == ("dot", "hog-cosine")


@pytest.mark.parametrize("name", ["sift", "sift-cosine", "hog-sine", "hog@2", "localised", "-dot"])
def test_resolve_methods_refuses_an_unknown_method(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"no method '{name}'.* descriptors hog, pca, segrec desc"
    ):
        resolve_methods(["pearson", name], ["hog", "pca"])
    with pytest.raises(InputError, match=r"has no descriptors, segrec describe adds them"):
        resolve_methods([name], [])


# --- an index ----------------------------------------------------------------------------------


def test_load_reads_descriptors_as_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    index = str(tmp_path / "index")
    write_index(index, rng.random((7, 8), np.float32))
    plain = open_index(index)
    ids = plain.connection.execute("SELECT image_id FROM images ORDER BY image_id").fetchall()
    vectors = {name: rng.random((7, 3), np.float32) for name in ("hog", "localised", "sift")}
    vectors["hog"][2], vectors["sift"][:] = np.nan, np.nan
    categories = ["jar", None, "cap", "jar", "pump", None, "cap"]
    database = with_descriptors(plain, [name for (name,) in ids], vectors, categories)
    background = np.arange(16) * 3
    database.connection.execute(
        "CREATE OR REPLACE TEMP VIEW regions AS SELECT $id AS image_id, 'background' AS class, "
        f"{background.tolist()}::BIGINT[] AS mask_bits".replace("$id", f"'{ids[3][0]}'")
    )
    images = load(database, [FOREGROUND], ["hog", "localised", "sift"])
    assert np.array_equal(images.vectors["hog"], vectors["hog"], equal_nan=True)
    assert np.array_equal(images.vectors["localised"], vectors["localised"])
    assert np.isnan(images.vectors["sift"]).all()
    assert len(images.vectors["sift"]) == 7
    numbers = images.categories["localised"].tolist()
    assert [n < 0 for n in numbers] == [c is None for c in categories]
    assert numbers[0] == numbers[3] != numbers[2] == numbers[6] != numbers[4] != numbers[0]
    assert (images.categories["hog"] < 0).all()
    assert np.array_equal(images.foreground[3], ~background)
    assert (images.foreground[[0, 1, 2, 4, 5, 6]] == -1).all()
    assert load(database, []).foreground.shape == (0, 16)

    database.connection.execute("DROP VIEW temp.regions")
    took = measure_latencies(database, images, ["hog", "localised", "sift"], np.arange(7), 0)
    assert [(t.method, t.setting, t.queries) for t in took] == [
        ("hog", "", 6),
        ("localised", "", 7),
    ]


# --- the page ----------------------------------------------------------------------------------


def projected(n: int = 90, length: int = 16) -> Collection:
    """Return images with features of three kinds, and their principal components."""
    rng = np.random.default_rng(8)
    images = collection(n, 5)
    kinds = rng.random((3, 40)) * 3
    features = (kinds[np.arange(n) % 3] + rng.random((n, 40)) * 4).astype(np.float32)
    centred = features - features.mean(axis=0)
    components = np.linalg.svd(centred, full_matrices=False)[2][:length]
    pca = (centred @ components.T).astype(np.float32)
    return replace(images, features=features, vectors={**images.vectors, "pca": pca})


def test_report_compares_components_with_the_full_vector() -> None:
    images = projected()
    rows, methods = np.arange(90), ["pearson", "cosine", "pca-cosine", "hog", "localised"]
    truth = GroundTruth(np.arange(90) % 3, "", "", ("a", "b", "c"))
    cut, settings = dimension_grid(images)
    assert cut == tuple(f"pca-cosine@{d}" for d in (2, 4, 8, 16))
    counts = pa.concat_tables(
        [
            count_block(rows, images, truth, methods, [PLAIN]),
            count_block(rows, images, truth, cut, settings),
        ]
    )
    (evaluation,) = evaluate(counts)
    full = literal_neighbours(images, "cosine")
    for d in (2, 4, 8, 16):
        key = Key("recall", f"pca-cosine@{d}", setting="neighbours by cosine", k=NEIGHBOURS)
        near = [literal_ranking(images, f"pca-cosine@{d}", q)[:NEIGHBOURS] for q in rows]
        shared = [len(set(a) & set(b)) for a, b in zip(near, full, strict=True)]
        assert evaluation.measures[key].value == pytest.approx(np.mean(shared) / NEIGHBOURS)

    report = build_report(counts, Provenance("retrieval", "", ""), "Relevant is the same kind.")
    sections = {section.title: section.items for section in report.sections}
    table = next(i for i in sections["Principal components"] if hasattr(i, "header"))
    names = ["2", "4", "8", "16", "full vector, cosine", "full vector, pearson"]
    assert [row[0] for row in table.texts()] == names
    for row, method in zip(table.texts(), [*cut, "cosine", "pearson"], strict=True):
        value = evaluation.measures[Key("map", method)].value
        assert row[3].startswith(f"{value:.3f}")
    assert [row[0] for row in report.headline.texts()] == methods  # components have a section
    assert not any("@" in c["a"] + c["b"] for c in report.details["significance"])


def literal_neighbours(images: Collection, metric: str) -> list[list[int]]:
    return [literal_ranking(images, metric, q)[:NEIGHBOURS] for q in range(len(images))]


def test_query_without_neighbours_counts_in_other_settings() -> None:
    images = projected()
    images.features[0] = 0
    truth = GroundTruth(np.arange(90) % 3, "", "")
    counts = count_block(np.arange(90), images, truth, *dimension_grid(images))
    (evaluation,) = evaluate(counts)
    sizes = {
        setting: int(evaluation.measures[Key("recall", "pca-cosine@4", setting=setting, k=10)]
                     .denominator.sum())
        for setting in ("", "neighbours by cosine")
    }  # fmt: skip
    assert sizes == {"": 90, "neighbours by cosine": 89}
