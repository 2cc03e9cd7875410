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
from segrec_batch.search.sql.connection import format_error
from segrec_batch.search.sql.limits import Limits, memory_limit, time_limit
from segrec_batch.search.sql.views import quoted

STATEMENTS = "SELECT, FROM, WITH, VALUES, DESCRIBE or SUMMARIZE"


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
        return collect_rows(database.connection, sql, parameters, limits.result_bytes)


def collect_rows(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, str], max_bytes: int
) -> pa.Table:
    """Return the rows, `max_bytes` bytes at most, of SQL that a QueryGuard has checked.

    Raises InputError.
    """
    try:
        relation = connection.sql(sql, params=dict(parameters) or None)
        with relation.to_arrow_reader(_ROWS) as reader:  # left open, it keeps the connection busy
            return _read_rows(reader, max_bytes)
    # OSError: Arrow raises it for an error of DuckDB after the first rows
    except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
        raise InputError(f"SQL: {_describe_error(error)}") from error


_ROWS = 2**15  # rows of a batch
_PLAN_BYTES = 2 * 2**30


def _read_rows(reader: pa.RecordBatchReader, max_bytes: int) -> pa.Table:
    batches, size = [], 0
    for batch in reader:
        batches.append(batch)
        size += batch.nbytes
        if size > max_bytes:
            raise InputError(
                f"SQL: the answer is larger than {max_bytes / 2**30:.3g} GiB: ask for fewer "
                "columns or rows (LIMIT)"
            )
    return pa.Table.from_batches(batches, reader.schema)


def _describe_error(error: Exception) -> str:
    is_memory_error = isinstance(error, duckdb.OutOfMemoryException | MemoryError)
    if is_memory_error or str(error).startswith("Out of Memory Error"):
        return "it needs more memory than it may use: ask for fewer rows or columns at once"
    return format_error(error)


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
            tree = _parse(self._twin, sql)
            names = _check_parsed(tree, self._macros)
            _check_nesting(tree, self._macros)
            values = parameters or {}
            for name in sorted(names ^ values.keys()):
                raise InputError(
                    f"SQL: -p {name}=TEXT is missing"
                    if name in names
                    else f"SQL: it has no ${name}, for which there is a value"
                )
            text = _insert_values(sql, tree, values)
            _check_bound(_serialise(self._twin, "json_serialize_plan", text)["plans"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._twin.close()


def _parse(twin: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """Return the parse tree of SQL that is one statement that only reads."""
    try:
        size = len(sql.encode())
    except UnicodeError as error:
        raise InputError("SQL: the text is not UTF-8") from error
    if size > _MAX_BYTES:
        raise InputError(f"SQL: a query may have {_MAX_BYTES:,} bytes; this one has {size:,}")
    try:
        statements = twin.extract_statements(sql)
    except duckdb.Error as error:
        raise InputError(f"SQL: {format_error(error)}") from error
    if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
        raise InputError(f"SQL: give one query: {STATEMENTS}")
    return _serialise(twin, "json_serialize_sql", sql)["statements"]


_MAX_BYTES = 2**20


def _serialise(twin: duckdb.DuckDBPyConnection, function: str, sql: str) -> Any:
    call = f"SELECT {function}($sql::VARCHAR, skip_null := true, skip_empty := true)"
    try:
        ((text,),) = twin.execute(call, {"sql": sql}).fetchall()
        tree = json.loads(text)
    except duckdb.Error as error:
        raise InputError(f"SQL: {_describe_error(error)}") from error
    except RecursionError as error:
        raise InputError("SQL: it is nested too deeply") from error
    except MemoryError as error:
        raise InputError("SQL: its plan is too large: ask for less at once") from error
    if tree["error"]:
        kind = str(tree.get("error_type", "")).capitalize()
        if kind == "Not implemented":  # no SELECT, or parts that have no JSON
            raise InputError(f"SQL: give one query: {STATEMENTS} ({tree['error_message']})")
        raise InputError(f"SQL: {kind} Error: {' '.join(tree['error_message'].split())}")
    return tree


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects of a tree, each before those inside it."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield node
            pending += node.values()
        elif isinstance(node, list):
            pending += node


def _check_parsed(tree: Any, macros: frozenset[str]) -> set[str]:
    """Return the names of the parameters of a tree.

    Raises InputError for a node or a function that is not on the list.
    """
    names: set[str] = set()
    tables: set[int] = set()  # calls used as a table; they come after their parents
    for node in _nodes(tree):
        kind, expression = node.get("type"), node.get("class")
        if expression is None and isinstance(kind, str) and kind not in allowed.PARSE_NODES:
            raise InputError(
                f"SQL: give one query: {STATEMENTS}; this one contains {_to_words(kind)}"
            )
        if expression is not None and expression not in allowed.EXPRESSIONS:
            raise InputError(f"SQL: {_to_words(expression)} is not allowed in a query")
        path = node.get("qualified_name", {}).get("path", [])
        if kind == "BASE_TABLE":
            if path[:-1] not in ([], ["main"], ["segrec"]):
                raise InputError(f"SQL: there is no table {'.'.join(path)} in an index")
        elif len(path) > 1:
            raise InputError(
                f"SQL: {'.'.join(path)} is not allowed: write {path[-1]} without a prefix; "
                "pass the value to a function as in upper(uri)"
            )
        name = node.get("function_name")
        if kind == "TABLE_FUNCTION":
            tables.add(id(node["function"]))
        allowed_names = macros | allowed.list_functions(tabular=id(node) in tables)
        if name is not None and name.lower() not in allowed_names:
            raise InputError(_describe_refusal(name))
        if expression == "PARAMETER":
            names.add(node["identifier"])
    return names


def _check_nesting(tree: Any, macros: frozenset[str]) -> None:
    """Raise InputError for deeply nested macros: a macro copies its arguments."""
    pending = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, dict):
            depth += node.get("function_name", "").lower() in macros
            if depth > _MAX_DEPTH:
                raise InputError(
                    f"SQL: {node['function_name']} is nested in more than {_MAX_DEPTH} calls of "
                    "recommend, pearson and the like: compute a part in a WITH"
                )
            pending += ((inner, depth) for inner in node.values())
        elif isinstance(node, list):
            pending += ((inner, depth) for inner in node)


_MAX_DEPTH = 2


def _describe_refusal(name: str) -> str:
    return (
        f"SQL: the function {name} is not allowed; docs/sql.md lists the allowed ones; your own "
        "programs can use connect()"
    )


def _to_words(kind: str) -> str:
    return kind.removesuffix("_QUERY_NODE").removesuffix("_NODE").replace("_", " ")


def _insert_values(sql: str, tree: Any, parameters: Mapping[str, str]) -> str:
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
            raise InputError(f"SQL: {_to_words(kind.removeprefix('LOGICAL_'))} is not allowed")
        expression = node.get("expression_class")
        if expression is not None and expression not in allowed.BOUND_EXPRESSIONS:
            raise InputError(f"SQL: {_to_words(expression.removeprefix('BOUND_'))} is not allowed")
        if "qname" in node:
            *schema, name = node["qname"]["path"]
            listed = allowed.list_functions(tabular=kind == "LOGICAL_GET")
            is_allowed = name.lower() in listed or name in allowed.INTERNAL_FUNCTIONS
            if schema not in ([], ["system", "main"]) or not is_allowed:
                raise InputError(_describe_refusal(name))
