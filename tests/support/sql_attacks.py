"""SQL that tries forbidden reads, writes and changes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

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

SMUGGLED = [  # text that becomes SQL, names that change, and harmless names
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT * FROM query('SELECT 1')",
    "FROM query_table('images')",
    "FROM query_table(['{secret}'])",
    "WITH x AS (FROM read_text('{secret}')) SELECT 1",
    "SELECT (SELECT content FROM read_text('{secret}'))",
    "DESCRIBE (FROM read_text('{secret}'))",
    "SUMMARIZE FROM read_text('{secret}')",
    "FROM images ORDER BY (SELECT content FROM read_text('{secret}'))",
    "SELECT 1 LIMIT (SELECT size FROM read_text('{secret}'))",
    "FROM range((SELECT size FROM read_text('{secret}')))",
    "SELECT sum(width) OVER w FROM images WINDOW w AS (ORDER BY current_setting('threads'))",
    "SELECT system.main.current_setting('threads')",
    "SELECT main.pearson([1], [2])",
    "FROM system.main.read_text('{secret}')",
    "FROM temp.main.images",
    "FROM cache.main.images",
    "FROM cache.segrec.images",
    "FROM memory.main.images",
    "FROM information_schema.tables",
    "FROM pg_catalog.pg_settings",
    "FROM sqlite_master",
    "SELECT 1::cache.main.mytype",
    "SHOW DATABASES",
    "SELECT current_setting('temp_directory')",
    "SELECT getvariable('x')",
    "SELECT nextval('x')",
    "SELECT setseed(0.5)",
    "SELECT sleep_ms(1)",
    "SELECT write_log('x')",
    "SELECT list_aggregate([1], 'sum')",
    "SELECT json_serialize_plan('SELECT 1')",
    "FROM histogram('images', 'width')",
    "FROM seq_scan('images')",
    "FROM images AT (VERSION => 1)",
    "FROM duckdb_settings()",
    "FROM duckdb_databases()",
    "FROM duckdb_temporary_files()",
    "FROM duckdb_logs()",
    "FROM enable_logging(storage := 'file', storage_path := '{home}/log')",
    "FROM glob('snapshot://*')",
    "FROM parquet_metadata('snapshot://*')",
    "FROM read_blob('snapshot://images/x.parquet')",
    "SELECT pearson([pearson([pearson([1, 2], [2, 1]), 1], [1, 2]), 1], [1, 2])",
    "EXECUTE x",
    "DEALLOCATE x",
    "SELECT ?",
    "SELECT $1",
    "SELECT 1 FROM '{inside}/_delta_log/00000000000000000000.json'",
]

ATTACKS = READS + WRITES + REST + SMUGGLED

of_this_module = pa.table({"secret": [SECRET]})


@dataclass(frozen=True)
class Target:
    """The object of an attack: a database, paths that an attacker names, and protected content."""

    index: str
    folder: str
    home: Path
    seen: Callable[[], object]

    def text(self, attack: str) -> str:
        """Return the SQL of an attack on this target."""
        places = {
            "index": self.folder,
            "inside": f"{self.folder}/images",
            "home": str(self.home),
            "secret": f"{self.home}/secret.txt",
        }
        quoted = {name: place.replace("'", "''") for name, place in places.items()}
        return attack.format(**quoted)


def functions() -> list[tuple[str, str, list[str]]]:
    """Return name, kind and argument types of all functions of this DuckDB."""
    with duckdb.connect() as connection:
        result = connection.sql(
            "SELECT DISTINCT function_name, function_type, parameter_types::VARCHAR[] "
            "FROM duckdb_functions() ORDER BY ALL"
        )
        return result.fetchall()


def argument(kind: str | None, text: str) -> str:
    """Return a value of a type; if it is a string, it names a file or is SQL."""
    quoted = "'" + text.replace("'", "''") + "'"
    kind = kind or "VARCHAR"
    if kind.endswith("[]"):
        return f"[{argument(kind.removesuffix('[]'), text)}]"
    if kind in ("VARCHAR", "ANY", "T", "JSON", "K", "V", "LAMBDA"):
        return quoted
    if kind == "BLOB":
        return f"encode({quoted})"
    if kind == "BOOLEAN":
        return "true"
    return f"1::{kind}" if kind.endswith(("INT", "INTEGER", "FLOAT", "DOUBLE")) else f"{quoted}"


def call(name: str, kind: str, types: list[str], text: str) -> str:
    """Return a statement that calls a function."""
    arguments = ", ".join(argument(t, text) for t in types)
    function = '"' + name.replace('"', '""') + f'"({arguments})'
    if kind == "pragma":
        return f"PRAGMA {name}({arguments})" if types else f"PRAGMA {name}"
    if kind in ("table", "table_macro"):
        return f"FROM {function}"
    return f"SELECT {function}" + (" OVER ()" if kind == "window" else "")


def settings_of(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    return connection.sql("SELECT name, value FROM duckdb_settings() ORDER BY name").fetchall()
