"""Execution of untrusted SQL: an allow-list before it runs, and limits while it runs.

A statement is checked twice. The parse tree must be one SELECT with only nodes and functions on the
list; nothing else is bound. The bound plan must have only operators and functions on the list,
after all macros, views and aliases are expanded. It is made on a *twin* of the database: the same
views and macros over empty tables, without access to files. Unknown names are refused, also those
of newer versions of DuckDB.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

import duckdb
import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.common.host import usable_memory
from segrec_batch.search.database import Database, open_twin
from segrec_batch.search.sql import allowed
from segrec_batch.search.sql.connection import one_line
from segrec_batch.search.sql.limits import Limits, memory_limit, time_limit
from segrec_batch.search.sql.views import quoted

KINDS = "SELECT, FROM, WITH, VALUES, DESCRIBE or SUMMARIZE"


def run_untrusted(
    database: Database,
    sql: str,
    parameters: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> pa.Table:
    """Return the rows of untrusted SQL; `database` must be opened as SEALED.

    Raises InputError for SQL that is not a query of the rows, fails, or exceeds a limit.
    """
    parameters, limits = parameters or {}, limits or Limits()
    memory = usable_memory() * 3 // 4
    with memory_limit(memory), time_limit(database.connection, limits.seconds):
        with QueryGuard(database) as guard:
            guard.check(sql, parameters)
        return collect_rows(database.connection, sql, parameters, limits.answer_bytes)


def collect_rows(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, str], most: int
) -> pa.Table:
    """Return the rows, `most` bytes at most, of SQL that a QueryGuard has checked.

    Raises InputError.
    """
    try:
        relation = connection.sql(sql, params=dict(parameters) or None)
        with relation.to_arrow_reader(_ROWS) as reader:  # left open, it keeps the connection busy
            return _collect(reader, most)
    # OSError: Arrow raises it for an error of DuckDB after the first rows
    except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
        raise InputError(f"SQL: {_message(error)}") from error


_ROWS = 2**15  # rows of a batch
_PLAN_BYTES = 2 * 2**30


def _collect(reader: pa.RecordBatchReader, most: int) -> pa.Table:
    batches, size = [], 0
    for batch in reader:
        batches.append(batch)
        size += batch.nbytes
        if size > most:
            raise InputError(
                f"SQL: the answer is larger than {most / 2**30:.3g} GiB: ask for fewer columns, or "
                "rows (LIMIT)"
            )
    return pa.Table.from_batches(batches, reader.schema)


def _message(error: Exception) -> str:
    is_of_memory = isinstance(error, duckdb.OutOfMemoryException | MemoryError)
    if is_of_memory or str(error).startswith("Out of Memory Error"):
        return "it needs more memory than it may take: ask for fewer rows or columns at once"
    return one_line(error)


class QueryGuard:
    """Check of SQL against the allow-list. Use as a context manager."""

    def __init__(self, database: Database) -> None:
        self._twin = open_twin(database)
        macros = self._twin.execute(
            "SELECT function_name FROM duckdb_functions() "
            "WHERE NOT internal AND function_type IN ('macro', 'table_macro')"
        )
        self._macros = frozenset(name.lower() for (name,) in macros.fetchall())

    def check(self, sql: str, parameters: Mapping[str, str] | None = None) -> None:
        """Raise InputError for SQL that is not one query of the rows with functions on the list."""
        with memory_limit(_PLAN_BYTES):
            tree = _parsed(self._twin, sql)
            names = _check_parsed(tree, self._macros)
            _check_nesting(tree, self._macros)
            values = parameters or {}
            for name in sorted(names ^ values.keys()):
                raise InputError(
                    f"SQL: -p {name}=TEXT is missing"
                    if name in names
                    else f"SQL: it has no ${name}, for which there is a value"
                )
            text = _with_values(sql, tree, values)
            _check_bound(_as_json(self._twin, "json_serialize_plan", text)["plans"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._twin.close()


def _parsed(twin: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """Return the parse tree of SQL that is one statement that only reads."""
    try:
        size = len(sql.encode())
    except UnicodeError as error:
        raise InputError("SQL: it is no text in UTF-8") from error
    if size > _LONGEST:
        raise InputError(f"SQL: a query may have {_LONGEST:,} bytes; this one has {size:,}")
    try:
        statements = twin.extract_statements(sql)
    except duckdb.Error as error:
        raise InputError(f"SQL: {one_line(error)}") from error
    if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
        raise InputError(f"SQL: give one query: {KINDS}")
    return _as_json(twin, "json_serialize_sql", sql)["statements"]


_LONGEST = 2**20


def _as_json(twin: duckdb.DuckDBPyConnection, function: str, sql: str) -> Any:
    call = f"SELECT {function}($sql::VARCHAR, skip_null := true, skip_empty := true)"
    try:
        ((text,),) = twin.execute(call, {"sql": sql}).fetchall()
        tree = json.loads(text)
    except duckdb.Error as error:
        raise InputError(f"SQL: {_message(error)}") from error
    except RecursionError as error:
        raise InputError("SQL: it is nested too deeply") from error
    except MemoryError as error:
        raise InputError("SQL: its plan is too large: ask for less at once") from error
    if tree["error"]:
        kind = str(tree.get("error_type", "")).capitalize()
        if kind == "Not implemented":  # no SELECT, or parts that have no JSON
            raise InputError(f"SQL: give one query: {KINDS} ({tree['error_message']})")
        raise InputError(f"SQL: {kind} Error: {' '.join(tree['error_message'].split())}")
    return tree


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects of a tree, outer ones before those in them."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left += node.values()
        elif isinstance(node, list):
            left += node


def _check_parsed(tree: Any, macros: frozenset[str]) -> set[str]:
    """Return the names of the parameters of a tree.

    Raises InputError for a node or a function that is not on the list.
    """
    names: set[str] = set()
    tables: set[int] = set()  # calls used as a table; they come after their parents
    for node in _nodes(tree):
        kind, expression = node.get("type"), node.get("class")
        if expression is None and isinstance(kind, str) and kind not in allowed.PARSED:
            raise InputError(f"SQL: give one query: {KINDS}; this one has {_words(kind)} in it")
        if expression is not None and expression not in allowed.EXPRESSIONS:
            raise InputError(f"SQL: {_words(expression)} is not allowed in a query")
        path = node.get("qualified_name", {}).get("path", [])
        if kind == "BASE_TABLE":
            if path[:-1] not in ([], ["main"], ["segrec"]):
                raise InputError(f"SQL: there is no table {'.'.join(path)} in an index")
        elif len(path) > 1:
            raise InputError(
                f"SQL: {'.'.join(path)} is not allowed: write {path[-1]} without what it is of, or "
                "within, as in upper(uri)"
            )
        name = node.get("function_name")
        if kind == "TABLE_FUNCTION":
            tables.add(id(node["function"]))
        known = macros | allowed.functions(tabular=id(node) in tables)
        if name is not None and name.lower() not in known:
            raise InputError(_refused(name))
        if expression == "PARAMETER":
            names.add(node["identifier"])
    return names


def _check_nesting(tree: Any, macros: frozenset[str]) -> None:
    """Raise InputError for deeply nested macros: each repeats its arguments."""
    left = [(tree, 0)]
    while left:
        node, depth = left.pop()
        if isinstance(node, dict):
            depth += node.get("function_name", "").lower() in macros
            if depth > _DEEPEST:
                raise InputError(
                    f"SQL: {node['function_name']} is nested in more than {_DEEPEST} calls of "
                    "recommend, pearson and the like: compute a part in a WITH"
                )
            left += ((inner, depth) for inner in node.values())
        elif isinstance(node, list):
            left += ((inner, depth) for inner in node)


_DEEPEST = 2


def _refused(name: str) -> str:
    return (
        f"SQL: the function {name} is not allowed; docs/sql.md says which are, and connect() is "
        "for programs of your own"
    )


def _words(kind: str) -> str:
    return kind.removesuffix("_QUERY_NODE").removesuffix("_NODE").replace("_", " ")


def _with_values(sql: str, tree: Any, parameters: Mapping[str, str]) -> str:
    """Return SQL with values in place of parameters: plans with parameters have no JSON."""
    text = sql.encode()
    nodes = [n for n in _nodes(tree) if n.get("class") == "PARAMETER"]
    for node in sorted(nodes, key=lambda n: n["query_location"], reverse=True):
        start = node["query_location"]
        end = start + node["query_location_length"]
        if text[start:end] != b"$" + node["identifier"].encode():
            raise InputError(f"SQL: write the parameter as ${node['identifier']}")
        value = f"CAST({quoted(parameters[node['identifier']])} AS VARCHAR)"
        text = text[:start] + value.encode() + text[end:]
    return text.decode()


def _check_bound(tree: Any) -> None:
    """Raise InputError for a plan with an operator or a function that is not on the list."""
    for node in _nodes(tree):
        kind = node.get("type")
        if isinstance(kind, str) and kind.startswith("LOGICAL_") and kind not in allowed.OPERATORS:
            raise InputError(f"SQL: {_words(kind.removeprefix('LOGICAL_'))} is not allowed")
        expression = node.get("expression_class")
        if expression is not None and expression not in allowed.BOUND:
            raise InputError(f"SQL: {_words(expression.removeprefix('BOUND_'))} is not allowed")
        if "qname" in node:
            *place, name = node["qname"]["path"]
            listed = allowed.functions(tabular=kind == "LOGICAL_GET")
            known = name.lower() in listed or name in allowed.INSIDE
            if place not in ([], ["system", "main"]) or not known:
                raise InputError(_refused(name))
