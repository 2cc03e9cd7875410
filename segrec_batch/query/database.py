"""An index as a DuckDB database: views over the files of one snapshot, and the SQL functions.

The only place that imports duckdb.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from segrec_batch import storage
from segrec_batch.errors import InputError
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
    """The same for a snapshot that is already open."""
    connection = duckdb.connect(
        config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    )
    if "://" in snapshot.index:
        connection.register_filesystem(storage.filesystem(snapshot.index)[0])
    for table, schema in schemas(snapshot.spec.classes).items():
        _create_view(connection, table, schema, snapshot)
    connection.execute(sql_file("macros.sql"))
    return connection


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
        _scan(snapshot.index, table, schema, part, files)
        for part, files in _by_partition(snapshot.files[table]).items()
    ]
    connection.execute(f"CREATE VIEW {table} AS " + " UNION ALL ".join(scans))


def _by_partition(files: Sequence[DataFile]) -> Mapping[str | None, list[DataFile]]:
    parts: dict[str | None, list[DataFile]] = {}
    for file in files:
        parts.setdefault(file.partition, []).append(file)
    return parts


def _scan(
    index: str, table: str, schema: pa.Schema, part: str | None, files: Sequence[DataFile]
) -> str:
    """A partition's files, all of them named: a glob could see more than the snapshot."""
    key = PARTITION.get(table)
    columns = [f"{_text(str(part))} AS {n}" if n == key else f'"{n}"' for n in schema.names]
    paths = ", ".join(_text(file.uri(index)) for file in files)
    return f"SELECT {', '.join(columns)} FROM read_parquet([{paths}])"  # noqa: S608


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
