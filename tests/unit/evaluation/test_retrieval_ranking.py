"""Tests of rankings and counts against literal transcriptions and SQL, in any block."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import segrec_batch
from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.report import Provenance
from segrec_batch.evaluation.retrieval.collection import PARTS, Collection, Regions, load
from segrec_batch.evaluation.retrieval.counts import COUNTS
from segrec_batch.evaluation.retrieval.examples import first_hits
from segrec_batch.evaluation.retrieval.masks import Masks
from segrec_batch.evaluation.retrieval.methods import (
    BASE_METHODS,
    parse_method,
    resolve_methods,
    score,
)
from segrec_batch.evaluation.retrieval.ranking import count_block
from segrec_batch.evaluation.retrieval.run import (
    RetrievalOptions,
    RetrievalRun,
    count_queries,
    run_retrieval,
)
from segrec_batch.evaluation.retrieval.settings import (
    PLAIN,
    Setting,
    feedback_settings,
    filter_settings,
)
from segrec_batch.evaluation.retrieval.truth import Folders, GroundTruth
from segrec_batch.search import similarity
from segrec_batch.search.cache import refresh_cache
from segrec_batch.search.database import open_index
from tests.support.builders import quick
from tests.support.feature_index import write_index

OF = filter_settings([(0, 1), (0.29, 0.96)], [0.3, 0.9])
values = st.floats(-100, 100, width=32, allow_subnormal=False)
matrices = arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(2, 40)), elements=values)


def collection(n: int, seed: int, words: int = 2) -> Collection:
    """Return random images of two classes with few values, so that many scores are equal."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(4, [0.4, 0.4, 0.2], n)
    members = {k: rng.permutation(np.flatnonzero(counts[:, k])) for k in (1, 2)}
    masks = rng.integers(-(2**63), 2**63, (n, 2, words)) & rng.integers(-(2**63), 2**63, (n, 2, 1))
    masks[counts[:, 1:] == 0] = 0
    ids = pa.array([f"{i:04x}" for i in range(n)])
    return Collection(
        ids=ids,
        uris=pa.array([f"/{'ab'[i % 2]}/{i}.jpg" for i in range(n)]),
        contents=ids,
        classes=("car", "tree"),
        coverages=(counts / 4).astype(np.float32),
        features=rng.integers(0, 3, (n, 4)).astype(np.float32),
        sign_bits=rng.choice(rng.integers(-(2**63), 2**63, 5), (n, words)),
        masks=masks.reshape(n, -1),
        regions={k: Regions(m, rng.integers(0, 3, (len(m), 4)).astype(np.float32))
                 for k, m in members.items()},
    )  # fmt: skip


def with_masks(images: Collection, seed: int) -> GroundTruth:
    """Return three groups, images in none, and gains by masks."""
    rng = np.random.default_rng(seed + 1)
    group = rng.integers(-1, 3, len(images))
    masks = rng.integers(-(2**63), 2**63, (len(images), 2)) * rng.integers(0, 2, (len(images), 1))
    return GroundTruth(group, "", "", ("a", "b", "c"), masks=masks)


# --- the literal transcription -----------------------------------------------------------------


def literal_pearson(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    a, b = x.astype(float).tolist(), y.astype(float).tolist()
    ma, mb = math.fsum(a) / len(a), math.fsum(b) / len(b)
    da, db = [v - ma for v in a], [v - mb for v in b]
    length = math.sqrt(math.fsum(v * v for v in da)) * math.sqrt(math.fsum(v * v for v in db))
    return math.fsum(v * w for v, w in zip(da, db, strict=True)) / length if length else math.nan


def literal_overlap(x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
    pairs = [(int(a) % 2**64, int(b) % 2**64) for a, b in zip(x, y, strict=True)]
    either = sum((a | b).bit_count() for a, b in pairs)
    return sum((a & b).bit_count() for a, b in pairs) / either if either else math.nan


def literal_dominant(images: Collection, q: int) -> int:
    shares = images.coverages[q].tolist()
    best = max(range(1, len(shares)), key=lambda k: (shares[k], -k))
    return best if shares[best] > 0 else 0


def literal_score(images: Collection, method: str, q: int, i: int) -> float:
    x, y = images.features[q], images.features[i]
    if method in ("pearson", "pearson+iou"):
        return literal_pearson(x, y)
    if method == "cosine":
        length = math.hypot(*x) * math.hypot(*y)
        return float(x @ y) / length if length else math.nan
    if method == "euclidean":
        return -math.dist(x, y)
    if method == "histogram":
        return -sum(abs(float(a) - float(b)) for a, b in
                    zip(images.coverages[q], images.coverages[i], strict=True))  # fmt: skip
    if method == "sign-bits":
        pairs = zip(images.sign_bits[q], images.sign_bits[i], strict=True)
        return -sum(((int(a) ^ int(b)) % 2**64).bit_count() for a, b in pairs)
    regions = images.regions.get(literal_dominant(images, q))
    place = {} if regions is None else {int(r): j for j, r in enumerate(regions.rows)}
    if regions is None or q not in place or i not in place:
        return math.nan
    return literal_pearson(regions.features[place[q]], regions.features[place[i]])


def literal_ranking(images: Collection, method: str, setting: Setting, q: int) -> list[int]:
    scored = []
    for i in range(len(images)):
        share = float(images.coverages[i, literal_dominant(images, q)])
        present = literal_dominant(images, q) > 0 and share > 0
        if setting.window:
            low, high = setting.window
            if not present or not low <= share <= high:
                continue
        distance = -literal_score(images, "histogram", q, i)
        if setting.epsilon is not None and distance > setting.epsilon:
            continue
        score = literal_score(images, method, q, i)
        if not math.isnan(score) and (i != q or setting.keeps_query):
            scored.append((-round(score, 12), i))
    order = [i for _, i in sorted(scored)]
    if method != "pearson+iou":
        return order
    overlap = {i: literal_overlap(images.masks[q], images.masks[i]) for i in order}
    head = sorted(order[:100], key=lambda i: (math.isnan(overlap[i]), -overlap[i]))
    return head + order[100:]


def literal_row(
    images: Collection, truth: GroundTruth, method: str, setting: Setting, q: int
) -> dict[str, Any]:
    labels, masks = truth.labels, truth.masks
    assert labels is not None
    assert masks is not None
    pool = [i for i in range(len(images)) if i != q or setting.keeps_query]
    relevant = {i for i in pool if i == q or (labels[i] == labels[q] and labels[q] >= 0)}
    gain = {i: literal_overlap(masks[q], masks[i]) for i in pool}
    gain = {i: 0.0 if math.isnan(g) else float(np.float32(g)) for i, g in gain.items()}
    order = literal_ranking(images, method, setting, q)
    return {
        "query": images.ids[q].as_py(),
        "uri": images.uris[q].as_py(),
        "class": truth.classes[labels[q]] if labels[q] >= 0 else "",
        "method": method,
        "setting": setting.name,
        "condition": literal_condition(setting),
        "candidates": len(pool),
        "retrieved": len(order),
        "relevant": len(relevant),
        "ranks": [place for place, i in enumerate(order, start=1) if i in relevant],
        "gains": [gain[i] for i in order[:100]],
        "ideal": sorted(gain.values(), reverse=True)[:100],
    }


def literal_condition(setting: Setting) -> dict[str, Any]:
    window = list(setting.window) if setting.window else None
    return {
        "keeps_query": setting.keeps_query, "window": window, "epsilon": setting.epsilon,
        "neighbours": "", "feedback": None,
    }  # fmt: skip


KNOWN = [name for name in BASE_METHODS if name != "random"]


def check(images: Collection, truth: GroundTruth, rows: NDArray[np.int64]) -> None:
    result = count_block(rows, images, truth, KNOWN, OF)
    assert result.schema == COUNTS
    expected = [
        literal_row(images, truth, method, setting, int(q))
        for method in KNOWN
        for setting in OF
        for q in rows
    ]
    assert result.to_pylist() == expected


@quick
@given(st.integers(2, 14), st.integers(0, 10**6))
@pytest.mark.slow
def test_count_block_equals_a_literal_transcription(n: int, seed: int) -> None:
    images = collection(n, seed)
    check(images, with_masks(images, seed), np.arange(n))


def test_count_block_reranks_and_has_gains_of_the_first_100() -> None:
    images = collection(160, 7)
    check(images, with_masks(images, 7), np.array([3, 50]))


# --- independence of the block ---------------------------------------------------------------


@quick
@given(matrices, st.integers(0, 2**32))
@pytest.mark.slow
def test_dots_are_independent_of_the_block(features: NDArray[np.float32], seed: int) -> None:
    rng = np.random.default_rng(seed)
    many = np.vstack([features, features[::-1], rng.random((300, features.shape[1]), np.float32)])
    for prepare in (similarity.standardise, similarity.normalise):
        whole = similarity.dot_products(many, many, prepare)
        order = rng.permutation(len(many))
        again = similarity.dot_products(many[order], many[order], prepare)
        assert np.array_equal(whole[np.ix_(order, order)], again, equal_nan=True)
        alone = similarity.dot_products(many[:1], many, prepare)
        assert np.array_equal(whole[:1], alone, equal_nan=True)
        assert np.array_equal(whole, whole.T, equal_nan=True)
        squares = similarity.squared_norms(many, prepare)
        assert np.array_equal(np.diag(whole), squares, equal_nan=True)


@quick
@given(matrices)
def test_dots_are_exact_to_13_places(features: NDArray[np.float32]) -> None:
    result = similarity.dot_products(features, features, similarity.standardise)
    for i, x in enumerate(features):
        for j, y in enumerate(features):
            expected = math.nan if np.ptp(x) == 0 or np.ptp(y) == 0 else literal_pearson(x, y)
            assert result[i, j] == pytest.approx(expected, abs=1e-13, nan_ok=True)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_count_queries_is_independent_of_the_block_size() -> None:
    images = collection(60, 1)
    truth, rows, methods = with_masks(images, 1), np.arange(0, 60, 2), BASE_METHODS
    grids = [(methods, OF), (("cosine", "euclidean"), (PLAIN, Setting(neighbours="pearson")))]
    one, many = (count_queries(rows, images, truth, grids, size) for size in (100, 7))
    assert one.num_rows == len(rows) * (len(methods) * len(OF) + 4)
    assert one.equals(many)


# --- an index, a query cache and SQL -----------------------------------------------------------


@pytest.fixture(scope="module")
def run(index: str, scenes: Path) -> RetrievalRun:
    """A run of all methods and settings on the index of the scenes."""
    truth = Masks(str(scenes / "masks"), str(scenes / "classes.json"))
    return run_retrieval(RetrievalOptions(index, truth))


@pytest.fixture(scope="module")
def con(index: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to that index."""
    with segrec_batch.connect(index) as connection:
        yield connection


def sql(con: duckdb.DuckDBPyConnection, query: str, arguments: str) -> list[str]:
    rows = con.execute(
        f"SELECT image_id FROM recommend(?, k := 9, distinct_content := false{arguments}) "
        "WHERE pearson IS NOT NULL ORDER BY rank",
        [query],
    )
    return [name for (name,) in rows.fetchall()]


@pytest.mark.parametrize(
    ("method", "setting", "arguments"),
    [
        ("pearson", PLAIN, ""),
        ("pearson", Setting(keeps_query=True), ", exclude_self := false"),
        ("pearson", Setting(epsilon=0.3), ", epsilon := 0.3"),
        ("pearson", Setting(window=(0.1, 0.5)),
         ", class := '{}', scope := 'image', min_coverage := 0.1, max_coverage := 0.5"),
        ("region", PLAIN, ", class := '{}'"),
        ("region", Setting(window=(0.1, 0.5)),
         ", class := '{}', min_coverage := 0.1, max_coverage := 0.5"),
        ("pearson+iou", PLAIN, ", rerank := 'mask_iou'"),
        ("pearson+iou", Setting(epsilon=0.5), ", rerank := 'mask_iou', epsilon := 0.5"),
        ("pearson+expand3", PLAIN, ", expand := 3"),
        ("pearson+expand3", Setting(keeps_query=True), ", expand := 3, exclude_self := false"),
        ("pearson+expand3", Setting(epsilon=0.3), ", expand := 3, epsilon := 0.3"),
        ("pearson+expand3", Setting(window=(0.1, 0.5)),
         ", expand := 3, class := '{}', scope := 'image', min_coverage := 0.1, "
         "max_coverage := 0.5"),
    ],
    ids=lambda value: value.name if isinstance(value, Setting) else None,
)  # fmt: skip
def test_first_hits_equal_sql_recommend(
    run: RetrievalRun, con: duckdb.DuckDBPyConnection, method: str, setting: Setting, arguments: str
) -> None:
    queries = run.images.ids.to_pylist()
    result = first_hits(run, method, queries, 9, setting)
    some = 0
    for i, query in enumerate(queries):
        k = run.images.dominant[i]
        if "{}" in arguments and not k:
            assert result[query] == []
            continue
        expected = sql(con, query, arguments.format(("", *run.images.classes)[k]))
        assert [hit.image_id for hit in result[query]] == expected
        some += len(expected)
    assert some > len(queries)


def test_first_hits_break_ties_by_image_id_like_sql(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    features = rng.random((40, 512), np.float32)
    features[10:30] = features[rng.integers(0, 3, 20)]
    features[30] = 0.5
    index = str(tmp_path / "index")
    write_index(index, features)
    images = load(open_index(index), PARTS)
    rows = np.arange(40)
    truth = GroundTruth(np.zeros(40, np.int64), "", "")
    counts, options = (
        count_block(rows, images, truth, ["pearson"], OF),
        RetrievalOptions(index, Folders()),
    )
    run = RetrievalRun(options, Provenance("retrieval", "", "", index=index), counts, images, truth)
    with segrec_batch.connect(index) as con:
        for query, hits in first_hits(run, "pearson", images.ids.to_pylist(), 9).items():
            assert [hit.image_id for hit in hits] == sql(con, query, "")


def test_run_counts_are_consistent(run: RetrievalRun) -> None:
    rows = run.counts.to_pylist()
    n = len(run.images)
    queries = set(run.images.ids.take(pa.array(run.truth.queries(1000, 0))).to_pylist())
    names = [setting.name for setting in filter_settings(run.options.windows, run.options.epsilons)]
    rounds = [setting.name for setting in feedback_settings(3)]
    expected = [
        (method, name)
        for method in BASE_METHODS
        for name in (*names, *(rounds if parse_method(method).metric else ()))
    ]
    assert list(dict.fromkeys((r["method"], r["setting"]) for r in rows)) == expected
    assert len(rows) == len(queries) * len(expected)
    for row in rows:
        kept = row["setting"] == "query kept"
        assert row["query"] in queries
        assert row["candidates"] == n - 1 + kept
        assert len(row["ranks"]) <= row["relevant"] <= row["candidates"]
        assert len(row["gains"]) == row["retrieved"] <= row["candidates"] == len(row["ideal"])
        assert row["ranks"] == sorted(set(row["ranks"]))
        assert all(1 <= rank <= row["retrieved"] for rank in row["ranks"])
        assert row["ideal"] == sorted(row["ideal"], reverse=True)
        assert sum(row["gains"]) <= sum(row["ideal"]) + 1e-5
        if row["method"] in ("pearson", "histogram", "random") and not row["setting"]:
            assert len(row["ranks"]) == row["relevant"]
        if row["method"] == "pearson" and kept:
            assert row["ranks"][0] == 1


def test_run_of_a_query_cache_has_equal_counts(
    index: str, run: RetrievalRun, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache.duckdb")
    refresh_cache(index, cache)
    again = run_retrieval(replace(run.options, index=cache, methods=("region", "sign-bits")))
    of_run = pa.compute.is_in(run.counts["method"], pa.array(["region", "sign-bits"]))
    assert again.counts.equals(run.counts.filter(of_run))
    for name in ("index", "version", "model_id"):
        assert getattr(again.provenance, name) == getattr(run.provenance, name)
    assert again.notice is not None


def test_random_scores_are_reproducible_by_query(run: RetrievalRun) -> None:
    rows = np.arange(len(run.images))
    drawn = score("random", rows, run.images).values
    assert np.array_equal(score("random", rows[3:5], run.images).values, drawn[3:5])
    assert len(np.unique(drawn)) == drawn.size


def test_latencies_cover_the_methods_of_sql(run: RetrievalRun) -> None:
    timed = [(latency.method, latency.setting) for latency in run.latencies]
    assert timed == [
        ("pearson", ""), ("pearson", "ε 0.9"), ("pearson", "σ 0.29–0.96"), ("region", ""),
        ("region", "σ 0.29–0.96"), ("sign-bits", ""), ("pearson+iou", ""),
        ("cosine", ""), ("euclidean", ""),
    ]  # fmt: skip
    for latency in run.latencies:
        assert 0 < latency.median_ms <= latency.p95_ms
        assert latency.ratio > 1
        assert 0 < latency.queries <= 20


def test_count_block_without_foreground_has_no_regions() -> None:
    images = collection(8, 2)
    bare = np.zeros_like(images.coverages)
    bare[:, 0] = 1
    images = replace(images, coverages=bare, regions={}, masks=np.zeros((8, 0), np.int64))
    truth = GroundTruth(np.arange(8) % 2, "", "")
    rows = count_block(np.arange(8), images, truth, BASE_METHODS, OF).to_pylist()
    for row in rows:
        nobody = row["method"] == "region" or row["setting"].startswith("σ")
        assert (row["retrieved"] == 0) == nobody or row["method"] in ("pearson", "cosine")
        assert row["gains"] is None
        assert row["ideal"] is None
        assert row["class"] == ""


# --- arguments ---------------------------------------------------------------------------------


def test_resolve_methods_keeps_the_order_of_names() -> None:
    assert resolve_methods(["all"], []) == BASE_METHODS
    assert resolve_methods(["cosine", "pearson", "cosine"], []) == ("cosine", "pearson")
    with pytest.raises(InputError, match=r"no method 'person'; there are pearson, cosine"):
        resolve_methods(["pearson", "person"], [])
    with pytest.raises(InputError, match=r"no method ''; there are pearson"):
        resolve_methods([], [])


def test_expanded_methods_are_those_of_a_similarity() -> None:
    names = ("pearson+expand10", "root-pca-cosine+expand5")
    assert resolve_methods(names, ["root-pca"]) == names
    methods = [parse_method(name) for name in names]
    assert [(m.descriptor, m.metric, m.expand) for m in methods] == [
        ("", "pearson", 10), ("root-pca", "cosine", 5)
    ]  # fmt: skip
    for name in ("euclidean+expand3", "root-pca+expand3", "pearson+iou+expand3",
                 "pearson+expand3+expand3", "pearson+expand0", "hog-cosine+expand3"):  # fmt: skip
        with pytest.raises(InputError, match=r"no method "):
            resolve_methods([name], ["root-pca"])


@pytest.mark.parametrize(
    ("windows", "epsilons"), [([(0.5, 0.2)], []), ([(-1, 1)], []), ([(0, 1.5)], []), ([], [2.5])]
)
def test_filter_settings_refuse_values_out_of_range(
    windows: list[tuple[float, float]], epsilons: list[float]
) -> None:
    with pytest.raises(InputError, match=r"give 0 <=|is 0 to 2"):
        filter_settings(windows, epsilons)


def test_first_hits_refuse_an_unknown_image_id(run: RetrievalRun) -> None:
    with pytest.raises(InputError, match="nobody is not an image_id"):
        first_hits(run, "pearson", ["nobody"], 3)
