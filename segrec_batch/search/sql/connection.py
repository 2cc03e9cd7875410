"""DuckDB connections that can read the rows of an index and nothing else."""

import atexit
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.common.host import usable_memory
from segrec_batch.distributed.scratch import scratch_folder

Settings = Mapping[str, str | int | bool]
"""Options of DuckDB by name, e.g. `{"threads": 4, "memory_limit": "8GB"}`."""

_CLOSED_SETTINGS: Settings = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # a table name cannot mean a Python variable
    "allow_community_extensions": False,
}


class Access(Enum):
    """Rights of SQL on a connection beyond reading its rows.

    OPEN: everything that DuckDB can do. LOCKED: SQL opens no other file, changes no setting, and
    spills to a private folder. SEALED: SQL opens no local file at all; DuckDB reads local rows
    through read-only handles.
    """

    OPEN = "open"
    LOCKED = "locked"
    SEALED = "sealed"


def open_connection(path: str = ":memory:", settings: Settings | None = None) -> "_Connection":
    """Open a DuckDB database that loads no extension by itself. Raises InputError."""
    connection = duckdb.connect(path, config=dict(_CLOSED_SETTINGS))
    connection.execute("SET parquet_metadata_cache = true")
    for name, value in (settings or {}).items():
        if not name.isidentifier():
            raise InputError(f"{name!r} is no setting of DuckDB; duckdb_settings() lists them")
        try:
            connection.execute(f"SET {name} = $value", {"value": value})
        except duckdb.Error as error:
            raise InputError(f"the setting {name} = {value!r}: {format_error(error)}") from error
    return connection


def restrict(
    connection: "_Connection",
    access: Access,
    files: Sequence[str] = (),
    folders: Sequence[str] = (),
) -> None:
    """Remove permissions that `access` lacks, before a connection reads untrusted files.

    Args:
        files: paths on the local disk that may be read, by name.
        folders: prefixes of names in registered file systems.
    """
    if access is Access.OPEN:
        return
    temp_directory = connection.sql("SELECT current_setting('temp_directory')").fetchall()
    if access is Access.SEALED:
        connection.execute("SET temp_directory = ''")
        _limit_memory(connection, usable_memory() // 2)
    elif temp_directory == [(_DEFAULT_SPILL,)]:
        _spill_privately(connection)
    connection.execute("SET allowed_paths = $files", {"files": list(files)})
    connection.execute("SET allowed_directories = $folders", {"folders": list(folders)})
    connection.execute("SET enable_external_access = false")


def freeze(connection: "_Connection", access: Access) -> None:
    """Lock the settings of a connection; a sealed one can no longer open local files."""
    if access is Access.SEALED:
        connection.execute("SET disabled_filesystems = 'LocalFileSystem'")
    if access is not Access.OPEN:
        connection.execute("SET lock_configuration = true")


def format_error(error: Exception) -> str:
    """Return DuckDB's message without the quoted statement, and without a Python traceback."""
    text = str(error).partition("\n\nLINE ")[0]
    if "Traceback (" in text:
        text = text.strip().rpartition("\n")[2]
    return " ".join(text.split())


_Connection = duckdb.DuckDBPyConnection
_DEFAULT_SPILL = (
    ".tmp"  # for a database in memory; it is in the working directory, which SQL could read
)


def _limit_memory(connection: "_Connection", limit: int) -> None:
    """Limit the memory of a connection to `limit` bytes unless its limit is lower."""
    before = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    connection.execute(f"SET memory_limit = '{limit}B'")
    after = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    ((was_lower,),) = connection.execute(
        "SELECT parse_formatted_bytes($before) < parse_formatted_bytes($after)",
        {"before": before[0][0], "after": after[0][0]},
    ).fetchall()
    if was_lower:
        connection.execute("SET memory_limit = $before", {"before": before[0][0]})


def _spill_privately(connection: "_Connection") -> None:
    """Make a connection spill to a folder that only this user can enter."""
    folder = str(_spill_folder(os.getpid()) / uuid.uuid4().hex)
    connection.execute("SET temp_directory = $folder", {"folder": folder})


@cache
def _spill_folder(_: int) -> Path:
    """Return the folder of this process for spilled data; it is deleted with the process.

    It outlives a connection, since cursors may still use it.
    """
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(scratch_folder("segrec-sql-"))


def run(
    connection: "_Connection", sql: str, parameters: Mapping[str, object] | None = None
) -> None:
    """Run SQL and ignore its result. Raises InputError with DuckDB's message."""
    try:
        connection.execute(sql, parameters)
    except duckdb.Error as error:
        raise InputError(f"SQL: {format_error(error)}") from error


def query(
    connection: "_Connection", sql: str, parameters: Sequence[object] | Mapping[str, object] = ()
) -> pa.Table:
    """Return the rows of SQL. Raises InputError with DuckDB's message."""
    try:
        return connection.sql(sql, params=parameters or None).to_arrow_table()
    except duckdb.Error as error:
        raise InputError(f"SQL: {format_error(error)}") from error


def read_batches(
    connection: "_Connection", sql: str, parameters: Mapping[str, object], rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of SQL in batches of about `rows`. Raises InputError.

    Use the connection for nothing else until the last batch.
    """
    try:
        # not execute(): it holds all rows before it returns the first
        relation = connection.sql(sql, params=parameters or None)
        reader: pa.RecordBatchReader = relation.to_arrow_reader(rows)
        yield from reader
    # OSError: Arrow raises it for an error of DuckDB after the first rows
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise InputError(f"SQL: {format_error(error)}") from error


@dataclass(frozen=True)
class Work:
    """Time of one query, and the rows, row groups and bytes that its scans read."""

    rows: int
    row_groups: int
    all_row_groups: int
    bytes_read: int
    """Bytes read from files, not from DuckDB's memory."""
    seconds: float

    def __str__(self) -> str:
        return (
            f"read {self.rows:,} rows of {self.row_groups:,} of {self.all_row_groups:,} row "
            f"groups, {self.bytes_read / 1e6:,.1f} MB from files, in {1000 * self.seconds:,.0f} ms"
        )


PROFILED: Settings = {"enable_profiling": "no_output"}
"""Settings under which a connection records its work, for `read_last_work`."""


def read_last_work(connection: "_Connection") -> Work:
    """Return the work of the last query of a connection with the settings PROFILED."""
    profile = json.loads(connection.get_profiling_information())
    totals = profile["query"]
    return Work(
        rows=totals["total_rows_scanned"],
        row_groups=totals["total_row_groups_scanned"],
        all_row_groups=totals["total_row_groups_to_scan"],
        bytes_read=profile["io"]["total_bytes_read"],
        seconds=totals["total_time"],
    )
