"""Tests of the SQL of the documents, on an index and on its query cache."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

import segrec_batch
from segrec_batch.cli import main as cli
from segrec_batch.index import snapshot as store
from segrec_batch.model.bundle import Model
from segrec_batch.search.cache import refresh_cache
from segrec_batch.search.database import Database, open_index
from segrec_batch.search.sql.connection import Access
from segrec_batch.search.sql.guard import run_untrusted
from tests.support.builders import tiny_model
from tests.support.streets import CHANGED, GONE, NIGHTS, write_streets

ROOT = Path(__file__).parents[2]
COOKBOOK = ROOT / "docs" / "sql.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
Rows = list[dict[str, Any]]


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


QUERIES = {
    f"{document.name}: {sql.splitlines()[0]}": sql
    for document in DOCUMENTS
    for sql in blocks(document, "sql")
}
RECIPES = {sql.splitlines()[0].removeprefix("-- "): sql for sql in blocks(COOKBOOK, "sql")}


@dataclass(frozen=True)
class Source:
    """An index and its query cache, both sealed, and its rows as deltalake reads them."""

    index: Database
    cache: Database
    tables: dict[str, Rows]
    values: dict[str, str]

    def answers(self, sql: str) -> tuple[Rows, Rows]:
        """Return the rows of the index and of the cache."""
        named = {name: value for name, value in self.values.items() if f"${name}" in sql}
        result = [run_untrusted(database, sql, named) for database in (self.index, self.cache)]
        return result[0].to_pylist(), result[1].to_pylist()

    def answer(self, title: str) -> Rows:
        """Return the rows of both, which must be the same."""
        (sql,) = (sql for name, sql in RECIPES.items() if name.startswith(title))
        of_index, of_cache = self.answers(sql)
        assert_same(of_index, of_cache)
        return of_index


@contextmanager
def open_source(index: str, since: str, folder: Path) -> Iterator[Source]:
    refresh_cache(index, str(folder / "cache.duckdb"))
    tables = {
        table: pa.table(DeltaTable(f"{index}/{table}", version).to_pyarrow_table()).to_pylist()
        for table, version in store.open_snapshot(index).versions.items()
    }
    cars = {r["image_id"] for r in tables["regions"] if r["class"] == "car"}
    trees = [r for r in tables["regions"] if r["class"] == "tree" and 0.2 <= r["coverage"] <= 0.6]
    query = min(trees, key=lambda r: (r["image_id"] not in cars, r["image_id"]))
    values = {"image_id": query["image_id"], "uri": query["uri"], "since": since, "name": "car"}
    of_index = open_index(index, access=Access.SEALED)
    of_cache = open_index(str(folder / "cache.duckdb"), access=Access.SEALED)
    with of_index.connection, of_cache.connection:
        yield Source(of_index, of_cache, tables, values)


@pytest.fixture(scope="module")
def scenes_source(index: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with open_source(index, "2026-01-01", tmp_path_factory.mktemp("scenes_cache")) as opened:
        yield opened


@pytest.fixture(scope="module")
def streets(model: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("streets") / "index")
    write_streets(folder, model.with_descriptor("texture", {}, {}))
    return folder


@pytest.fixture(scope="module")
def streets_source(streets: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with open_source(
        streets, "2026-03-03 00:00", tmp_path_factory.mktemp("streets_cache")
    ) as opened:
        yield opened


@pytest.fixture(params=["streets_source", pytest.param("scenes_source", marks=pytest.mark.slow)])
def source(request: pytest.FixtureRequest) -> Source:
    result: Source = request.getfixturevalue(request.param)
    return result


def assert_same(rows: Rows, others: Rows) -> None:
    """Equal, but for what float arithmetic in another order does."""
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for row, other in zip(rows, others, strict=True):
        for value, expected in zip(row.values(), other.values(), strict=True):
            exact = not isinstance(value, float)
            assert value == (expected if exact else pytest.approx(expected, rel=1e-9, abs=1e-9))


def in_an_order(sql: str, rows: Rows) -> Rows:
    """As they are, if the SQL says in which order; else sorted."""
    ordered = re.search(r"ORDER BY[^()]*$|^FROM recommend", sql, re.MULTILINE)
    return rows if ordered else sorted(rows, key=str)


@pytest.mark.parametrize("name", QUERIES)
def test_query_on_index_equals_query_on_cache(source: Source, name: str) -> None:
    sql = QUERIES[name]
    if "'INDEX/" in sql:
        sql = sql.replace("INDEX", source.index.index.replace("'", "''"))
        with segrec_batch.connect(source.index.index, locked=False) as connection:
            assert len(connection.sql(sql).fetchall()) > 20
        return
    of_index, of_cache = source.answers(sql)
    assert_same(in_an_order(sql, of_index), in_an_order(sql, of_cache))


@pytest.mark.parametrize("title", RECIPES)
def test_recipe_returns_rows(streets_source: Source, title: str) -> None:
    assert streets_source.answer(title)


def test_recipe_has_title_and_order() -> None:
    assert len(RECIPES) > 15
    for sql in RECIPES.values():
        assert sql.startswith("-- ")
        assert re.search(r"ORDER BY|FROM recommend", sql)


def test_recipe_car_without_person(source: Source) -> None:
    expected = [
        row
        for row in source.tables["images"]
        if row["coverage_car"] >= np.float32(0.3) and row["coverage_person"] == 0
    ]
    expected.sort(key=lambda row: (-row["coverage_car"], row["uri"]))
    actual = source.answer("Images with at least 30 % car")
    assert [(r["uri"], r["coverage_car"]) for r in actual] == [
        (r["uri"], r["coverage_car"]) for r in expected
    ]


def test_recipe_class_balance(source: Source) -> None:
    images, regions = source.tables["images"], source.tables["regions"]
    result = {r["class"]: r for r in source.answer("Class balance")}
    assert result.keys() == {r["class"] for r in regions}
    for name, row in result.items():
        shares = np.array([image[f"coverage_{name}"] for image in images])
        assert row["images"] == (shares > 0).sum()
        assert row["share_of_images"] == pytest.approx((shares > 0).mean())
        assert row["share_of_area"] == pytest.approx(shares.mean())


def test_recipe_coverage_histogram(source: Source) -> None:
    tens = np.arange(1, 10, dtype=np.float32)
    expected = Counter(
        (
            row["uri"].rpartition("/")[0],
            10 * int((np.float32(row["coverage_tree"]) * 10 >= tens).sum()),
        )
        for row in source.tables["images"]
    )
    actual = source.answer("Coverage histogram by folder")
    assert [(r["folder"], r["percent"], r["images"]) for r in actual] == [
        (*key, count) for key, count in sorted(expected.items())
    ]
    assert len({r["folder"] for r in actual}) == 4


def test_recipe_stale_images(streets_source: Source) -> None:
    tables = streets_source.tables
    read = {r["uri"] for r in tables["failures"] if r["stage"] == "read"}
    indexed = {r["uri"] for r in tables["images"]}
    assert [r["uri"] for r in streets_source.answer("Stale images")] == sorted(read & indexed)
    assert len(read & indexed) == 1


def test_recipe_failures_by_reason(source: Source) -> None:
    since = np.datetime64(source.values["since"])
    failed = [
        row
        for row in source.tables["failures"]
        if np.datetime64(row["failed_at"].replace(tzinfo=None)) >= since
    ]
    expected = Counter((row["stage"], row["reason"]) for row in failed)
    actual = source.answer("Failures since")
    assert {(r["stage"], r["reason"]): r["images"] for r in actual} == expected
    assert [r["images"] for r in actual] == sorted(expected.values(), reverse=True)
    assert {r["example"] for r in actual} <= {row["uri"] for row in failed}


def test_recipe_changes_since_later_runs(source: Source) -> None:
    day = source.values["since"][:10].replace("-", "")
    result = {r["uri"] for r in source.answer("Changes since")}
    assert result == {r["uri"] for r in source.tables["images"] if r["run_id"][:8] >= day}


def test_recipe_changes_since_last_night(streets_source: Source) -> None:
    result = streets_source.answer("Changes since")
    copied = [r for r in result if r["indexed_at"] < NIGHTS[1]]
    assert len(result) == 30 + len(CHANGED) + len(copied)
    assert {r["uri"].split("/")[-2] for r in copied} == {"moved"}


def test_recipe_exact_copies(source: Source) -> None:
    groups: dict[str, list[str]] = {}
    for row in source.tables["images"]:
        groups.setdefault(row["content_hash"], []).append(row["uri"])
    result = source.answer("Exact copies")
    assert {r["content_hash"]: r["uris"] for r in result} == {
        key: sorted(uris) for key, uris in groups.items() if len(uris) > 1
    }


def correlation(a: Any, b: Any) -> float:
    """-2 where it is undefined."""
    a, b = np.array(a, np.float64), np.array(b, np.float64)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else -2.0


def test_recipe_near_copies_equals_all_pairs(source: Source) -> None:
    names = [f"coverage_{name}" for name in ("background", "car", "person", "tree")]
    rows = source.tables["images"]
    shares = np.array([[row[name] for name in names] for row in rows])
    expected = {
        frozenset((a["uri"], b["uri"]))
        for i, a in enumerate(rows)
        for j, b in enumerate(rows[:i])
        if a["content_hash"] != b["content_hash"]
        and np.abs(shares[i] - shares[j]).sum() <= 0.1
        and correlation(a["feature"], b["feature"]) > 0.99
    }
    actual = source.answer("Near copies")
    assert {frozenset((r["uri"], r["like_uri"])) for r in actual} == expected
    assert len(actual) == len(expected)


@pytest.mark.parametrize(
    ("title", "low", "high"),
    [("Most similar trees to", 0, 1), ("Most similar trees, where", 0.2, 0.6)],
)
def test_recipe_most_similar_trees(source: Source, title: str, low: float, high: float) -> None:
    trees = [r for r in source.tables["regions"] if r["class"] == "tree"]
    (query_tree,) = (r for r in trees if r["image_id"] == source.values["image_id"])
    best: dict[str, tuple[float, str]] = {}
    for row in sorted(trees, key=lambda r: str(r["image_id"])):
        if low <= row["coverage"] <= high and row["content_hash"] != query_tree["content_hash"]:
            score = correlation(row["feature"], query_tree["feature"])
            best.setdefault(row["content_hash"], (-score, row["image_id"]))
    expected = [image_id for _, image_id in sorted(best.values())[:10]]
    assert [r["image_id"] for r in source.answer(title)] == expected


def test_recipe_outliers(source: Source) -> None:
    rows = {row["uri"]: row for row in source.tables["images"]}
    for result in source.answer("Outliers")[:3]:
        one = rows[result["uri"]]
        nearest = max(
            correlation(one["feature"], other["feature"])
            for other in rows.values()
            if other["content_hash"] != one["content_hash"]
        )
        assert result["nearest"] == pytest.approx(nearest, abs=1e-9)


def commands() -> Iterator[list[str]]:
    for block in blocks(COOKBOOK, ""):
        yield from (shlex.split(line) for line in block.splitlines())


def test_documented_commands_run(
    streets: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("monday", "friday"):
        refresh_cache(streets, f"{name}.duckdb")
    for program, *arguments in commands():
        given = [streets if a == "s3://bucket/index" else a for a in arguments]
        if program == "segrec":
            assert cli.main(given) == 0
        else:
            option, sql = given[0], given[-1]
            path = ":memory:" if option == "-c" else given[1]
            with duckdb.connect(path, read_only=option == "-readonly") as shell:
                shell.execute(sql).fetchall()
    counts = re.findall(r"^ +(\d+)$", capsys.readouterr().out, re.MULTILINE)
    assert counts == ["129", "74", "100", "129"]
    features = duckdb.sql("SELECT DISTINCT len(feature) FROM 'cars.parquet'").fetchall()
    assert features == [(512,)]


def test_documented_python_runs(streets: str, streets_source: Source) -> None:
    names: dict[str, Any] = {}
    for block in blocks(COOKBOOK, "python"):
        code = block.replace("s3://bucket/index", streets)
        exec(code.replace("9f3c…", streets_source.values["image_id"]), names)  # noqa: S102
    kinds = Counter(what for _, what in names["changes"])
    assert kinds == {"new": 30 + 4, "changed": len(CHANGED), "gone": len(GONE)}


def test_sql_page_names_every_macro_and_argument(streets_source: Source) -> None:
    text = COOKBOOK.read_text()
    result = streets_source.index.connection.sql(
        "SELECT function_name, parameters FROM duckdb_functions() WHERE NOT internal"
    ).fetchall()
    assert {"pearson", "mask_iou", "semantic_distance", "recommend"} < {name for name, _ in result}
    for name, parameters in result:
        assert re.search(rf"`{name}\b", text), name
        if name.startswith("recommend") and name != "recommend_like":
            for parameter in parameters:
                assert re.search(rf"[`(, ]{parameter}( := |[`,])", text), parameter


@pytest.fixture(params=["index", "cache"])
def other_classes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """An empty index, or its query cache, of the classes class_1 and class_2."""
    place = store.create(str(tmp_path / "index"), tiny_model()).index
    if request.param == "cache":
        refresh_cache(place, str(tmp_path / "cache.duckdb"))
        place = str(tmp_path / "cache.duckdb")
    with segrec_batch.connect(place) as connection:
        yield connection


UNEXPLAINED = """
    SELECT table_name, column_name FROM duckdb_columns()
    WHERE table_name IN ('images', 'regions', 'failures') AND schema_name = 'main'
        AND coalesce(comment, '') = ''"""


def test_view_columns_have_comments(source: Source) -> None:
    for database in (source.index, source.cache):
        assert database.connection.sql(UNEXPLAINED).fetchall() == []


def test_columns_of_other_classes_have_comments(other_classes: Any) -> None:
    assert other_classes.sql(UNEXPLAINED).fetchall() == []
    result = other_classes.sql(
        "SELECT comment FROM duckdb_columns() WHERE table_name = 'images' AND schema_name = 'main' "
        "AND column_name = 'coverage_class_2' AND database_name = current_database()"
    ).fetchall()
    assert result == [("Share of the image, 0 to 1, that class_2 fills (σ)",)]
