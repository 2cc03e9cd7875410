"""Tests of the arithmetic of batch search, by its properties."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from segrec_batch.search.batch.choice import drop_near_duplicates, select_by_marginal_relevance
from segrec_batch.search.batch.scores import (
    Pairs,
    Vectors,
    error_bounds,
    join,
    pearson,
    product_bound,
    ranks,
    take_best,
    unit_vectors,
)
from segrec_batch.search.batch.search import (
    Block,
    BlockSizes,
    Candidates,
    Exclusions,
    Search,
    block_sizes,
)
from segrec_batch.search.similarity import PAIR_PLACES, round_half_away
from segrec_batch.search.sql.views import schema_file
from tests.support.builders import quick

values = st.floats(-100, 100, width=32, allow_subnormal=False)
matrices = arrays(np.float32, st.tuples(st.integers(2, 12), st.integers(2, 40)), elements=values)


def vectors(features: NDArray[np.float32]) -> Vectors:
    """Rows of (N, C) that are not constant, summed one after the other as DuckDB does it."""
    x = features[np.ptp(features, axis=1) > 0].astype(np.float64)
    totals, squares = x.cumsum(axis=1)[:, -1], (x * x).cumsum(axis=1)[:, -1]
    with np.errstate(invalid="ignore"):
        norms = np.sqrt(np.maximum(x.shape[1] * squares - totals * totals, 0))
    good = norms > 0
    return Vectors(x[good].astype(np.float32), totals[good], norms[good])


def all_pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    i, j = np.divmod(np.arange(n * n), n)
    return i, j


@pytest.fixture(scope="module")
def macros() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE regions AS SELECT NULL AS image_id, NULL AS uri, 0 AS class, "
                       "0 AS coverage, []::FLOAT[] AS feature")  # fmt: skip
    connection.execute("CREATE VIEW images AS FROM regions")
    connection.execute(schema_file("functions.sql"))
    return connection


@pytest.mark.parametrize("shift", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("width", [3, 64, 512])
def test_batch_pearson_equals_macro_bit_for_bit(
    macros: duckdb.DuckDBPyConnection, width: int, shift: float
) -> None:
    rng = np.random.default_rng(width)
    features = (rng.gamma(0.5, size=(40, width)) + shift).astype(np.float32)
    macros.register("t", pa.table({"i": range(40), "f": list(features)}))
    sql = """
        SELECT pearson(a.f, b.f) AS r, list_sum(a.f::DOUBLE[]) AS total,
               sqrt(greatest(len(a.f) * list_inner_product(a.f::DOUBLE[], a.f::DOUBLE[])
                             - list_sum(a.f::DOUBLE[]) ** 2, 0)) AS norm
        FROM t AS a, t AS b ORDER BY a.i, b.i"""
    result = macros.sql(sql).to_arrow_table()
    known = Vectors(
        features, *(result[n].to_numpy().reshape(40, 40)[:, 0] for n in ("total", "norm"))
    )
    i, j = all_pairs(40)
    assert np.array_equal(pearson(known, i, known, j), result["r"].to_numpy())


@quick
@given(arrays(np.float64, 30, elements=st.floats(-1, 1)))
def test_rounded_equals_sql(macros: duckdb.DuckDBPyConnection, x: NDArray[np.float64]) -> None:
    halves = (np.trunc(x * 1e10) + 0.5) / 1e14
    for some in (x, halves):
        macros.register("x", pa.table({"x": some}))
        result = macros.sql("SELECT round(x, 14) AS r FROM x").to_arrow_table()["r"].to_numpy()
        assert np.array_equal(round_half_away(some, PAIR_PLACES), result)


@quick
@given(matrices, st.sampled_from([0, 1, 100, 1e4, 1e6]), st.sampled_from([1e-33, 1e-3, 1, 1e31]))
def test_error_bounds_hold_for_float32_scores(
    features: NDArray[np.float32], shift: float, scale: float
) -> None:
    known = vectors((features + np.float32(shift)) * np.float32(scale))
    units = unit_vectors(known, slice(None), "cpu")
    i, j = all_pairs(len(known))
    error = np.abs((units @ units.T).numpy().ravel() - pearson(known, i, known, j))
    bounds = error_bounds(known)
    assert np.all(error <= product_bound(features.shape[1]) + bounds[i] + bounds[j])
    assert torch.isfinite(units).all()


def test_error_bounds_of_ordinary_vectors_are_small() -> None:
    known = vectors(np.random.default_rng(0).random((100, 512), np.float32))
    assert product_bound(512) < 4e-5
    assert error_bounds(known).max() < 1e-6


pair_lists = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 30), st.sampled_from([0.1, 0.5, 0.5, 0.9])),
    max_size=40, unique_by=lambda p: p[:2],
)  # fmt: skip


def pairs_of(rows: list[tuple[int, int, float]]) -> Pairs:
    query, place = (np.array([r[i] for r in rows], np.int64) for i in (0, 1))
    return Pairs(query, place + 100, np.array([r[2] for r in rows], float), place, place // 3)


@quick
@given(pair_lists, st.integers(0, 40), st.integers(1, 6), st.booleans())
def test_best_of_two_halves_is_best_of_all(
    rows: list[tuple[int, int, float]], cut: int, count: int, distinct: bool
) -> None:
    halves = [take_best(pairs_of(half), count, distinct) for half in (rows[:cut], rows[cut:])]
    actual = take_best(join(halves), count, distinct)
    expected = []
    for query in range(4):
        mine = sorted((-r, place) for q, place, r in rows if q == query)
        seen: set[int] = set()
        for r, place in mine:
            if len(seen) < count and (key := place // 3 if distinct else place) not in seen:
                seen.add(key)
                expected.append((query, place, -r))
    assert list(zip(actual.query, actual.place, actual.pearson, strict=True)) == expected
    assert np.all(ranks(actual) < count)


def special_features(n: int, width: int, seed: int) -> NDArray[np.float32]:
    """Clusters, many equal vectors, some nearly equal, one nearly constant."""
    rng = np.random.default_rng(seed)
    centres = rng.gamma(0.5, size=(5, width))
    features = centres[rng.integers(0, 5, n)] + 0.3 * rng.random((n, width))
    features[: n // 4] = features[0]
    features[n // 4 : n // 3] = features[1] + 1e-7 * rng.random((n // 3 - n // 4, width))
    features[n // 3] = 1 + 1e-7 * rng.random(width)
    return features.astype(np.float32)


def block_of(known: Vectors, which: NDArray[np.int64], contents: NDArray[np.int64]) -> Block:
    table = pa.table({"image_id": [f"{i:06}" for i in which]})
    columns = known.features[which], known.totals[which], known.norms[which]
    return Block(*columns, which, contents[which], table)


@pytest.mark.parametrize("seed", range(12))
def test_search_equals_brute_force(seed: int, device: str) -> None:
    rng = np.random.default_rng(seed)
    known = vectors(special_features(int(rng.integers(50, 400)), 24, seed))
    n = len(known)
    contents = np.where(rng.random(n) < 0.5, rng.integers(0, n // 3, n), np.arange(n) + n)
    blocks = [
        block_of(known, part, contents)
        for part in np.array_split(rng.permutation(n), rng.integers(1, 5))
    ]
    candidates = Candidates([lambda b=b: b for b in blocks], [len(b) for b in blocks])  # type: ignore[misc]
    queries = np.sort(rng.choice(n, 20, replace=False))
    queries[-1] = n // 3
    queries = np.unique(queries)
    rule = Exclusions(bool(seed % 2), float(rng.choice([np.inf, 0.97])))
    at_once = BlockSizes(int(rng.integers(1, 30)), int(rng.integers(1, 200)), 100)
    search = Search(block_of(known, queries, contents), candidates, rule, at_once, device)
    count = int(rng.choice([1, 5, 60, 500]))
    actual = search.find_best(np.arange(len(queries)), count)
    for i, query in enumerate(queries):
        scores = pearson(known, np.full(n, query), known, np.arange(n))
        seen = {contents[query]}
        expected: list[tuple[int, float]] = []
        for c in np.lexsort((np.arange(n), -scores)):
            copy = rule.distinct and contents[c] in seen
            if c != query and scores[c] < rule.below and not copy and len(expected) < count:
                seen.add(contents[c])
                expected.append((int(c), scores[c]))
        mine = actual.take(actual.query == i)
        assert list(zip(mine.place, mine.pearson, strict=True)) == expected
    image_ids = candidates.table(actual.row)["image_id"].to_pylist()
    assert image_ids == [f"{place:06}" for place in actual.place]


def test_search_sweeps_unproved_queries_only(device: str) -> None:
    features = np.random.default_rng(0).random((500, 64), np.float32)
    features[100:200] = features[100]
    known = vectors(features)
    everyone = block_of(known, np.arange(500), np.arange(500))
    candidates = Candidates([lambda: everyone], [500])
    for places, swept in ((np.array([3, 4]), 0), (np.array([4, 150]), 1)):
        queries = block_of(known, places, np.arange(500))
        search = Search(queries, candidates, Exclusions(), BlockSizes(10, 100, 100), device)
        result = search.find_best(np.arange(2), 5)
        assert search.swept == swept
    assert result.take(result.query == 1).place.tolist() == [100, 101, 102, 103, 104]


@quick
@given(st.integers(2**20, 2**34), st.integers(1, 10_000), st.integers(1, 4096), st.integers(1, 500))
def test_block_sizes_fit_memory(memory: int, queries: int, width: int, expected: int) -> None:
    actual = block_sizes(memory, queries, width, expected)
    assert 1 <= actual.queries <= queries
    if actual.block > 1:
        assert 4 * actual.block * (actual.queries + 2 * width) <= memory / 2
    if actual.pool > 1:
        assert 4 * actual.pool * width <= memory / 8


@quick
@given(matrices, st.floats(0.1, 1), st.integers(1, 12))
def test_drop_near_duplicates_has_none(
    features: NDArray[np.float32], limit: float, count: int
) -> None:
    pool = vectors(features)
    kept = drop_near_duplicates(pool, limit, count)
    i, j = all_pairs(len(pool))
    alike = (pearson(pool, i, pool, j) >= limit).reshape(len(pool), len(pool))
    expected: list[int] = []
    for c in range(len(pool)):
        if len(expected) < count and not alike[c, expected].any():
            expected.append(c)
    assert kept.tolist() == expected


@quick
@given(matrices, st.floats(0.05, 1), st.integers(1, 12))
def test_select_by_marginal_relevance_equals_definition(
    features: NDArray[np.float32], weight: float, count: int
) -> None:
    pool = vectors(features)
    n = len(pool)
    i, j = all_pairs(n)
    similarity = pearson(pool, i, pool, j).reshape(n, n)
    relevance = np.sort(np.random.default_rng(n).random(n))[::-1]
    chosen: list[int] = []
    while len(chosen) < min(count, n):
        gains = {
            c: weight * relevance[c]
            - ((1 - weight) * max(similarity[c, s] for s in chosen) if chosen else 0)
            for c in range(n)
            if c not in chosen
        }
        chosen.append(max(gains, key=lambda c: (gains[c], -c)))
    result = select_by_marginal_relevance(pool, relevance, weight, count)
    assert result.tolist() == chosen
    if weight == 1:
        assert result.tolist() == list(range(min(count, n)))
