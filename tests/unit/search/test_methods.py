"""Tests of methods: `recommend(…, method := …)` against NumPy, on files and in a query cache."""

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import segrec_batch
from segrec_batch.common.errors import InputError
from segrec_batch.descriptors.inputs import DescriptorVector
from segrec_batch.index import snapshot as store
from segrec_batch.index.parts import write_part
from segrec_batch.model.spec import COMMON_GRID
from segrec_batch.pipeline.rows import make_descriptor_rows, make_image_rows
from segrec_batch.search.cache import refresh_cache
from segrec_batch.search.database import open_index
from segrec_batch.search.feedback.refine import MARKS, WAYS, Weights, refine, to_linear_method
from segrec_batch.search.feedback.rounds import mark, start
from segrec_batch.search.filters import Filters, Method
from segrec_batch.search.recommend import Recommender
from segrec_batch.search.similarity import METRICS
from tests.support.builders import tiny_model
from tests.support.streets import image, segmented_image, source_columns

COUNT = 60
Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Return the rows of the index by image_id; every 20th is a copy, some have no vector."""
    rng = np.random.default_rng(1)
    actual = {}
    for i in range(COUNT):
        row = image(i)
        texture = rng.integers(0, 5, 6).astype(np.float32)  # so that there are ties
        localised = rng.random(5).astype(np.float32)
        row["vectors"] = {"texture": texture if i % 9 else None, "localised": localised}
        row["category"] = "abc"[i % 3]
        actual[row["image_id"]] = row
    return actual


@pytest.fixture(scope="module")
def index(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = tiny_model(components=(0, 1, 2, 3))
    for name in ("texture", "localised"):
        model = model.with_descriptor(name, {}, {})
    ids = {d.name: d.id for d in model.spec.descriptors}
    uri = str(tmp_path_factory.mktemp("methods") / "index")
    empty = store.create(uri, model)
    run = {"run_id": "r", "model_id": model.model_id}
    sources = pa.Table.from_pylist([{**source_columns(row), **run} for row in rows.values()])
    images = [segmented_image(row) for row in rows.values()]
    vectors = [_vectors(row, ids) for row in rows.values()]
    contents = [
        *make_image_rows(sources, images, model.spec),
        *make_descriptor_rows(sources, vectors),
    ]
    store.commit(empty, write_part(uri, contents))
    return uri


def _vectors(row: dict[str, Any], ids: dict[str, str]) -> list[DescriptorVector]:
    return [
        DescriptorVector(
            ids[name],
            row["category"] if name == "localised" else None,
            vector,
            "none" if vector is None else None,
        )
        for name, vector in row["vectors"].items()
    ]


@pytest.fixture(scope="module", params=["files", "cache"])
def con(
    index: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> duckdb.DuckDBPyConnection:
    if request.param == "files":
        return segrec_batch.connect(index)
    cache = str(tmp_path_factory.mktemp("cache") / "cache.duckdb")
    refresh_cache(index, cache)
    return segrec_batch.connect(cache)


def similarity(metric: str, a: np.ndarray, b: np.ndarray) -> float | None:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == "euclidean":
        return -float(np.sqrt(((a - b) ** 2).sum()))
    dot = float((a * b).sum())
    if metric == "dot":
        return dot
    norms = float(np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))
    return dot / norms if norms else None


def compared(row: dict[str, Any], method: Method) -> np.ndarray | None:
    return row["feature"] if method.descriptor is None else row["vectors"][method.descriptor]


def foreground_iou(a: dict[str, Any], b: dict[str, Any]) -> float | None:
    masks = [np.frombuffer(r["common"], np.uint8).reshape(COMMON_GRID, -1) > 0 for r in (a, b)]
    either = (masks[0] | masks[1]).sum()
    return (masks[0] & masks[1]).sum() / either if either else None


def expected(rows: Rows, query: str, name: str, k: int, depth: int = 100) -> list[str]:
    method, query = Method.of(name), rows[query]
    vector = compared(query, method)
    if vector is None:
        return []
    scored = []
    for image_id, row in rows.items():
        if row["content_hash"] == query["content_hash"]:
            continue
        if name == "localised" and row["category"] != query["category"]:
            continue
        other = compared(row, method)
        if other is None:  # no candidate
            continue
        score = similarity(method.metric, vector, other)
        scored.append((score is None, -(score or 0), image_id))
    first = _first_of_each_content([image_id for *_, image_id in sorted(scored)], rows)
    if name != "localised":
        return first[:k]
    overlaps = {i: foreground_iou(query, rows[i]) for i in first[:depth]}
    again = sorted(first[:depth], key=lambda i: (overlaps[i] is None, -(overlaps[i] or 0)))
    return [*again, *first[depth:]][:k]


def _first_of_each_content(ids: list[str], rows: Rows) -> list[str]:
    seen: dict[str, str] = {}
    for image_id in ids:
        seen.setdefault(rows[image_id]["content_hash"], image_id)
    return list(seen.values())


@pytest.mark.parametrize(
    "method",
    ["cosine", "euclidean", "dot", "texture", "texture-cosine", "texture-dot", "localised",
     "localised-euclidean"],
)  # fmt: skip
def test_recommend_order_equals_definition(
    method: str, con: duckdb.DuckDBPyConnection, rows: Rows
) -> None:
    sql = (
        "SELECT image_id, score, pearson FROM recommend($id, k := 100, method := $m) ORDER BY rank"
    )
    for query in list(rows)[:12]:
        actual = con.execute(sql, {"id": query, "m": method}).fetchall()
        reference = expected(rows, query, method, 100)
        assert [image_id for image_id, *_ in actual] == reference
        assert all(pearson is None for *_, pearson in actual)
        for image_id, score, _ in actual:
            a, b = (compared(rows[i], Method.of(method)) for i in (query, image_id))
            truth = similarity(Method.of(method).metric, a, b) if b is not None else None
            assert score == (truth if truth is None else pytest.approx(truth, abs=1e-12))


def test_recommend_depth_of_second_ranking(con: duckdb.DuckDBPyConnection, rows: Rows) -> None:
    sql = "SELECT image_id FROM recommend($id, k := 9, depth := 4, method := 'localised')"
    for query in list(rows)[:6]:
        actual = [i for (i,) in con.execute(sql, {"id": query}).fetchall()]
        assert actual == expected(rows, query, "localised", 9, depth=4)


def test_recommend_filters_hold_for_all_methods(con: duckdb.DuckDBPyConnection, rows: Rows) -> None:
    query = list(rows)[1]
    sql = """
        SELECT r.image_id, r.coverage, semantic_distance FROM recommend($id, k := 100,
            method := 'texture', class := 'class_1', min_coverage := 0.1, epsilon := 0.9) AS r
    """
    actual = con.execute(sql, {"id": query}).fetchall()
    shares = {i: np.array(r["counts"]) / sum(r["counts"]) for i, r in rows.items()}
    distance = {i: np.abs(shares[i] - shares[query]).sum() for i in rows}
    reference = [
        i for i in expected(rows, query, "texture", 100)
        if shares[i][1] >= 0.1 and distance[i] <= 0.9
    ]  # fmt: skip
    assert {i for i, *_ in actual} == set(reference)
    assert len(reference) > 3
    for image_id, coverage, semantic in actual:
        assert coverage == pytest.approx(shares[image_id][1], abs=1e-6)
        assert semantic == pytest.approx(distance[image_id], abs=1e-6)


def test_expanded_cosine_of_descriptor_equals_numpy(
    con: duckdb.DuckDBPyConnection, rows: Rows
) -> None:
    query = list(rows)[1]
    vectors = {i: r["vectors"]["texture"] for i, r in rows.items()}
    units = {
        i: v.astype(np.float64) / np.sqrt((v.astype(np.float64) ** 2).sum())
        for i, v in vectors.items() if v is not None and v.any()
    }  # fmt: skip
    first = expected(rows, query, "texture-cosine", 7)
    weights = [(units[i] @ units[query]) ** 3 for i in first]
    moved = (units[query] + sum(w * units[i] for w, i in zip(weights, first, strict=True))) / (
        1 + sum(weights)
    )
    sql = "SELECT image_id, score FROM recommend($id, expand := 7, k := 20, method := $m)"
    actual = con.execute(sql, {"id": query, "m": "texture-cosine"}).fetchall()
    scores = {i: float(units[i] @ moved / np.sqrt(moved @ moved)) for i in units}
    assert [score for _, score in actual] == pytest.approx([scores[i] for i, _ in actual], abs=1e-6)
    others = sorted(
        (s for i, s in scores.items() if rows[i]["content_hash"] != rows[query]["content_hash"]),
        reverse=True,
    )
    assert actual[0][1] == pytest.approx(others[0], abs=1e-6)
    assert actual[5][1] < actual[0][1]


def test_recommender_expands_as_sql_does(index: str, rows: Rows) -> None:
    recommender = Recommender(open_index(index))
    query = list(rows)[1]
    image = recommender.find_image("image_id", query)
    filters = Filters(k=5, method="texture-cosine", expand=4)
    assert str(filters).endswith("cosine of texture with the first 4 added to the query")
    results = recommender.rank(image, filters)
    sql = "SELECT image_id, score FROM recommend($id, expand := 4, k := 5, method := $m)"
    with segrec_batch.connect(index) as con:
        rows_of_sql = con.execute(sql, {"id": query, "m": "texture-cosine"}).fetchall()
    assert [(r.image_id, r.score) for r in results] == rows_of_sql
    for bad, message in (
        (Filters(expand=0), "expand is 0; add at least 1 result"),
        (Filters(expand=3, method="texture"), "Euclidean distance of texture is none: take"),
    ):
        with pytest.raises(InputError, match=message):
            recommender.rank(image, bad)
    with pytest.raises(InputError, match="marks move the query"):
        start(recommender, image, filters)


def test_recommend_takes_vector(con: duckdb.DuckDBPyConnection, rows: Rows) -> None:
    query = list(rows)[2]
    named = "FROM recommend($id, k := 5, exclude_self := false, method := 'localised')"
    given = """
        FROM recommend($vector::FLOAT[], k := 5, method := 'localised', category := $category,
            masks := MAP {'background': (SELECT any_value(mask_bits) FROM regions
                                         WHERE image_id = $id AND class = 'background')})
    """
    row = rows[query]
    values = {"vector": row["vectors"]["localised"].tolist(), "category": row["category"]}
    assert con.execute(given, {**values, "id": query}).fetchall() == (
        con.execute(named, {"id": query}).fetchall()
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("hog", "no vectors of hog in this index; a method is a metric, NAME or NAME-METRIC"),
        ("texture-pearson", "a metric is cosine, dot or euclidean"),
        ("texture-manhattan", "no vectors of texture-manhattan .* cosine, dot or euclidean"),
        ("texture-cosine-x", "no vectors of texture-cosine-x in this index"),
    ],
)
def test_recommend_unknown_method_is_error(
    method: str, message: str, con: duckdb.DuckDBPyConnection, rows: Rows
) -> None:
    with pytest.raises(duckdb.InvalidInputException, match=message):
        con.execute("FROM recommend($id, method := $m)", {"id": list(rows)[1], "m": method})


def test_recommend_vector_needs_method_and_category(
    con: duckdb.DuckDBPyConnection,
) -> None:
    for method, message in (
        ("hog", "no vectors of hog"),
        ("localised", "localised needs category"),
    ):
        with pytest.raises(duckdb.InvalidInputException, match=message):
            con.execute("FROM recommend([1, 2]::FLOAT[], method := $m)", {"m": method})


def test_recommender_says_why_vector_is_missing(index: str, rows: Rows) -> None:
    recommender = Recommender(open_index(index))
    (name,) = (i for i, row in list(rows.items())[:1] if row["vectors"]["texture"] is None)
    query = recommender.find_image("image_id", name)
    with pytest.raises(InputError, match="it has no vector of texture: none"):
        recommender.rank(query, Filters(method="texture"))


def test_recommender_names_methods_of_index(index: str, rows: Rows) -> None:
    recommender = Recommender(open_index(index))
    query = recommender.find_image("image_id", list(rows)[1])
    with pytest.raises(InputError, match="which has localised, texture"):
        recommender.rank(query, Filters(method="hog"))
    with pytest.raises(InputError, match="no metric 'pearson' of vectors: say cosine"):
        recommender.rank(query, Filters(method="texture-pearson"))
    (first, *_) = recommender.rank(query, Filters(method="texture", k=3))
    assert first.pearson is None
    assert first.score is not None
    assert str(Filters(method="localised")) == (
        "whole images, ranked by Euclidean distance of localised, the first 100 by foreground IoU"
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", ["cosine", "euclidean", "dot", "texture", "texture-cosine", "localised-euclidean"]
)
def test_feedback_uses_method_of_session(index: str, rows: Rows, name: str, way: str) -> None:
    method, ids = Method.of(name), list(rows)
    database = open_index(index)
    with database.connection:
        recommender = Recommender(database)
        query = recommender.find_image("image_id", ids[1])
        session = start(recommender, query, Filters(k=8, method=name, distinct_content=False))
        session = mark(recommender, session, dict(enumerate(MARKS, start=1)), way)
    marks = session.marks()
    vectors = {i: v for i, row in rows.items() if (v := compared(row, method)) is not None}
    raw = np.array([vectors[i] for i in (ids[1], *marks)])
    ready = METRICS[method.metric].prepare(raw)
    q = refine(way, ready[0], ready[1:], np.array(list(marks.values())), Weights())
    metric = Method.of(to_linear_method(name)).metric if way == "svm" else method.metric
    left = vectors.keys() - {ids[1], *marks}
    scores = sorted((similarity(metric, q, vectors[i]) or 0 for i in left), reverse=True)
    actual = [row.score for row in session.round(1) if row.score is not None]
    assert actual == pytest.approx(scores[: len(actual)], rel=1e-5)
    assert len(actual) == 8
    if way == "rocchio":
        good, fair, bad = ([i for i, m in marks.items() if m == value] for value in MARKS)
        values = {"id": ids[1], "good": good, "fair": fair, "bad": bad, "method": name}
        sql = (
            "SELECT score FROM recommend_again($id, relevant := $good, somewhat := $fair, "
            "not_relevant := $bad, k := 8, distinct_content := false, method := $method)"
        )
        with segrec_batch.connect(index) as con:
            again = [score for (score,) in con.execute(sql, values).fetchall()]
        assert again == pytest.approx(actual, rel=1e-5)


def test_feedback_keeps_category_and_foreground(index: str, rows: Rows) -> None:
    ids = list(rows)
    database = open_index(index)
    with database.connection:
        recommender = Recommender(database)
        query = recommender.find_image("image_id", ids[1])
        session = start(recommender, query, Filters(k=5, method="localised"))
        session = mark(recommender, session, {2: 1.0})
        with pytest.raises(InputError, match="take rocchio, or start with localised-dot"):
            mark(recommender, session, {1: 1.0, 2: 0.0}, "svm")
    (marks,) = session.marks()
    assert {rows[r.image_id]["category"] for r in session.round(1)} == {"b"}
    overlaps = [foreground_iou(rows[ids[1]], rows[r.image_id]) or -1 for r in session.round(1)]
    assert overlaps == sorted(overlaps, reverse=True)
    sql = "SELECT image_id FROM recommend_again($id, [$marked], k := 5, method := 'localised')"
    with segrec_batch.connect(index) as con:
        again = con.execute(sql, {"id": ids[1], "marked": marks}).fetchall()
    assert [name for (name,) in again] == [r.image_id for r in session.round(1)]
