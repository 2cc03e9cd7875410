"""`segrec sql` reads the rows of an index and can do nothing else, whatever text it is given."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import segrec_batch
from segrec_batch import cli, storage
from segrec_batch.model.bundle import Model
from segrec_batch.query.cache import refresh_cache
from tests.s3 import new_bucket, put
from tests.streets import picture, write_streets

SECRET = "sesame-0815"  # noqa: S105 - what no answer may hold
READS = [
    "FROM read_text('{secret}')",
    "FROM read_blob('{secret}')",
    "FROM read_csv('{secret}')",
    "FROM read_json('{secret}')",
    "FROM sniff_csv('{secret}')",
    "FROM '{secret}'",
    "FROM read_text('file://{secret}')",
    "FROM read_text('{home}/sec*')",
    "FROM read_text(['{index}/x', '{secret}'])",
    "FROM glob('{home}/*')",
    "FROM '{home}/secret.parquet'",
    "FROM read_parquet('{home}/secret.parquet')",
    "FROM parquet_metadata('{home}/secret.parquet')",
    "FROM query('FROM read_text(''{secret}'')')",
    "FROM read_text('{index}/../secret.txt')",
    "FROM read_text('{index}/images/../../secret.txt')",
    "FROM read_text('{index}2/secret.txt')",
    "FROM read_text('{index}/link.txt')",
    "FROM read_text('{index}/folder/secret.txt')",
    "FROM read_text('secret.txt')",
    "FROM read_text('/proc/self/environ')",
    "FROM '/dev/stdin'",
    "FROM read_csv('http://127.0.0.1:9/x.csv')",
    "FROM 's3://bucket/x.parquet'",
    "FROM read_csv('snapshot://../secret.txt')",
    "FROM duckdb_secrets()",
]
WRITES = [
    "COPY (SELECT 1) TO '{home}/new.csv'",
    "COPY (SELECT 1) TO '{inside}/new.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}/new.csv'",
    "WITH x AS (COPY (SELECT 1) TO '{home}/new.csv') FROM x",
    "WITH x AS (COPY (SELECT 1) TO '{inside}/new.csv') FROM x",
    "WITH x AS (COPY (SELECT 1) TO '{inside}/_delta_log/00000000000000000001.json') FROM x",
    "WITH y AS (WITH x AS (COPY (SELECT 1) TO '{inside}/new.csv') FROM x) FROM y",
    "FROM query('WITH x AS (COPY (SELECT 1) TO ''{inside}/new.csv'') FROM x')",
    "COPY (SELECT 1) TO 'snapshot://images/new.parquet'",
    "COPY images FROM '{secret}'",
    "EXPORT DATABASE '{home}/new'",
    "EXPORT DATABASE '{inside}/new'",
    "IMPORT DATABASE '{home}'",
    "ATTACH '{home}/new.duckdb' AS new",
    "ATTACH '{inside}/new.duckdb' AS new",
    "CREATE TABLE new AS SELECT 1",
    "CREATE OR REPLACE VIEW images AS SELECT 1",
    "CREATE OR REPLACE MACRO pearson(a, b) AS 1",
    "CREATE SECRET (TYPE s3, KEY_ID 'x')",
    "INSERT INTO failures FROM failures",
    "UPDATE images SET uri = ''",
    "DELETE FROM images",
    "WITH x AS (DELETE FROM segrec.images RETURNING 1) FROM x",
    "WITH x AS (UPDATE segrec.images SET uri = '' RETURNING 1) FROM x",
    "WITH x AS (INSERT INTO segrec.failures FROM segrec.failures RETURNING 1) FROM x",
    "MERGE INTO images USING images AS i USING (image_id) WHEN MATCHED THEN DELETE",
    "DROP VIEW images",
    "ALTER VIEW images RENAME TO new",
    "COMMENT ON VIEW images IS ''",
    "CHECKPOINT",
    "VACUUM",
]
REST = [
    "INSTALL httpfs",
    "FORCE INSTALL httpfs FROM 'http://127.0.0.1:9'",
    "LOAD httpfs",
    "LOAD '{home}/new.duckdb_extension'",
    "FROM st_read('{secret}')",
    "SET enable_external_access = true",
    "SET GLOBAL threads = 1",
    "SET VARIABLE x = 1",
    "RESET allowed_directories",
    "FROM enable_logging()",
    "FROM enable_profiling()",
    "PRAGMA database_list",
    "PRAGMA enable_logging",
    "CALL pragma_version()",
    "CALL enable_logging()",
    "USE memory",
    "BEGIN",
    "PREPARE x AS SELECT 1",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW images",
    "DROP VIEW images; SELECT 1",
    "",
    ";",
    "-- nothing",
    "SELECT getenv('HOME')",
    "FROM of_this_module",
    "FROM of_the_caller",
    "FROM arguments",
    "FROM parameters",
]
ATTACKS = READS + WRITES + REST
of_this_module = pa.table({"secret": [SECRET]})


@dataclass(frozen=True)
class Target:
    """What SQL is run on, what an attacker would name, and what must not change."""

    index: str
    folder: str
    home: Path
    seen: Callable[[], object]

    def text(self, attack: str) -> str:
        """An attack on this target."""
        places = {
            "index": self.folder,
            "inside": f"{self.folder}/images",
            "home": str(self.home),
            "secret": f"{self.home}/secret.txt",
        }
        quoted = {name: place.replace("'", "''") for name, place in places.items()}
        return attack.format(**quoted)


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
    found: Target = request.getfixturevalue(request.param)
    return found


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


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("attack", ATTACKS)
def test_sql_that_is_no_query_of_the_rows_is_an_error(
    target: Target, sql: Callable[..., tuple[int, str, str]], attack: str
) -> None:
    of_the_caller = of_this_module
    code, out, err = sql(target.text(attack))
    assert (code, out) == (1, "")
    assert [line.startswith("error: SQL: ") for line in err.splitlines()].count(True) == 1
    assert "Traceback" not in err
    assert of_the_caller["secret"][0].as_py() not in err


def test_names_in_the_sql_of_a_program_are_not_its_variables(target: Target) -> None:
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
def test_a_query_of_the_rows_is_answered(
    sql: Callable[..., tuple[int, str, str]], query: str
) -> None:
    assert sql("--format", "csv", query) == (0, "n\n129\n", "")


TEXTS = ["x'; DROP VIEW images; --", "'", "''", "$name", "?", "a=b", "", "\\'", 'é\n\t"', "%s{0}"]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("text", TEXTS)
def test_the_text_of_a_parameter_is_a_value(
    sql: Callable[..., tuple[int, str, str]], text: str
) -> None:
    asked = "SELECT $name AS text, count(*) AS n FROM images"
    code, out, _ = sql("--format", "json", "-p", f"name={text}", asked)
    assert code == 0
    assert json.loads(out) == [{"text": text, "n": 129}]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("parameter", "message"),
    [("x'=1", "give NAME=TEXT"), ("x; DROP VIEW images=1", "give NAME=TEXT"), ("other=1", "name")],
)
def test_the_name_of_a_parameter_is_a_name_in_the_query(
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
def test_texts_of_segrec_query_are_values(
    target: Target, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [picture(40)["image_id"] if a == "ID" else a for a in arguments]
    assert cli.main(["query", "--index", target.index, *given]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
