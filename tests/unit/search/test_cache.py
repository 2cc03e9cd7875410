"""Tests of the query cache: rows and results of the index, in one file."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import segrec_batch
from segrec_batch.cli import main as cli
from segrec_batch.common.errors import IndexStateError, InputError, StorageError
from segrec_batch.index.parts import compute_z_order
from segrec_batch.model.bundle import Model
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, index_images
from segrec_batch.search.cache import refresh_cache
from segrec_batch.search.database import open_cache
from segrec_batch.search.sql.connection import Access

TABLES = ("images", "regions", "failures")
KEYS = {"images": "image_id", "regions": "image_id, class", "failures": "image_id"}


@pytest.fixture(scope="module")
def cache(index: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("cache") / "it's a cache.duckdb")
    refresh_cache(index, path)
    return path


@pytest.fixture
def own_index(images: Path, model_dir: str, ray_cluster: None, tmp_path: Path) -> str:
    """An index of `images`, to change."""
    uri = str(tmp_path / "index")
    index_images(Request(str(images)), model_dir, uri, Execution("cpu"))
    return uri


def rows(con: duckdb.DuckDBPyConnection, table: str) -> pa.Table:
    result = con.sql(f"SELECT * FROM {table} ORDER BY {KEYS[table]}").to_arrow_table()
    if "feature" in result.column_names:  # an array there, a list here
        at = result.column_names.index("feature")
        result = result.set_column(at, "feature", result["feature"].cast(pa.list_(pa.float32())))
    return result


def check_equal(cache: str, index: str) -> None:
    with segrec_batch.connect(cache) as ours, segrec_batch.connect(index) as theirs:
        for table in TABLES:
            assert rows(ours, table).to_pylist() == rows(theirs, table).to_pylist()


def test_cache_has_rows_of_index(cache: str, index: str) -> None:
    check_equal(cache, index)


@pytest.mark.parametrize(
    "arguments",
    [
        "k := 30",
        "k := 5, class := 'tree', min_coverage := 0.05",
        "class := 'car', rerank := 'mask_iou', epsilon := 0.9, penalise := true",
        "class := 'car', scope := 'image', distinct_content := false, exclude_self := false",
    ],
)
def test_cache_recommends_as_index(cache: str, index: str, arguments: str) -> None:
    with segrec_batch.connect(cache) as ours, segrec_batch.connect(index) as theirs:
        for (name,) in theirs.sql("SELECT image_id FROM regions WHERE class = 'car'").fetchall():
            sql = f"FROM recommend('{name}', {arguments})"
            assert ours.sql(sql).fetchall() == theirs.sql(sql).fetchall()


def test_sign_bits_pool_of_all_is_exact(cache: str, index: str) -> None:
    with segrec_batch.connect(cache) as ours, segrec_batch.connect(index) as theirs:
        for (name,) in theirs.sql("SELECT image_id FROM images").fetchall():
            exact = f"SELECT rank, image_id, pearson FROM recommend('{name}')"
            by_sign_bits = f"SELECT rank, image_id, pearson FROM recommend_by_sign_bits('{name}')"
            assert ours.sql(by_sign_bits).fetchall() == theirs.sql(exact).fetchall()
            assert theirs.sql(by_sign_bits).fetchall() == theirs.sql(exact).fetchall()


def test_sign_bits_pool_has_fewest_different_bits(index: str) -> None:
    con = segrec_batch.connect(index)
    result = dict(con.sql("SELECT image_id, sign_bits FROM images").fetchall())
    query = sorted(result)[3]

    def bits(name: str) -> int:
        pairs = zip(result[name], result[query], strict=True)
        return sum(((a ^ b) & (2**64 - 1)).bit_count() for a, b in pairs)

    nearest = sorted(result, key=lambda name: (bits(name), name))[:6]
    sql = f"SELECT image_id FROM recommend_by_sign_bits('{query}', pool := 6)"
    assert {n for (n,) in con.sql(sql).fetchall()} == set(nearest) - {query}


def test_cache_opens_in_plain_duckdb(cache: str, index: str) -> None:
    ((query,),) = segrec_batch.connect(index).sql("SELECT min(image_id) FROM images").fetchall()
    code = f"""
import duckdb, sys
con = duckdb.connect({cache!r}, read_only=True)
print(*[row[0] for row in con.sql("SELECT image_id FROM recommend('{query}', k := 3)").fetchall()])
print(con.sql("SELECT comment FROM duckdb_views() WHERE view_name = 'images'").fetchall()[0][0])
assert not any(name.startswith("segrec") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, comment = done.stdout.splitlines()
    sql = f"SELECT image_id FROM recommend('{query}', k := 3)"
    assert names.split() == [n for (n,) in segrec_batch.connect(index).sql(sql).fetchall()]
    assert comment == "A row per indexed image"


def test_cache_rows_are_sorted_by_coverage(cache: str) -> None:
    con = segrec_batch.connect(cache)
    regions = "SELECT class, coverage FROM cache.segrec.regions ORDER BY rowid"
    result = con.sql(regions).fetchall()
    assert result == sorted(result)
    images = con.sql(
        "SELECT image_id, coverages FROM cache.segrec.images ORDER BY rowid"
    ).to_arrow_table()
    by_id = images.sort_by("image_id")
    order = compute_z_order(np.array(by_id["coverages"].to_pylist(), np.float32))
    assert images["image_id"].to_pylist() == by_id["image_id"].take(pa.array(order)).to_pylist()


def test_refresh_cache_follows_index(
    own_index: str, images: Path, model_dir: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "c.duckdb")
    first = refresh_cache(own_index, path)
    assert (first.added, first.removed) == (first.rows, 0)
    assert refresh_cache(own_index, path).added == 0
    one, two, *_ = sorted(images.iterdir())
    one.unlink()
    shutil.copy(two, images / "copy.png")
    (images / "broken.jpg").write_bytes(b"no image")
    index_images(Request(str(images)), model_dir, own_index, Execution("cpu"))
    old = segrec_batch.connect(path)
    done = refresh_cache(own_index, path)
    assert done.version > first.version
    check_equal(path, own_index)
    assert old.sql("SELECT uri FROM images WHERE uri LIKE '%copy.png'").fetchall() == []
    assert not list(tmp_path.glob("*.tmp*"))


def test_refresh_cache_refuses_wal(index: str, tmp_path: Path) -> None:
    """A write-ahead log can make a catalogue look like ours that is not, once it is left behind."""
    path = str(tmp_path / "c.duckdb")
    refresh_cache(index, path)
    Path(f"{path}.wal").write_bytes(b"")
    with pytest.raises(InputError, match="lies beside the cache"):
        refresh_cache(index, path)


@pytest.mark.slow
def test_refresh_cache_appends_small_change(
    images: Path, model_dir: str, ray_cluster: None, tmp_path: Path
) -> None:
    index, path = str(tmp_path / "index"), str(tmp_path / "c.duckdb")
    sources = sorted(images.iterdir())
    for i in range(30):
        shutil.copy(sources[i % 6], images / f"more{i}{sources[i % 6].suffix}")
    index_images(Request(str(images)), model_dir, index, Execution("cpu"))
    first = refresh_cache(index, path)
    shutil.copy(sources[0], images / f"late{sources[0].suffix}")
    index_images(Request(str(images)), model_dir, index, Execution("cpu"))
    done = refresh_cache(index, path)
    assert (done.added, done.removed) == (done.rows - first.rows, 0)
    assert 0 < done.added < first.rows / 4
    check_equal(path, index)


def test_refresh_cache_replaces_other_macros(index: str, tmp_path: Path) -> None:
    path = str(tmp_path / "c.duckdb")
    rows = refresh_cache(index, path).rows
    assert refresh_cache(index, path).added == 0
    with duckdb.connect(path) as con:
        con.execute("CREATE OR REPLACE MACRO pearson(a, b) AS 1")
        con.execute("UPDATE segrec.snapshot SET recipe = 'of an older version'")
    assert refresh_cache(index, path).added == rows
    sql = "SELECT pearson([1, 2, 3], [3, 2, 1])"
    assert segrec_batch.connect(path).sql(sql).fetchall() == [(-1.0,)]


@pytest.mark.slow
def test_refresh_cache_refuses_other_files(cache: str, own_index: str, tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.duckdb"
    text.write_text("mine")
    with duckdb.connect(str(other)) as con:
        con.sql("CREATE TABLE precious AS SELECT 42 AS answer")
    for path in (text, other, Path(cache)):
        before = path.read_bytes()
        with pytest.raises(InputError, match=r"not a query cache|is the query cache of"):
            refresh_cache(own_index, str(path))
        assert path.read_bytes() == before
    with pytest.raises(InputError, match="folder"):
        refresh_cache(own_index, str(tmp_path))
    with pytest.raises(StorageError, match="cannot be made"):
        refresh_cache(own_index, str(tmp_path / "nowhere" / "c.duckdb"))


@pytest.mark.slow
def test_refresh_cache_refuses_other_model(
    own_index: str, images: Path, model: Model, tmp_path: Path
) -> None:
    path = str(tmp_path / "c.duckdb")
    refresh_cache(own_index, path)
    models = "SELECT DISTINCT model_id FROM images"
    before = segrec_batch.connect(path).sql(models).fetchall()
    bundle = Model(
        model.spec, {**model.head, "svm.bias": model.head["svm.bias"] + 0.25}, model.backbone
    )
    bundle.save(str(tmp_path / "other"))
    request = Request(str(images))
    index_images(request, str(tmp_path / "other"), own_index, Execution("cpu"), rebuild=True)
    with pytest.raises(IndexStateError, match="--rebuild"):
        refresh_cache(own_index, path)
    assert (
        segrec_batch.connect(path).sql("SELECT DISTINCT model_id FROM images").fetchall() == before
    )
    refresh_cache(own_index, path, rebuild=True)
    check_equal(path, own_index)


def test_killed_refresh_leaves_old_cache(index: str, tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    refresh_cache(index, str(path))
    before = path.read_bytes()
    code = (
        "import os, signal\n"
        "from segrec_batch.search import cache\n"
        "cache._write_identity = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"cache.refresh_cache({index!r}, {str(path)!r}, rebuild=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    (left,) = (p for p in tmp_path.iterdir() if p != path)
    assert list(left.glob("draft*"))
    os.utime(left, (1e9, 1e9))
    mine = [tmp_path / f"{path.name}.1.tmp", tmp_path / f"{path.name}.notes.tmp.wal"]
    mine += [tmp_path / f".{path.name}.notes.segrec", tmp_path / f".{path.name}.abcd1234.segrec"]
    for other in mine:
        other.write_text("mine")
    refresh_cache(index, str(path), rebuild=True)
    assert sorted(tmp_path.iterdir()) == sorted([path, *mine])
    check_equal(str(path), index)


def test_refresh_cache_never_replaces_other_file(index: str, tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.duckdb"
    text.write_text("mine")
    with duckdb.connect(str(other)) as con:
        con.sql("CREATE TABLE precious AS SELECT 42 AS answer")
    for path in (text, other):
        before = path.read_bytes()
        for rebuild in (False, True):
            with pytest.raises(InputError, match="not a query cache"):
                refresh_cache(index, str(path), rebuild=rebuild)
        assert path.read_bytes() == before


def test_refresh_cache_of_empty_index(model: Model, tmp_path: Path) -> None:
    from segrec_batch.index.snapshot import create

    index, path = str(tmp_path / "index"), str(tmp_path / "c.duckdb")
    create(index, model)
    assert refresh_cache(index, path).rows == 0
    check_equal(path, index)


def test_cache_command_makes_cache(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "c.duckdb")
    assert cli.main(["duckdb", "--index", index, path]) == 0
    assert "added" in capsys.readouterr().out
    ((uri,),) = segrec_batch.connect(index).sql("SELECT min(uri) FROM images").fetchall()
    answers = []
    for where in (index, path):
        assert cli.main(["query", "--index", where, "--uri", uri, "--format", "csv"]) == 0
        assert cli.main(["sql", "--index", where, "SELECT count(*) FROM regions"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert cli.main(["sql", "--index", path, "--version", "99", "SELECT 1"]) == 1
    assert "query cache of version" in capsys.readouterr().err


SECRET = "sesame-0815"  # noqa: S105 - what no answer may hold


@pytest.fixture
def hostile(cache: str, tmp_path: Path) -> Iterator[tuple[Path, duckdb.DuckDBPyConnection]]:
    """A copy of the cache, open to its maker, beside a file with a secret."""
    (tmp_path / "secret.txt").write_text(SECRET)
    path = tmp_path / "hostile.duckdb"
    shutil.copyfile(cache, path)
    with duckdb.connect(str(path)) as connection:
        yield path, connection


OBJECTS = """
CREATE OR REPLACE VIEW images AS SELECT content AS image_id FROM read_text('{0}/secret.txt');
CREATE OR REPLACE VIEW regions AS SELECT * FROM query('FROM read_text(''{0}/secret.txt'')');
CREATE OR REPLACE MACRO pearson(a, b) AS (SELECT content FROM read_text('{0}/secret.txt'));
CREATE OR REPLACE MACRO len(a) AS (SELECT content FROM read_text('{0}/secret.txt'));
CREATE OR REPLACE MACRO feature_error(a, b) AS (SELECT size FROM read_text('{0}/secret.txt'));
CREATE OR REPLACE MACRO recommend(query, k := 10) AS TABLE FROM read_text('{0}/secret.txt');
CREATE TYPE main.FLOATS AS VARCHAR;
CREATE SCHEMA system2;
"""


def test_open_cache_ignores_its_views_and_macros(
    hostile: tuple[Path, duckdb.DuckDBPyConnection], index: str, tmp_path: Path
) -> None:
    path, maker = hostile
    maker.execute(OBJECTS.format(tmp_path))
    maker.close()
    check_equal(str(path), index)
    sql = (
        "SELECT pearson([1, 2, 3], [3, 2, 1]), len([1]), "
        "(SELECT count(*) FROM recommend((SELECT min(image_id) FROM images)))"
    )
    for access in (Access.LOCKED, Access.SEALED):
        with open_cache(str(path), access).connection as connection:
            assert connection.sql(sql).fetchall() == [(-1.0, 1, 10)]
            for name in ("cache.main.images", "cache.main.regions", "cache.main.recommend('x')"):
                with pytest.raises(duckdb.Error, match="disabled"):
                    connection.sql(f"FROM {name}").fetchall()
    before = refresh_cache(index, str(tmp_path / "own.duckdb")).rows
    assert refresh_cache(index, str(path)).added == before  # made anew, not added to
    with duckdb.connect(str(path)) as connection:
        assert SECRET not in str(connection.sql("FROM images").fetchall())
        assert connection.sql("SELECT pearson([1, 2, 3], [3, 2, 1])").fetchall() == [(-1.0,)]


TABLES_OF_OTHERS = {
    "a view": "ALTER TABLE segrec.{1} RENAME TO kept; "
    "CREATE VIEW segrec.{1} AS FROM read_text('{0}/secret.txt')",
    "another type": "ALTER TABLE segrec.{1} ALTER uri TYPE BLOB",
    "a generated column": "CREATE TABLE segrec.kept AS FROM segrec.{1}; DROP TABLE segrec.{1}; "
    "CREATE TABLE segrec.{1} (uri VARCHAR AS (concat('a', 'b')), image_id VARCHAR)",
    "a default": "ALTER TABLE segrec.{1} ALTER uri SET DEFAULT 'x'",
    "another column": "ALTER TABLE segrec.{1} ADD COLUMN more VARCHAR",
    "a column less": "ALTER TABLE segrec.{1} DROP COLUMN part",
    "no table": "DROP TABLE segrec.{1}",
}


@pytest.mark.parametrize("table", ["images", "failures"])
@pytest.mark.parametrize("change", TABLES_OF_OTHERS)
def test_open_cache_refuses_other_tables(
    hostile: tuple[Path, duckdb.DuckDBPyConnection], tmp_path: Path, change: str, table: str
) -> None:
    path, maker = hostile
    maker.execute(TABLES_OF_OTHERS[change].format(tmp_path, table))
    maker.close()
    check_refused(path, "made by another version of segrec_batch, or is damaged")


IDENTITIES = {
    "its view": "DROP TABLE segrec.snapshot; CREATE VIEW segrec.snapshot AS SELECT 'x' AS index, "
    "0 AS version, 'x' AS model_id, content AS spec, '' AS recipe FROM read_text('{0}/secret.txt')",
    "no row": "DELETE FROM segrec.snapshot",
    "two rows": "INSERT INTO segrec.snapshot FROM segrec.snapshot",
    "version": "UPDATE segrec.snapshot SET version = -1",
    "model_id": "UPDATE segrec.snapshot SET model_id = '../../x'",
    "a web address": "UPDATE segrec.snapshot SET index = 'http://127.0.0.1:9/index'",
    "a chain": "UPDATE segrec.snapshot SET index = 's3://x::http://127.0.0.1:9/index'",
    "a relative path": "UPDATE segrec.snapshot SET index = 'index'",
    "control characters": "UPDATE segrec.snapshot SET index = '/x' || chr(27) || '[2J'",
    "a long path": "UPDATE segrec.snapshot SET index = '/' || repeat('x', 5000)",
    "a large spec": "UPDATE segrec.snapshot SET spec = repeat('x', 20000000)",
    "no spec": "UPDATE segrec.snapshot SET spec = NULL",
    "nested": "UPDATE segrec.snapshot SET spec = repeat('[', 100000)",
    "a number beyond numbers": "UPDATE segrec.snapshot SET spec = "
    "regexp_replace(spec, '\"mean\": .[^,]*', '\"mean\": [1' || repeat('0', 400))",
    "a number": "UPDATE segrec.snapshot SET spec = '1'",
    "a class": "UPDATE segrec.snapshot SET spec = replace(spec, '\"tree\"', "
    '\'"x\\" FLOAT); DROP VIEW images; --"\')',
    "classes": "UPDATE segrec.snapshot SET spec = replace(spec, '\"tree\"', '\"car\"')",
}


@pytest.mark.parametrize("change", IDENTITIES)
def test_open_cache_refuses_odd_identity(
    hostile: tuple[Path, duckdb.DuckDBPyConnection], tmp_path: Path, change: str
) -> None:
    path, maker = hostile
    maker.execute(IDENTITIES[change].format(tmp_path))
    maker.close()
    check_refused(path, "segrec cache")


@pytest.mark.parametrize("content", [b"", b"x" * 4096, b"\0" * 65536])
def test_open_cache_refuses_other_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    path.write_bytes(content)
    check_refused(path, "not a query cache")
    assert path.read_bytes() == content


def check_refused(path: Path, message: str) -> None:
    for access in Access:
        with pytest.raises(InputError, match=message) as refusal:
            open_cache(str(path), access)
        assert "\n" not in str(refusal.value)
        assert SECRET not in str(refusal.value)
