"""An index as a DuckDB database: views over the files of one snapshot, and the SQL functions.

The only place that imports duckdb.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from segrec_batch import storage
from segrec_batch.errors import IndexStateError, InputError
from segrec_batch.query.remote import SnapshotFiles
from segrec_batch.store.files import DataFile
from segrec_batch.store.index import Snapshot, open_snapshot
from segrec_batch.store.schema import PARTITION, schemas


def connect(index: str, version: int | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection on the newest snapshot of an index, or on that of a version.

    It has the views `images`, `regions` and `failures` and the functions of `schemas/macros.sql`:
    `pearson(a, b)`, `recommend(query, …)`. The snapshot stays the same while the connection lives,
    whatever is indexed meanwhile. Raises IndexStateError if there is no index.

        con = connect("s3://bucket/index")
        con.sql("SELECT uri FROM images WHERE coverage_car > 0.3")
    """
    return connect_snapshot(open_snapshot(storage.absolute(index), version))


def connect_snapshot(snapshot: Snapshot) -> duckdb.DuckDBPyConnection:
    """The same for a snapshot that is already open. Raises IndexStateError if files are gone."""
    connection = open_database(":memory:", [snapshot])
    try:
        for table, schema in schemas(snapshot.spec.classes).items():
            _create_view(connection, table, schema, snapshot)
    except duckdb.IOException as error:
        text = f"{snapshot.index}: version {snapshot.version} has lost files: {error}"
        raise IndexStateError(f"{text}; vacuum keeps those of its retention only") from error
    for name in ("views.sql", "macros.sql"):
        connection.execute(sql_file(name))
    return connection


def open_database(
    path: str, snapshots: Sequence[Snapshot], **settings: str
) -> duckdb.DuckDBPyConnection:
    """A DuckDB database that can read the files of snapshots and loads no extension."""
    fixed = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    connection = duckdb.connect(path, config={**fixed, **settings})
    connection.execute("SET parquet_metadata_cache = true")
    if storage.is_remote(snapshots[0].index):
        connection.register_filesystem(SnapshotFiles(snapshots))
    return connection


def select_with_part(snapshot: Snapshot, table: str, columns: str) -> str | None:
    """SQL that selects columns and the `part` of a table's rows; None if it has no files.

    For tables that are not partitioned.
    """
    files = snapshot.files[table]
    if not files:
        return None
    return f"SELECT {columns}, parse_filename(filename, true) AS part FROM {_read(snapshot, files)}"  # noqa: S608


def sql_file(name: str) -> str:
    """A file of `schemas/`: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    folder = package / "schemas"
    if not folder.is_dir():
        folder = package.parent / "schemas"
    return (folder / name).read_text()


def query(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Sequence[object] | Mapping[str, object] = (),
) -> pa.Table:
    """Run SQL that returns rows. Raises InputError with DuckDB's message."""
    try:
        return connection.sql(sql, params=parameters or None).to_arrow_table()
    except duckdb.Error as error:
        raise InputError(f"SQL: {error}") from error


def _create_view(
    connection: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema, snapshot: Snapshot
) -> None:
    if not snapshot.files[table]:
        connection.from_arrow(schema.empty_table()).create(table)
        return
    scans = [
        _scan(snapshot, table, schema, part, files)
        for part, files in _by_partition(snapshot.files[table]).items()
    ]
    connection.execute(f"CREATE VIEW {table} AS " + " UNION ALL ".join(scans))


def _by_partition(files: Sequence[DataFile]) -> Mapping[str | None, list[DataFile]]:
    parts: dict[str | None, list[DataFile]] = {}
    for file in files:
        parts.setdefault(file.partition, []).append(file)
    return parts


def _scan(
    snapshot: Snapshot, table: str, schema: pa.Schema, part: str | None, files: Sequence[DataFile]
) -> str:
    key = PARTITION.get(table)
    columns = [f"{_text(str(part))} AS {n}" if n == key else f'"{n}"' for n in schema.names]
    return f"SELECT {', '.join(columns)} FROM {_read(snapshot, files)}"  # noqa: S608


def _read(snapshot: Snapshot, files: Sequence[DataFile]) -> str:
    """A scan of files, all of them named: a pattern could match more than the snapshot."""
    if storage.is_remote(snapshot.index):
        uris = [SnapshotFiles.uri(file) for file in files]
    else:
        uris = [_MAGIC.sub(r"[\1]", file.uri(snapshot.index)) for file in files]
    return f"read_parquet([{', '.join(map(_text, uris))}])"


_MAGIC = re.compile(r"([*?\[])")  # DuckDB takes each name for a pattern


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
