"""Tests of the table of metrics: the SQL macros and the batch search give the same scores."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from segrec_batch.search.batch.scores import Vectors, pearson
from segrec_batch.search.filters import Method
from segrec_batch.search.similarity import METRICS, Metric
from segrec_batch.search.sql.views import schema_file

ROWS = np.arange(4)


@pytest.fixture(scope="module")
def macros() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(schema_file("functions.sql"))
    return connection


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    values = np.random.default_rng(7).gamma(0.5, 20, (40, 96)).astype(np.float32)
    values[5], values[6], values[7] = 0, 3, values[8]
    values[9, 4] = np.nan
    return values


def sql_scores(
    connection: duckdb.DuckDBPyConnection, metric: str, vectors: NDArray[np.float32]
) -> NDArray[np.float64]:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    connection.register("v", pa.table({"i": np.arange(len(vectors)), "x": column}))
    call = "pearson(a.x, b.x)" if metric == "pearson" else "similarity($metric, a.x, b.x)"
    sql = f"SELECT {call} AS s FROM v AS a, v AS b WHERE a.i < {len(ROWS)} ORDER BY a.i, b.i"
    values = {} if metric == "pearson" else {"metric": metric}
    scores = connection.sql(sql, params=values or None).fetchnumpy()["s"]
    return np.ma.filled(scores, np.nan).astype(float).reshape(len(ROWS), -1)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda m: m.name)
def test_metric_agrees_with_sql_macro(
    macros: duckdb.DuckDBPyConnection, metric: Metric, vectors: NDArray[np.float32]
) -> None:
    scores = metric.scores(ROWS, vectors)
    expected = sql_scores(macros, metric.name, vectors)
    assert np.array_equal(np.isnan(scores), np.isnan(expected))
    length = 1 if metric.is_angle else np.nanmax(np.linalg.norm(vectors, axis=1))
    # a distance is the root of a difference: the error of its square is relative to the length
    error = 2e-6 if metric.is_distance else 4e-12
    scale = length if metric.is_distance else length**2
    np.testing.assert_allclose(scores, expected, rtol=0, atol=error * scale)
    usable = ~np.isnan(expected).any(axis=0)
    scores, expected = scores[:, usable], expected[:, usable]
    nearest = [np.argsort(-s, axis=1, kind="stable") for s in (scores, expected)]
    assert np.array_equal(*nearest)


@pytest.mark.parametrize("metric", METRICS)
def test_metric_is_a_method_of_features_in_sql(
    macros: duckdb.DuckDBPyConnection, metric: str
) -> None:
    sql = "SELECT method_descriptor($m), method_metric($m)"
    assert macros.execute(sql, {"m": metric}).fetchall() == [(None, metric)]
    assert Method.of(metric) == Method(None, metric)


def test_pearson_of_pairs_agrees_with_metric(vectors: NDArray[np.float32]) -> None:
    rows = vectors[10:]
    x = rows.astype(np.float64)
    totals = x.sum(axis=1)
    norms = np.sqrt(x.shape[1] * (x * x).sum(axis=1) - totals**2)
    pool = Vectors(rows, totals, norms)
    pairs = np.repeat(np.arange(4), len(rows)), np.tile(np.arange(len(rows)), 4)
    scores = pearson(pool, pairs[0], pool, pairs[1]).reshape(4, -1)
    expected = METRICS["pearson"].scores(np.arange(4), rows)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-12)
    assert np.array_equal(np.argsort(-scores), np.argsort(-expected))
