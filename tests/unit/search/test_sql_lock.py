"""Tests of untrusted SQL: `segrec sql` reads the rows of an index and has no other effect."""

import gc
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segrec_batch
from segrec_batch.cli import main as cli
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.model.bundle import Model
from segrec_batch.search.cache import refresh_cache
from segrec_batch.search.database import Database, open_index
from segrec_batch.search.sql.allowed import TABLE_FUNCTIONS, allowed_functions
from segrec_batch.search.sql.connection import Access, read_batches
from segrec_batch.search.sql.guard import QueryGuard, collect_rows, run_untrusted
from segrec_batch.search.sql.limits import Limits, memory_limit
from segrec_batch.sources import storage
from tests.support.s3 import new_bucket, put
from tests.support.sql_attacks import (
    ATTACKS,
    READS,
    REST,
    SECRET,
    SMUGGLED,
    WRITES,
    Target,
    call,
    functions,
    of_this_module,
    settings_of,
)
from tests.support.streets import image, write_streets


@pytest.fixture(scope="module")
def home(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index, its query cache, and secrets beside and behind them."""
    home = tmp_path_factory.mktemp("home")
    write_streets(str(home / "it's"), model)
    for weights in home.rglob("*.safetensors"):  # large, and SQL needs none
        weights.unlink()
    refresh_cache(str(home / "it's"), str(home / "it's.duckdb"))
    (home / "it's2").mkdir()
    for folder in (home, home / "it's2"):
        (folder / "secret.txt").write_text(SECRET)
    duckdb.from_arrow(of_this_module).write_parquet(str(home / "secret.parquet"))
    (home / "it's" / "link.txt").symlink_to(home / "secret.txt")
    (home / "it's" / "folder").symlink_to(home)
    return home


def hashes(folder: Path) -> dict[str, str]:
    """Of all files below a folder, by path; links are not followed."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p): hashlib.blake2b(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def local(home: Path) -> Target:
    return Target(str(home / "it's"), str(home / "it's"), home, lambda: hashes(home))


@pytest.fixture(scope="module")
def cache(home: Path) -> Target:
    return Target(str(home / "it's.duckdb"), str(home / "it's"), home, lambda: hashes(home))


@pytest.fixture(scope="module")
def remote(home: Path, s3: dict[str, str]) -> Target:
    """The same index on S3."""
    bucket, folder = new_bucket(), home / "it's"
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    put({f"{bucket}/it's/{p.relative_to(folder)}": p.read_bytes() for p in files})
    put({f"{bucket}/secret.txt": SECRET.encode()})
    index = f"{bucket}/it's"
    return Target(index, index, home, lambda: (hashes(home), sorted(storage.find_files(bucket))))


@pytest.fixture(params=["local", "cache", pytest.param("remote", marks=pytest.mark.slow)])
def target(request: pytest.FixtureRequest) -> Target:
    result: Target = request.getfixturevalue(request.param)
    return result


@pytest.fixture
def sql(
    target: Target, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs `segrec sql`: its exit code, stdout and stderr."""
    monkeypatch.chdir(target.home)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["sql", "--index", target.index, *arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def unchanged(target: Target) -> Iterator[None]:
    before = target.seen()
    yield
    assert target.seen() == before


@pytest.fixture
def database(target: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The target as `segrec sql` opens it."""
    monkeypatch.chdir(target.home)
    result = open_index(target.index, access=Access.SEALED)
    with result.connection:
        yield result


@pytest.mark.usefixtures("unchanged")
def test_guard_refuses_other_statements(target: Target, database: Database) -> None:
    of_the_caller = of_this_module
    with QueryGuard(database) as guard:
        for attack in ATTACKS:
            with pytest.raises(InputError, match=r"\ASQL: .*\Z") as refusal:
                guard.check(target.text(attack))
            text = str(refusal.value)
            assert "\n" not in text, attack
            assert of_the_caller["secret"][0].as_py() not in text, attack


@pytest.mark.usefixtures("unchanged")
def test_sealed_connection_reaches_no_file(target: Target, database: Database) -> None:
    for attack in [*READS, *(w for w in WRITES if "'{" in w)]:
        sql = target.text(attack)
        try:
            result = database.connection.sql(sql)
            rows = str(result.fetchall()) if result is not None else ""
        except duckdb.Error as error:
            rows = str(error)
        assert SECRET not in rows, attack


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("attack", [READS[0], WRITES[5], REST[0], SMUGGLED[0], ""])
def test_sql_command_refuses_in_one_line(
    target: Target, sql: Callable[..., tuple[int, str, str]], attack: str
) -> None:
    code, out, err = sql(target.text(attack))
    assert (code, out) == (1, "")
    assert err.startswith("error: SQL: ")
    assert len(err.splitlines()) == 1


def test_connect_ignores_variables_of_program(target: Target) -> None:
    of_the_caller = of_this_module
    with segrec_batch.connect(target.index) as connection:
        for name in ("of_this_module", "of_the_caller"):
            with pytest.raises(duckdb.CatalogException, match=name):
                connection.sql(f"FROM {name}")
    assert of_the_caller.num_rows


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) AS n FROM images",
        "FROM images SELECT count(*) AS n;",
        "WITH rows AS MATERIALIZED (FROM images) SELECT count(*) AS n FROM rows -- all",
        "FROM (SUMMARIZE images) SELECT max(count) AS n",
        "SELECT count(*) AS n FROM images WHERE uri <> 'WITH x AS (COPY images TO ''x'') FROM x'",
        'SELECT count(*) AS n FROM images WHERE uri <> \'"type":"COPY_QUERY_NODE"\'',
    ],
)
def test_guard_allows_queries(sql: Callable[..., tuple[int, str, str]], query: str) -> None:
    assert sql("--format", "csv", query) == (0, "n\n129\n", "")


TEXTS = ["x'; DROP VIEW images; --", "'", "''", "$name", "?", "a=b", "", "\\'", 'é\n\t"', "%s{0}"]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("text", TEXTS)
def test_parameter_text_is_a_value(sql: Callable[..., tuple[int, str, str]], text: str) -> None:
    statement = "SELECT $name AS text, count(*) AS n FROM images"
    code, out, _ = sql("--format", "json", "-p", f"name={text}", statement)
    assert code == 0
    assert json.loads(out) == [{"text": text, "n": 129}]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("parameter", "message"),
    [("x'=1", "give NAME=TEXT"), ("x; DROP VIEW images=1", "give NAME=TEXT"), ("other=1", "name")],
)
def test_parameter_name_is_in_query(
    sql: Callable[..., tuple[int, str, str]], parameter: str, message: str
) -> None:
    code, out, err = sql("-p", parameter, "SELECT $name")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--uri", "it's"], "it's is not in the index"),
        (["--uri", "'; DROP VIEW images; --"], "-- is not in the index"),
        (["--image-id", "' OR 1=1 --"], "' OR 1=1 -- is not in the index"),
        (["--image-id", "ID", "--class", "car'--"], 'no class "car\'--" in this index'),
        (["--image-id", "ID", "--class", "tree' OR '1'='1"], "no class"),
    ],
)
def test_query_command_texts_are_values(
    target: Target, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [image(40)["image_id"] if a == "ID" else a for a in arguments]
    assert cli.main(["query", "--index", target.index, *given]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


PATHS = ("{home}/secret.txt", "{inside}/_delta_log/00000000000000000000.json", "{home}/it's.duckdb")
SPOKEN = "SELECT * FROM read_text('{home}/secret.txt')"
COPIED = "COPY (SELECT 1) TO '{inside}/new.csv' (USE_TMP_FILE false)"


def calls(target: Target) -> dict[str, bool]:
    """Statements that call every function of this DuckDB with names of files and with SQL, and
    whether SQL of others may call it.
    """
    texts = [target.text(t) for t in (PATHS[0], COPIED, *PATHS[1:], SPOKEN, "CANARY")]
    made = {}
    for name, kind, types in functions():
        tabular = kind.startswith("table")
        allowed = name.lower() in (TABLE_FUNCTIONS if tabular else allowed_functions())
        some = texts if tabular or kind == "pragma" else texts[:2] if allowed else texts[:1]
        made |= {call(name, kind, types, text): allowed for text in some}
    return made


def test_duckdb_functions_have_no_effects(local: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", SECRET)
    monkeypatch.chdir(local.home)
    files, statements, ran = local.seen(), calls(local), 0
    assert len(statements) > 1000
    database = open_index(local.index, access=Access.SEALED)
    before = settings_of(database.connection)
    with database.connection as connection, QueryGuard(database) as guard:
        for sql, allowed in statements.items():
            try:
                guard.check(sql)
            except InputError:
                continue
            assert allowed, sql
            ran += 1
            try:
                rows = str(connection.sql(sql).limit(1000).fetchall())
            except duckdb.Error as error:
                rows = str(error)
            assert SECRET not in rows, sql
        assert settings_of(connection) == before
    assert ran > 500
    assert local.seen() == files


def test_guard_refuses_unknown_function(home: Path) -> None:
    """As one that a newer DuckDB brings."""
    database = open_index(str(home / "it's.duckdb"), access=Access.SEALED)
    with QueryGuard(database) as guard:
        for connection in (database.connection, guard._twin):
            connection.create_function("read_anything", lambda x: x, ["VARCHAR"], "VARCHAR")
            connection.execute("CREATE MACRO read_any_table() AS TABLE SELECT read_anything('x')")
        for sql in ("SELECT read_anything('x')", "FROM read_any_table()"):
            with pytest.raises(InputError, match=r"read_any.* is not allowed"):
                guard.check(sql)


def test_allowed_functions_have_no_effects_but_random() -> None:
    with duckdb.connect() as connection:
        result = connection.sql(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE has_side_effects"
        ).fetchall()
    effects = {name for (name,) in result} & (allowed_functions() | TABLE_FUNCTIONS)
    assert effects == {"error", "gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"}


TOKENS = """
SELECT FROM WITH x AS ( ) , ; . :: [ ] { } ' " $ $x ? * = -- /* */ 1 'a' images regions uri segrec
cache main COPY TO read_text('/etc/passwd') query('FROM images') UNION ALL CASE WHEN DESCRIBE
SUMMARIZE PIVOT ON USING lambda x: x MATERIALIZED RECURSIVE LATERAL SAMPLE QUALIFY recommend('x')
pearson([1],[2]) getenv('HOME') COLUMNS('.*') WINDOW OVER \x00 é \ud800
"""
QUERIES = [
    "SELECT count ( * ) FROM images WHERE uri = $x",
    "WITH a AS ( FROM regions ) SELECT class , max ( coverage ) FROM a GROUP BY class",
    "FROM recommend ( 'x' , k := 3 ) AS r JOIN images AS i USING ( image_id ) ORDER BY rank",
    "SELECT list_transform ( [ 1 , 2 ] , lambda v : v + 1 ) , uri [ 1 ] FROM images LIMIT 3",
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    words=st.sampled_from(QUERIES).map(str.split),
    places=st.lists(st.integers(0, 30), max_size=4),
    more=st.lists(st.sampled_from(TOKENS.split()) | st.text(max_size=5), min_size=4, max_size=4),
)
def test_guard_any_text_is_query_or_refused(
    guard: QueryGuard, words: list[str], places: list[int], more: list[str]
) -> None:
    for place, word in zip(places, more, strict=False):
        words[place:place] = [word]
    text = " ".join(words)
    refused = ""
    try:
        guard.check(text, {"x": "text"} if "$x" in words else {})
    except InputError as error:
        refused = str(error)
    assert "\n" not in refused
    statements = [] if refused else duckdb.extract_statements(text)
    assert [s.type for s in statements] == [duckdb.StatementType.SELECT] * (not refused)


@pytest.fixture(scope="module")
def guard(home: Path) -> Iterator[QueryGuard]:
    database = open_index(str(home / "it's.duckdb"), access=Access.SEALED)
    with database.connection, QueryGuard(database) as made:
        yield made


ENDLESS = "SELECT sum(a.range * b.range) FROM range(100000000000) AS a, range(100000) AS b"
UNPLANNABLE = "SELECT 1 AS x0" + "".join(f", x{i} + x{i} AS x{i + 1}" for i in range(60))


LATE = f"SELECT range FROM range(100000) UNION ALL ({ENDLESS})"
MIDWAY = (
    "SELECT (range || CASE WHEN range > 90000 THEN 'x' ELSE '' END)::INTEGER FROM range(100000)"
)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (ENDLESS, "no answer after 0.2 s"),
        (LATE, "no answer after 0.2 s"),
        (MIDWAY, "Conversion Error: Could not convert string '90001x' to INT32"),
        ("SELECT range(1000) FROM range(100000)", "larger than"),
        ("SELECT list(a.range) FROM range(100000) AS a, range(100000) AS b", "more memory"),
        ("SELECT '" + 2**20 * "x" + "'", "1,048,576 bytes"),
        ("SELECT " + 2000 * "(" + "1" + 2000 * ")", "depth"),
        ("SELECT * FROM " + 5000 * "(FROM " + "range(1)" + 5000 * ")", "nested|depth"),
    ],
    ids=["time", "late", "midway", "answer", "memory", "text", "brackets", "subqueries"],
)
def test_untrusted_sql_keeps_limits(home: Path, sql: str, message: str) -> None:
    settings = {"memory_limit": "100MB"} if "list(" in sql else {}
    database = open_index(str(home / "it's.duckdb"), access=Access.SEALED, settings=settings)
    limits = Limits(seconds=0.2 if ENDLESS in sql else 60, result_bytes=2**20)
    with database.connection, pytest.raises(InputError, match=f"\\ASQL: .*({message})"):
        run_untrusted(database, sql, limits=limits)


def test_too_large_result_frees_connection() -> None:
    with duckdb.connect() as connection:
        with pytest.raises(InputError, match="larger than") as error:
            collect_rows(connection, "SELECT range(1000) FROM range(1000000)", {}, 2**20)
        assert error.traceback  # which would keep an open answer alive
        assert connection.sql("SELECT 2").fetchall() == [(2,)]


def test_error_after_first_rows_is_one_line() -> None:
    with duckdb.connect() as connection, pytest.raises(InputError, match="Conversion") as error:
        list(read_batches(connection, MIDWAY, {}, 1000))
    assert "\n" not in str(error.value)


def test_endless_plan_ends_command(home: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "segrec_batch.cli.main",
        "sql",
        "--index",
        str(home / "it's.duckdb"),
    ]
    done = subprocess.run(
        [*command, "--timeout", "0.5", UNPLANNABLE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: SQL: given up after 1 s")
    assert len(done.stderr.splitlines()) == 1


def test_memory_limit_ends_with_block() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with memory_limit(2**30), pytest.raises(MemoryError):
        bytearray(2**34)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_memory_limit_lowest_holds() -> None:
    with memory_limit(2**34):
        with memory_limit(2**28), pytest.raises(MemoryError):
            bytearray(2**31)
        bytearray(2**31)


def test_memory_limit_ends_with_last_thread() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    first, second = memory_limit(2**30), memory_limit(2**31)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_AS) != before
    second.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_open_index_refuses_pipe(home: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    shutil.copytree(home / "it's", index, ignore=shutil.ignore_patterns("link.txt", "folder"))
    for path in (index / "images").glob("*.parquet"):  # of old versions, too
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(IndexStateError, match="is not a regular file"):
        segrec_batch.connect(str(index))


def test_connect_is_locked_by_default(target: Target, tmp_path: Path) -> None:
    secret = target.text("FROM read_text('{secret}')")
    copy = f"COPY (SELECT 1) TO '{tmp_path}/new.csv'"
    with segrec_batch.connect(target.index, settings={"threads": 1}) as connection:
        assert connection.sql("SELECT current_setting('threads')").fetchall() == [(1,)]
        for sql in (secret, copy, "SET threads = 2", f"ATTACH '{tmp_path}/new.duckdb'"):
            with pytest.raises(duckdb.Error, match=r"disabled|locked|Cannot"):
                connection.execute(sql)
        connection.execute("CREATE TEMP TABLE mine AS SELECT uri FROM images")
        assert connection.sql("SELECT count(*) FROM mine").fetchall() == [(129,)]
    with segrec_batch.connect(target.index, locked=False) as connection:
        assert SECRET in str(connection.sql(secret).fetchall())
        connection.execute(copy)
    with pytest.raises(InputError, match="setting"):
        segrec_batch.connect(target.index, settings={"nothing": 1})


def test_spill_folder_is_private(target: Target) -> None:
    with segrec_batch.connect(target.index, settings={"memory_limit": "60MB"}) as connection:
        ((folder,),) = connection.sql("SELECT current_setting('temp_directory')").fetchall()
        assert Path(folder).parent.stat().st_mode & 0o77 == 0
        sql = "SELECT count(DISTINCT (range, md5(range::VARCHAR))) FROM range(1000000)"
        assert connection.sql(sql).fetchall() == [(1000000,)]
    connection = segrec_batch.connect(target.index, settings={"memory_limit": "60MB"})
    cursor = connection.cursor()
    del connection
    gc.collect()
    assert cursor.sql(sql).fetchall() == [(1000000,)], "cursors live on"


def test_spill_folder_goes_with_process(home: Path) -> None:
    code = f"""if True:
        import segrec_batch
        connection = segrec_batch.connect({str(home / "it's")!r})
        print(connection.sql("SELECT current_setting('temp_directory')").fetchall()[0][0])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).parent.exists()
