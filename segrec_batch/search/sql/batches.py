"""Results of SQL that are larger than memory: Arrow batches, as DuckDB produces them."""

from collections.abc import Iterator, Mapping

import duckdb
import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.search.sql.connection import one_line


def run(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, object] | None = None
) -> None:
    """Run SQL for its effect. Raises InputError with DuckDB's message."""
    try:
        connection.execute(sql, parameters)
    except duckdb.Error as error:
        raise InputError(f"SQL: {one_line(error)}") from error


def batches(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Mapping[str, object],
    rows: int,
) -> Iterator[pa.RecordBatch]:
    """The rows that SQL returns, about `rows` at a time. Raises InputError.

    The connection can do nothing else until the last of them is taken.
    """
    try:
        # not execute(): that holds all rows before it gives the first
        found = connection.sql(sql, params=parameters or None)
        reader: pa.RecordBatchReader = found.to_arrow_reader(rows)
        yield from reader
    # OSError: so Arrow hands on what DuckDB says once there are rows
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise InputError(f"SQL: {one_line(error)}") from error
