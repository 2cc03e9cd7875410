"""Views of a snapshot over its Parquet files, and the SQL of `schemas/`."""

import re
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from duckdb import sqltypes
from duckdb.func import FunctionNullHandling, PythonUDFType

from segrec_batch.index.files import DataFile
from segrec_batch.index.schema import PARTITION, coverage_column, schemas
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.spec import ModelSpec
from segrec_batch.search.sql.remote import SnapshotFiles
from segrec_batch.sources import storage

PART = "parse_filename(filename, true) AS part"
"""SQL for the column with the part of a row."""


def create_views(
    connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, by_snapshot_name: bool | None = None
) -> None:
    """Create the views of all tables, and the macros. Raises duckdb.IOException.

    Args:
        connection: an empty database.
        snapshot: the snapshot.
        by_snapshot_name: read files through `SnapshotFiles`, as is done for any remote index.
    """
    for table, schema in schemas(snapshot.spec.classes).items():
        scan = select(snapshot, table, by_snapshot_name=by_snapshot_name)
        if scan is None:
            scan = f"FROM empty_{table}"
            empty = pa.RecordBatchReader.from_batches(schema, [])
            connection.from_arrow(empty).create(f"empty_{table}")
        connection.execute(f"CREATE VIEW {table} AS {scan}")
    create_functions(connection, snapshot.spec)
    connection.execute(schema_file("views.sql"))
    create_table_macros(connection, snapshot.spec.classes)


def create_functions(connection: duckdb.DuckDBPyConnection, spec: ModelSpec) -> None:
    """Create the functions of `functions.sql`, and those that depend on the length of a feature."""
    connection.execute(schema_file("functions.sql"))
    connection.execute(sign_functions(spec.sign_words))


def sign_functions(words: int) -> str:
    """Return SQL that replaces `sign_words` and `sign_distance` for some number of 64-bit words.

    The words are fields of a struct, which DuckDB compares 1.5 to 3 times as fast as a list.
    """
    fields = ", ".join(f"w{i}: bits[{i}]" for i in range(1, words + 1))
    counts = (f"bit_count(xor(a['w{i}'], b['w{i}']))::INTEGER" for i in range(1, words + 1))
    return (
        f"CREATE OR REPLACE MACRO sign_words(bits) AS {{{fields}}};\n"
        f"CREATE OR REPLACE MACRO sign_distance(a, b) AS {' + '.join(counts)};"
    )


def create_table_macros(connection: duckdb.DuckDBPyConnection, classes: Sequence[str]) -> None:
    """Create the view `stale`, the table macros and the comments, which use the views of tables."""
    for name in ("stale.sql", "recommend.sql", "feedback.sql"):
        connection.execute(schema_file(name))
    connection.execute(schema_file("comments.sql"))
    for name in classes:
        text = f"Share of the image, 0 to 1, that {name} fills (σ)"
        column = f"images.{identifier(coverage_column(name))}"
        connection.execute(f"COMMENT ON COLUMN {column} IS {quoted(text)}")


def select(
    snapshot: Snapshot, table: str, *extra: str, by_snapshot_name: bool | None = None
) -> str | None:
    """Return SQL for the rows of a table, with extra columns; None if the table has no files."""
    schema = schemas(snapshot.spec.classes)[table]
    groups: dict[str | None, list[DataFile]] = {}
    for file in snapshot.files[table]:
        groups.setdefault(file.partition, []).append(file)
    names = {d.id: d.name for d in snapshot.spec.descriptors}
    scans = [
        f"SELECT {', '.join([*_columns(table, schema, names.get(part or '', part)), *extra])} "  # noqa: S608
        f"FROM {_read(snapshot, files, by_snapshot_name)}"
        for part, files in groups.items()
    ]
    return " UNION ALL ".join(scans) or None


def select_with_part(snapshot: Snapshot, table: str, columns: str) -> str | None:
    """Return SQL for columns and the `part` of a table's rows; None if it has no files.

    The table is not partitioned.
    """
    files = snapshot.files[table]
    return f"SELECT {columns}, {PART} FROM {_read(snapshot, files)}" if files else None  # noqa: S608


def schema_file(name: str) -> str:
    """Return a file of `schemas/`, from the installed package or the checkout."""
    package = Path(__file__).parents[2]
    folder = package / "schemas"
    if not folder.is_dir():
        folder = package.parent / "schemas"
    return (folder / name).read_text()


def quoted(value: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return the name of a column, table or database as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def list_duckdb_paths(file: DataFile, index: str) -> list[str]:
    """Return the texts by which DuckDB may name a local file: its path, and a pattern of it."""
    path = file.uri(index)
    return sorted({path, _escape(path)})


def _columns(table: str, schema: pa.Schema, part: str | None) -> list[str]:
    key = PARTITION.get(table)
    return [
        f"{quoted(str(part))} AS {identifier(n)}" if n == key else identifier(n)
        for n in schema.names
    ]


def _read(
    snapshot: Snapshot, files: Sequence[DataFile], by_snapshot_name: bool | None = None
) -> str:
    """Return SQL that scans files by name: a pattern could match more than the snapshot."""
    if by_snapshot_name or storage.is_remote(snapshot.index):
        uris = [SnapshotFiles.uri(file) for file in files]
    else:
        uris = [_escape(file.uri(snapshot.index)) for file in files]
    return f"read_parquet([{', '.join(map(quoted, uris))}])"


def _escape(path: str) -> str:
    return _MAGIC.sub(r"[\1]", path)


_MAGIC = re.compile(r"([*?\[])")  # wildcards: DuckDB treats each name as a pattern


def register_pearson_udf(connection: duckdb.DuckDBPyConnection) -> None:
    """Add `pearson_udf(a, b)`: the published formula in NumPy, to check the macro `pearson`."""
    vector = duckdb.list_type(sqltypes.DOUBLE)
    connection.create_function(
        "pearson_udf",
        _pearson,
        [vector, vector],
        sqltypes.DOUBLE,
        type=PythonUDFType.ARROW,
        null_handling=FunctionNullHandling.SPECIAL,
    )


def _pearson(a: pa.Array, b: pa.Array) -> pa.Array:
    values = [_pearson_of(x.values, y.values) for x, y in zip(a, b, strict=True)]
    return pa.array(values, pa.float64())


def _pearson_of(a: pa.Array | None, b: pa.Array | None) -> float | None:
    """Return Abdullah 2026, eq. 6; None for a constant vector, NaN or NULL."""
    if a is None or b is None:
        return None
    x, y = a.to_numpy(zero_copy_only=False), b.to_numpy(zero_copy_only=False)
    if len(x) != len(y):
        raise ValueError(f"vectors of {len(x)} and {len(y)} dimensions")
    if not len(x) or not np.ptp(x) > 0 or not np.ptp(y) > 0:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    return float((dx * dy).sum() / np.sqrt((dx**2).sum() * (dy**2).sum()))
