"""SQL of all kinds against the guard: no secret leaves, no file or setting changes."""

import os
import random
from pathlib import Path
from typing import Any

import duckdb

from segrec_batch.common.errors import InputError
from segrec_batch.index import snapshot as store
from segrec_batch.index.schema import TABLES
from segrec_batch.search.cache import refresh_cache
from segrec_batch.search.database import Database, open_index
from segrec_batch.search.sql.allowed import TABLE_FUNCTIONS, allowed_functions
from segrec_batch.search.sql.connection import Access
from segrec_batch.search.sql.guard import QueryGuard, collect_rows
from segrec_batch.search.sql.limits import exit_after, time_limit
from tests.support.damage import Damage
from tests.support.feature_index import image_files, names, write_index
from tests.support.fuzz_targets import FEATURES, Target
from tests.support.sql_attacks import (
    ATTACKS,
    SECRET,
    argument,
    call,
    functions,
    of_this_module,
    settings_of,
)
from tests.support.sql_attacks import Target as Home

SECONDS = 2.0  # for a statement
PLAN_SECONDS = 9.0
ANSWER_BYTES = 2**24


class SqlTarget(Target):
    """SQL of others, on an index and on a query cache, with secrets beside and behind them.

    A statement that the guard lets pass is run and may neither give a secret nor change a setting.
    Some that it refuses are run all the same: what the connection can reach has no secret, either.
    """

    _name, _sql, _past_the_guard = "it's", "SELECT count(*) FROM images", False

    def prepare(self) -> None:
        home = self.input
        home.mkdir(parents=True)
        index = home / "it's"
        snapshot = write_index(str(index), FEATURES[:6])
        files = image_files(str(index), names(6, 6), FEATURES[6:])
        store.commit(snapshot, files, info={"note": SECRET})
        refresh_cache(str(index), str(home / "it's.duckdb"))
        (home / "it's2").mkdir()
        for folder in (home, home / "it's2"):
            (folder / "secret.txt").write_text(SECRET)
            (folder / "secret.csv").write_text(f"a,b\n{SECRET},1\n")
        duckdb.from_arrow(of_this_module).write_parquet(str(home / "secret.parquet"))
        with duckdb.connect(str(home / "other.duckdb")) as connection:
            connection.execute(f"CREATE TABLE secrets AS SELECT '{SECRET}' AS secret")
        (index / "link.txt").symlink_to(home / "secret.txt")
        (index / "folder").symlink_to(home)
        os.environ["CANARY"] = os.environ["AWS_SECRET_ACCESS_KEY"] = SECRET
        os.chdir(home)
        self.home = Home(str(index), str(index), home, lambda: None)
        self._functions = functions()
        self._open: dict[str, tuple[Database, Any]] = {}
        self._guards: dict[str, QueryGuard] = {}

    def change(self, damage: Damage, rng: random.Random) -> None:
        self._name = rng.choice(("it's", "it's.duckdb"))
        self._past_the_guard = rng.random() < 0.2
        self._sql = Grammar(rng, self.home, self._functions, self.hostile).statement()
        (self.input.parent / "statement.sql").write_text(
            f"-- {self._name}\n{self._sql}\n", "utf-8", "replace"
        )

    def load(self) -> None:
        database, settings = self._opened()
        guard = self._guards[self._name]
        with exit_after(PLAN_SECONDS):
            try:
                guard.check(self._sql)
            except InputError:
                if self._past_the_guard:
                    self._run(database)
                    self._close()
                raise
            try:
                self._run(database)
            finally:
                assert settings_of(database.connection) == settings, "a setting has changed"

    def _run(self, database: Database) -> None:
        """Run the statement, and look for secrets in what it gives."""
        try:
            with time_limit(database.connection, SECONDS):
                result = collect_rows(database.connection, self._sql, {}, ANSWER_BYTES)
                rows = str(result.to_pylist())
        except InputError as error:
            rows = str(error)
        except (ValueError, OverflowError, AttributeError) as error:
            # values that only Arrow can hold, of which `formatted` tells; no answer, as of BEGIN
            rows = str(error)
        assert SECRET not in rows, "a secret has come out"

    def _opened(self) -> tuple[Database, Any]:
        if self._name not in self._open:
            path = str(self.input / self._name)
            limits = {"threads": 1, "memory_limit": "300MB"}
            database = open_index(path, access=Access.SEALED, settings=limits)
            self._open[self._name] = database, settings_of(database.connection)
            if self._name not in self._guards:
                self._guards[self._name] = QueryGuard(database)
        return self._open[self._name]

    def _close(self) -> None:
        database, _ = self._open.pop(self._name)
        database.connection.close()


class Grammar:
    """Statements made of a small grammar, of all functions of DuckDB and of texts that attack."""

    def __init__(
        self,
        rng: random.Random,
        home: Home,
        known: list[tuple[str, str, list[str]]],
        hostile: list[str],
    ) -> None:
        self._rng = rng
        self._home = home
        scalars = [f for f in known if f[1] not in ("table", "table_macro", "pragma")]
        self._tables = [f for f in known if f[1] in ("table", "table_macro")]
        self._tame = rng.random() < 0.6  # mostly of what the lock lets pass
        allowed = [f for f in scalars if f[0].lower() in allowed_functions()]
        tabular = [f for f in self._tables if f[0].lower() in TABLE_FUNCTIONS]
        self._scalars = allowed if self._tame else scalars + 4 * allowed
        self._tables = tabular if self._tame else self._tables + 4 * tabular
        self._pragmas = [f for f in known if f[1] == "pragma"]
        inside = f"{home.folder}/images"
        parts = [str(p) for p in sorted(Path(inside).glob("*.parquet"))[:1]]
        self._texts = [
            *hostile, *parts, f"{home.home}/secret.txt", f"{home.home}/secret.csv", "secret.txt",
            f"{home.home}/secret.parquet", f"{home.home}/other.duckdb", f"{home.home}/new.csv",
            f"{inside}/_delta_log/00000000000000000000.json", f"{inside}/new.csv", "/dev/stdin",
            f"{inside}/_delta_log/00000000000000000002.json", "/proc/self/environ", "CANARY",
            f"{home.folder}/link.txt", f"{home.folder}/folder/secret.txt", f"{home.home}/*",
            "snapshot://*", "snapshot://images/../secret.txt", f"file://{home.home}/secret.txt",
            "images", "/etc/passwd", f"{home.folder}2/secret.txt", f"{home.home}/it's.duckdb",
            "FROM read_text('secret.txt')", "getenv('CANARY')", "temp_directory", "",
        ]  # fmt: skip

    def statement(self) -> str:
        """Return one statement, or several."""
        rng = self._rng
        match rng.randrange(12):
            case 0:
                return self._home.text(rng.choice(ATTACKS))
            case 1:
                return self._other_statement()
            case 2:
                return f"{self.query(3)}; {rng.choice((self.query(2), self._other_statement()))}"
            case 3:
                return self._spoiled(self.query(4))
        return self.query(rng.choice((1, 2, 3, 4, 5)))

    def _spoiled(self, sql: str) -> str:
        """A statement with comments, other case or other letters in places."""
        place = self._rng.randint(0, len(sql))
        other = self._rng.choice(("--\n", "/* */", "\x00", ";", "'", '"', "(", ")", "$$", "é", " "))
        return sql[:place] + other + sql[place:]

    def _text(self) -> str:
        """A text in quotes, as it is or put together from parts."""
        text = self._rng.choice(self._texts)
        quoted = _quoted(text)
        place = self._rng.randint(0, len(text))
        match self._rng.randrange(8):
            case 0:
                return f"{_quoted(text[:place])} || {_quoted(text[place:])}"
            case 1:
                return f"concat({_quoted(text[:place])}, {_quoted(text[place:])})"
            case 2:
                return f"reverse({_quoted(text[::-1])})"
            case 3:
                return f"decode(unhex('{text.encode().hex()}'))"
            case 4:
                return f"$$${text}$$"[1:] if "$" not in text else quoted
            case 5:
                return "E'" + "".join(f"\\x{b:02x}" for b in text.encode()) + "'"
        return quoted

    def query(self, depth: int) -> str:
        """Return a query; `depth` of them are in each other at most."""
        if depth <= 0:
            return self._rng.choice(("SELECT 1", f"FROM {self._rng.choice(TABLES)}", "VALUES (1)"))
        e, r, q = self._expression, self._relation, self.query
        d = depth - 1
        makers = (
            lambda: f"SELECT {e(d)} FROM {r(d)}",
            lambda: f"SELECT {e(d)}, {e(d)} FROM {self._rng.choice(TABLES)}",
            lambda: f"FROM {r(d)}",
            lambda: f"FROM {r(d)} SELECT {e(d)} WHERE {e(d)} IS NOT NULL",
            lambda: f"WITH x AS ({q(d)}) FROM x",
            lambda: f"WITH x AS MATERIALIZED ({q(d)}) SELECT * FROM x, {r(d)}",
            lambda: (
                f"WITH RECURSIVE x(a) AS (SELECT 1 UNION ALL SELECT {e(d)} FROM x "
                "WHERE random() < 0.5) FROM x LIMIT 3"
            ),
            lambda: f"SELECT ({q(d)})",
            lambda: f"SELECT * FROM ({q(d)}) AS a(b)",
            lambda: f"FROM {r(d)} AS a, LATERAL ({q(d)}) AS b",
            lambda: f"FROM {r(d)} AS a ASOF JOIN {r(d)} AS b ON a.uri >= b.uri",
            lambda: f"PIVOT ({q(d)}) ON {e(d)} USING count(*)",
            lambda: f"UNPIVOT ({q(d)}) ON COLUMNS(*) INTO NAME a VALUE b",
            lambda: f"VALUES ({e(d)}), ({e(d)})",
            lambda: f"DESCRIBE {q(d)}",
            lambda: f"SUMMARIZE {q(d)}",
            lambda: f"FROM {r(d)} ORDER BY {e(d)} LIMIT ({q(d)})",
            lambda: f"FROM {r(d)} LIMIT {e(d)} OFFSET {e(d)}",
            lambda: f"{q(d)} UNION ALL BY NAME {q(d)}",
            lambda: f"{q(d)} EXCEPT {q(d)}",
            lambda: f"SELECT {e(d)} AS a FROM {r(d)} GROUP BY ALL HAVING {e(d)} QUALIFY {e(d)}",
            lambda: f"SELECT sum({e(d)}) OVER (PARTITION BY {e(d)} ORDER BY {e(d)}) FROM {r(d)}",
            lambda: f"SELECT COLUMNS(lambda c: {e(d)}) FROM {r(d)}",
            lambda: f"SELECT * REPLACE ({e(d)} AS uri) FROM {r(d)}",
            lambda: f"SELECT * FROM {r(d)} TABLESAMPLE 10 ROWS",
            lambda: f"SELECT * FROM {r(d)} WHERE EXISTS ({q(d)})",
        )
        wild = (
            lambda: f"WITH x AS ({self._other_statement()}) FROM x",
            lambda: f"FROM query({_quoted(q(d))})",
            lambda: f"FROM query_table({self._text()})",
            lambda: f"FROM query_table([{self._text()}, 'images'])",
            lambda: f"FROM json_execute_serialized_sql(json_serialize_sql({_quoted(q(d))}))",
            lambda: f"SELECT json_serialize_plan({_quoted(q(d))})",
            lambda: f"SELECT $a, {e(d)}",
        )
        return self._rng.choice(makers if self._tame else makers + wild)()

    def _relation(self, depth: int) -> str:
        d = depth - 1
        rng = self._rng
        makers = (
            lambda: rng.choice(TABLES),
            lambda: f"({self.query(d)}) AS t",
            lambda: self._call(self._tables, d).removeprefix("FROM "),
            lambda: self._call(self._tables, d).removeprefix("FROM "),
            lambda: f"recommend({self._expression(d)}, k := {self._expression(d)})",
            lambda: f"recommend_by_sign_bits({self._expression(d)})",
            lambda: f"range({self._expression(d)})",
            lambda: f"unnest([{self._expression(d)}])",
        )
        wild = (
            lambda: rng.choice((*TABLES, "x", "secrets", "duckdb_settings()", "sqlite_master")),
            lambda: _quoted(rng.choice(self._texts)),
            lambda: '"' + rng.choice(self._texts).replace('"', '""') + '"',
            lambda: (
                f"read_{rng.choice(('text', 'blob', 'csv', 'json', 'parquet'))}({self._text()})"
            ),
            lambda: f"glob({self._text()})",
            lambda: f"{rng.choice(TABLES)} AT (VERSION => 1)",
            lambda: f"{rng.choice(('cache', 'memory', 'system', 'temp'))}.main.images",
        )
        return rng.choice(makers if self._tame else makers + wild)()

    def _expression(self, depth: int) -> str:
        if depth <= 0:
            return self._rng.choice(
                ("1", "'a'", "NULL", "uri", "image_id", "feature", "true", "[1]", "c", self._text())
            )
        d, e = depth - 1, self._expression
        makers = (
            lambda: self._call(self._scalars, d),
            lambda: self._call(self._scalars, d),
            lambda: self._call(self._scalars, d),
            lambda: f"({self.query(d)})",
            lambda: f"ARRAY({self.query(d)})",
            lambda: f"[{e(d)} FOR y IN [1, 2] IF {e(d)}]",
            lambda: f"list_transform([1], lambda y: {e(d)})",
            lambda: f"list_reduce([1, 2], lambda y, z: {e(d)})",
            lambda: f"{{'a': {e(d)}, 'b': {e(d)}}}",
            lambda: f"{{'a': {e(d)}}}.a",
            lambda: f"MAP {{{e(d)}: {e(d)}}}",
            lambda: f"CASE WHEN {e(d)} THEN {e(d)} ELSE {e(d)} END",
            lambda: f"CAST({e(d)} AS {self._rng.choice(_TYPES)})",
            lambda: f"TRY({e(d)})",
            lambda: f"{e(d)} IN ({self.query(d)})",
            lambda: f"{e(d)} BETWEEN {e(d)} AND {e(d)}",
            lambda: f"pearson({e(d)}, {e(d)})",
            lambda: f"{e(d)} COLLATE NOCASE",
            lambda: f"count({e(d)}) FILTER ({e(d)})",
            lambda: self._text(),
        )
        wild = (
            lambda: f"({e(d)}).{self._rng.choice(('a', 'length()', 'upper()', 'read_text()'))}",
            lambda: f"getenv({self._text()})",
            lambda: f"current_setting({self._text()})",
            lambda: f"getvariable({self._text()})",
        )
        return self._rng.choice(makers if self._tame else makers + wild)()

    def _call(self, known: list[tuple[str, str, list[str]]], depth: int) -> str:
        """A call of a function, with texts or with expressions in the places of values."""
        name, kind, types = self._rng.choice(known)
        if self._rng.random() < 0.4:
            text = self._rng.choice(self._texts)
            return call(name, kind, types, text).removeprefix("SELECT ")
        rng = self._rng
        given = [
            self._expression(depth - 1)
            if rng.random() < 0.5
            else argument(kind_, rng.choice(self._texts))
            for kind_ in types
        ]
        function = '"' + name.replace('"', '""') + f'"({", ".join(given)})'
        return function + " OVER ()" * (kind == "window")

    def _other_statement(self) -> str:
        """A statement that is none of a reader."""
        text, path, query = self._rng.choice(self._texts), self._text(), self.query(2)
        quoted = _quoted(text)
        return self._rng.choice((
            f"COPY ({query}) TO {quoted}",
            f"COPY ({query}) TO {quoted} (FORMAT {self._rng.choice(_FORMATS)}, USE_TMP_FILE false)",
            f"COPY images FROM {quoted}",
            f"EXPORT DATABASE {quoted}",
            f"IMPORT DATABASE {quoted}",
            f"ATTACH {quoted} AS n",
            f"ATTACH {quoted} AS n (READ_ONLY)",
            "DETACH cache",
            f"INSTALL {quoted}",
            f"LOAD {quoted}",
            f"SET {self._rng.choice(_SETTINGS)} = {path}",
            f"SET GLOBAL {self._rng.choice(_SETTINGS)} = {quoted}",
            f"RESET {self._rng.choice(_SETTINGS)}",
            f"SET VARIABLE x = ({query})",
            self._pragma(text),
            f"CALL {self._call(self._tables, 1).removeprefix('FROM ')}",
            f"PREPARE x AS {query}",
            "EXECUTE x",
            f"EXPLAIN ANALYZE {query}",
            f"EXPLAIN {query}",
            f"CREATE TEMP TABLE t AS {query}",
            f"CREATE OR REPLACE VIEW images AS {query}",
            f"CREATE OR REPLACE MACRO pearson(a, b) AS ({query})",
            f"CREATE OR REPLACE TEMP MACRO recommend(a) AS TABLE {query}",
            f"CREATE SECRET (TYPE s3, KEY_ID {quoted})",
            f"INSERT INTO images {query}",
            f"DELETE FROM segrec.images WHERE uri IN ({query})",
            f"UPDATE segrec.images SET uri = ({query})",
            "MERGE INTO images USING images AS i USING (image_id) WHEN MATCHED THEN DELETE",
            "DROP VIEW images",
            f"USE {self._rng.choice(('memory', 'cache', 'system', 'temp'))}",
            "BEGIN",
            "CHECKPOINT",
        ))  # fmt: skip

    def _pragma(self, text: str) -> str:
        name, kind, types = self._rng.choice(self._pragmas)
        return call(name, kind, types, text)


_TYPES = ["VARCHAR", "JSON", "BLOB", "INTEGER", "FLOAT[]", "STRUCT(a INTEGER)", "DATE", "UUID"]
_FORMATS = ["csv", "parquet", "json"]
_SETTINGS = [
    "enable_external_access", "allowed_paths", "allowed_directories", "disabled_filesystems",
    "lock_configuration", "temp_directory", "threads", "memory_limit", "home_directory",
    "extension_directory", "custom_extension_repository", "log_query_path", "profiling_output",
    "search_path", "schema", "autoload_known_extensions", "python_enable_replacements",
    "secret_directory", "access_mode", "enable_profiling", "file_search_path",
]  # fmt: skip


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
