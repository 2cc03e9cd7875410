"""The SQL surface against NumPy in float64."""

import math

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import segrec_batch
from segrec_batch.query.database import sql_file

MACROS = sql_file("macros.sql")
values = st.floats(-100, 100, width=32, allow_subnormal=False)


@pytest.fixture(scope="module")
def macros() -> duckdb.DuckDBPyConnection:
    """The macros over images and regions of 60 random vectors, some of them special."""
    rng = np.random.default_rng(0)
    connection = duckdb.connect()
    connection.execute(
        """CREATE TABLE regions (image_id VARCHAR, uri VARCHAR, class VARCHAR, coverage FLOAT,
                                 feature FLOAT[]);
           CREATE TABLE images (image_id VARCHAR, uri VARCHAR, feature FLOAT[])"""
    )
    features = rng.random((60, 16)).astype(np.float32)
    features[50] = features[40]  # a tie
    features[41] = 0.1  # constant
    for i, feature in enumerate(features):
        name, share = f"i{i:02d}", float(rng.random())
        row = [name, f"/{name}.jpg", ("car", "tree")[i % 3 == 0], share, feature.tolist()]
        connection.execute("INSERT INTO regions VALUES (?, ?, ?, ?, ?)", row)
        connection.execute("INSERT INTO images VALUES (?, ?, ?)", [row[0], row[1], row[4]])
    connection.execute(MACROS)
    return connection


def reference(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson (Abdullah 2026, eq. 6), literally."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    da, db = a - a.mean(), b - b.mean()
    return float((da * db).sum() / (math.sqrt((da**2).sum()) * math.sqrt((db**2).sum())))


def pearson(connection: duckdb.DuckDBPyConnection, a: object, b: object) -> float | None:
    ((found,),) = connection.execute("SELECT pearson(?::FLOAT[], ?::FLOAT[])", [a, b]).fetchall()
    return found


@settings(deadline=None, max_examples=100)
@given(arrays(np.float32, (2, 12), elements=values))
def test_pearson_is_the_published_formula(
    macros: duckdb.DuckDBPyConnection, vectors: np.ndarray
) -> None:
    found = pearson(macros, *vectors.tolist())
    expected = reference(*vectors)
    spread = min(np.ptp(v) / max(np.abs(v).max(), 1e-30) for v in vectors)
    if expected is None:
        assert found is None
    elif spread > 1e-3:  # below that, sums of squares in float64 lose the digits that count
        assert found == pytest.approx(expected, abs=1e-7)


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, 12, elements=values, unique=True), st.floats(0.5, 4), st.floats(-9, 9))
def test_pearson_ignores_scale_and_shift(
    macros: duckdb.DuckDBPyConnection, vector: np.ndarray, scale: float, shift: float
) -> None:
    found = pearson(macros, vector.tolist(), (vector * scale + shift).tolist())
    if np.ptp(vector) > 1:
        assert found == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.1] * 3, [1, 2, 3]),
        ([0.0] * 3, [1, 2, 3]),
        ([math.nan, 1, 2], [1, 2, 3]),
        (None, [1, 2, 3]),
        ([1, 2, 3], [5, 5, 5]),
        ([], []),
    ],
)
def test_pearson_is_null_where_it_is_undefined(
    macros: duckdb.DuckDBPyConnection, a: object, b: object
) -> None:
    assert pearson(macros, a, b) is None


def test_pearson_of_two_lengths_is_an_error(macros: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error, match="dimensions"):
        pearson(macros, [1, 2, 3], [1, 2])


def brute_force(
    macros: duckdb.DuckDBPyConnection,
    query: np.ndarray,
    exclude: str | None,
    cls: str | None,
    window: tuple[float, float],
    k: int,
) -> list[tuple[str, float | None]]:
    if cls is None:
        rows = macros.sql("SELECT image_id, 0.5, feature FROM images").fetchall()
    else:
        sql = "SELECT image_id, coverage, feature FROM regions WHERE class = ?"
        rows = macros.execute(sql, [cls]).fetchall()
    scored = [
        (name, reference(query, np.array(feature, np.float32)))
        for name, share, feature in rows
        if name != exclude and window[0] <= np.float32(share) <= window[1]
    ]
    scored.sort(key=lambda s: (s[1] is None, -round(s[1] or 0, 12), s[0]))
    return scored[:k]


@settings(deadline=None, max_examples=60)
@given(
    query=st.integers(0, 59),
    cls=st.sampled_from(["car", "tree", None]),
    k=st.integers(1, 70),
    low=st.floats(0, 0.6),
    width=st.floats(0, 1),
    by_vector=st.booleans(),
)
def test_recommend_is_the_brute_force_ranking(
    macros: duckdb.DuckDBPyConnection,
    query: int,
    cls: str | None,
    k: int,
    low: float,
    width: float,
    by_vector: bool,
) -> None:
    window = (low, min(1.0, low + width)) if cls else (0.0, 1.0)
    name = f"i{query:02d}"
    table = "images" if cls is None else f"regions WHERE class = '{cls}'"
    found = macros.sql(f"SELECT image_id, feature FROM {table}").fetchall()
    feature = dict(found).get(name)
    subject, kind = (feature, "FLOAT[]") if by_vector else (name, "VARCHAR")
    answer = macros.execute(
        f"SELECT image_id, pearson FROM recommend(?::{kind}, k := ?, class := ?, "
        "min_coverage := ?, max_coverage := ?) ORDER BY rank",
        [subject, k, cls, *window],
    ).fetchall()
    if feature is None:
        assert answer == [], "the query has no region of the class"
        return
    vector = np.array(feature, np.float32)
    expected = brute_force(macros, vector, None if by_vector else name, cls, window, k)
    assert [row[0] for row in answer] == [row[0] for row in expected]
    for (_, found_r), (_, expected_r) in zip(answer, expected, strict=True):
        assert found_r == (None if expected_r is None else pytest.approx(expected_r, abs=1e-9))


def test_exclude_self_can_be_switched_off(macros: duckdb.DuckDBPyConnection) -> None:
    sql = "FROM recommend('i05', k := 1, exclude_self := false)"
    ((rank, name, _, coverage, r),) = macros.sql(sql).fetchall()
    assert (rank, name, coverage, r) == (1, "i05", None, 1.0)


def test_inv_norm_gives_pearson_by_one_dot_product(index: str) -> None:
    connection = segrec_batch.connect(index)
    rows = connection.sql(
        """WITH q AS (
               SELECT feature AS f, inv_norm AS n, list_avg(feature) AS m FROM images LIMIT 1)
           SELECT pearson(i.feature, q.f),
                  list_inner_product(i.feature::DOUBLE[],
                                     [(x - q.m) * q.n FOR x IN q.f]::DOUBLE[]) * i.inv_norm
           FROM images AS i, q"""
    ).fetchall()
    assert len(rows) == 24
    for exact, fast in rows:
        assert fast == pytest.approx(exact, abs=1e-5)


def test_recommend_works_on_a_real_index(index: str) -> None:
    connection = segrec_batch.connect(index)
    ((image_id, coverage),) = connection.sql(
        "SELECT arg_max(image_id, coverage), max(coverage) FROM regions WHERE class = 'tree'"
    ).fetchall()
    rows = connection.execute(
        "FROM recommend(?, k := 3, class := 'tree', min_coverage := 0.05)", [image_id]
    ).fetchall()
    assert coverage > 0.05
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row[1] != image_id and row[3] >= 0.05 for row in rows)
    assert [row[4] for row in rows] == sorted((row[4] for row in rows), reverse=True)
