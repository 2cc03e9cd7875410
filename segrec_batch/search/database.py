"""An index as a DuckDB database: views of one snapshot, and the SQL functions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from segrec_batch.common.errors import IndexStateError, InputError, ModelError, StorageError
from segrec_batch.index.snapshot import Snapshot, empty_snapshot, model_uri, open_snapshot
from segrec_batch.model.names import check_class_names
from segrec_batch.model.spec import ModelSpec, bundle_id
from segrec_batch.search import cache_layout as layout
from segrec_batch.search.sql.connection import (
    Access,
    Settings,
    format_error,
    freeze,
    open_connection,
    restrict,
)
from segrec_batch.search.sql.remote import SnapshotFiles
from segrec_batch.search.sql.views import (
    create_views,
    list_duckdb_paths,
    quoted,
    register_pearson_udf,
)
from segrec_batch.sources import storage
from segrec_batch.sources.storage import SCHEMES, scheme_of
from segrec_batch.sources.strict_json import parse_json

CACHE = "cache"
"""The name under which a query cache is attached."""


@dataclass(frozen=True)
class Database:
    """One snapshot of an index, as views over its files or over the tables of a query cache."""

    connection: duckdb.DuckDBPyConnection
    index: str
    version: int
    model_id: str
    spec: ModelSpec
    is_cache: bool = False

    @property
    def bundle_id(self) -> str:
        """Id of the bundle that made the rows."""
        return bundle_id(self.model_id, self.spec)

    @property
    def model_uri(self) -> str:
        """URI of the bundle that made the rows."""
        return model_uri(self.index, self.bundle_id)


def connect(
    index: str,
    version: int | None = None,
    *,
    locked: bool = True,
    settings: Settings | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection on the newest snapshot of an index, or on that of a version.

    It has the views `images`, `regions`, `descriptors` and `failures` and the functions of
    `schemas/*.sql`, among them `pearson(a, b)` and `recommend(query, …)`; and `pearson_udf(a, b)`,
    which is in Python. The connection stays on this snapshot, even if images are indexed
    meanwhile.

    The connection runs any statement, but opens only the files of the snapshot, loads no extension
    and changes no setting; `locked=False` allows all that DuckDB allows, such as COPY. Both are for
    trusted SQL; use `segrec sql` for untrusted SQL.

        con = connect("s3://bucket/index")
        con.sql("SELECT uri FROM images WHERE coverage_car > 0.3")

    Args:
        index: an index, or a query cache as `segrec cache` makes it.
        version: of the index; None is the newest.
        locked: no other file can be opened, no setting changed.
        settings: options of DuckDB, e.g. `{"threads": 4, "memory_limit": "8GB"}`.

    Raises:
        IndexStateError: there is no index.
        InputError: DuckDB has no such setting.
    """
    access = Access.LOCKED if locked else Access.OPEN
    connection = open_index(index, version, access, settings).connection
    register_pearson_udf(connection)
    return connection


def open_index(
    index: str,
    version: int | None = None,
    access: Access = Access.LOCKED,
    settings: Settings | None = None,
) -> Database:
    """Open an index or a query cache for reading. Raises IndexStateError, InputError."""
    if not is_cache(index):
        return open_files(open_snapshot(storage.absolute(index), version), access, settings)
    cache = open_cache(index, access, settings)
    if version not in (None, cache.version):
        raise InputError(
            f"{index} is a query cache of version {cache.version}, not of {version}; open the "
            f"index itself, {cache.index}"
        )
    return cache


def open_files(
    snapshot: Snapshot, access: Access = Access.LOCKED, settings: Settings | None = None
) -> Database:
    """Open the files of a snapshot. Raises IndexStateError if files are gone."""
    connection = open_connection(settings=settings)
    by_snapshot_name = access is Access.SEALED or storage.is_remote(snapshot.index)
    if by_snapshot_name:
        connection.register_filesystem(SnapshotFiles([snapshot]))
        restrict(connection, access, folders=[f"{SnapshotFiles.protocol}://"])
    else:
        _check_regular(snapshot)
        files = [n for f in snapshot.all_files for n in list_duckdb_paths(f, snapshot.index)]
        restrict(connection, access, files)
    freeze(connection, access)
    with translate_errors(snapshot):
        create_views(connection, snapshot, by_snapshot_name)
    return Database(connection, snapshot.index, snapshot.version, snapshot.model_id, snapshot.spec)


def _check_regular(snapshot: Snapshot) -> None:
    """Raise IndexStateError for a data file that is not regular: DuckDB would wait for a pipe."""
    for file in snapshot.all_files:
        path = Path(file.uri(snapshot.index))
        if path.exists() and not path.is_file():
            raise IndexStateError(
                f"{path} is not a regular file; put it back from a backup, or index anew elsewhere"
            )


@contextmanager
def translate_errors(snapshot: Snapshot) -> Iterator[None]:
    """Translate DuckDB's errors inside the block into errors of this package.

    Missing or damaged files give IndexStateError; a failure of the store, or of the disk with
    DuckDB's own files, gives StorageError.
    """
    try:
        yield
    except duckdb.Error as error:
        kind, _, text = format_error(error).partition(": ")
        text = text or kind
        if kind.endswith("StorageError"):
            raise StorageError(text) from error
        if isinstance(error, duckdb.InterruptException | duckdb.OutOfMemoryException):
            raise
        is_disk_error = isinstance(error, duckdb.IOException) and ".parquet" not in text
        if not is_disk_error or kind.endswith("FileNotFoundError"):
            raise IndexStateError(
                f"{snapshot.index}: version {snapshot.version} has lost or damaged files: {text}; "
                "segrec maintain verify names them all. Put them back from a backup, roll back to "
                "a version that does not need them, or index anew elsewhere"
            ) from error
        raise StorageError(f"{text} (TMPDIR names the folder of temporary files)") from error


def is_cache(uri: str) -> bool:
    """Return whether a path is a local file: a query cache is a file, an index a folder."""
    return not storage.is_remote(uri) and Path(uri).is_file()


def open_cache(
    path: str, access: Access = Access.LOCKED, settings: Settings | None = None
) -> Database:
    """Open a query cache for reading. Raises InputError for any other file.

    The file is untrusted. It must have the tables that `segrec cache` makes; only these are used,
    with views and macros of this package.
    """
    try:
        # attached, not opened: DuckDB would return the old state of a file that was replaced
        connection = open_connection(settings=settings)
        restrict(connection, access, [path, f"{path}.wal"])
        connection.execute(f"ATTACH {quoted(path)} AS {CACHE} (READ_ONLY, TYPE duckdb)")
        freeze(connection, access)
        tables = layout.read_definitions(connection, CACHE)
        connection.execute(f"ATTACH ':memory:' AS {_EXPECTED}")
        layout.create_snapshot_table(connection, _EXPECTED)
    except duckdb.Error as error:
        raise _not_a_cache(path, format_error(error)) from error
    if not tables.items() >= layout.read_definitions(connection, _EXPECTED).items():
        raise _not_a_cache(path, f"it has no table segrec.{layout.SNAPSHOT} of the right columns")
    try:
        index, version, model_id, model = _read_identity(connection)
        layout.create_tables(connection, _EXPECTED, model)
        if not tables.items() >= layout.read_definitions(connection, _EXPECTED).items():
            raise ModelError("its tables have other columns")
    except (duckdb.Error, ModelError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} was made by another version of segrec_batch, or is damaged: "
            f"{format_error(error)}; delete it and create it again with segrec cache"
        ) from error
    connection.execute(f"DETACH {_EXPECTED}")
    layout.create_views_of_attached(connection, CACHE, model)
    return Database(connection, index, version, model_id, model, is_cache=True)


def _not_a_cache(path: str, reason: str) -> InputError:
    return InputError(f"{path} is not a query cache of `segrec cache`: {reason}")


def _read_identity(connection: duckdb.DuckDBPyConnection) -> tuple[str, int, str, ModelSpec]:
    """Read index, version, model_id and spec of a cache. Raises ValueError, ModelError."""
    rows = connection.execute(
        f"SELECT index, version, model_id, spec FROM {CACHE}.segrec.{layout.SNAPSHOT} "  # noqa: S608
        "WHERE version >= 0 AND regexp_full_match(model_id, '[0-9a-f]{16}') "
        f"AND strlen(index) <= {_LONGEST_URI} AND strlen(spec) <= {_LARGEST_SPEC} LIMIT 2"
    ).fetchall()
    if len(rows) != 1:
        raise ValueError("it does not name its index and version")
    ((index, version, model_id, text),) = rows
    scheme = scheme_of(index)
    if scheme not in SCHEMES or (scheme == "file" and not Path(index).is_absolute()):
        raise ValueError(f"its index {index[:80]!r} is neither an absolute path nor in a store")
    if not index.isprintable() or "::" in index:
        raise ValueError("the name of its index is not valid")
    spec = ModelSpec.from_json(parse_json(text.encode(), _LARGEST_SPEC))
    check_class_names(list(spec.classes))
    return index, version, model_id, spec


_EXPECTED = "expected"  # an in-memory database with the tables that a cache should have
_LONGEST_URI = 4096  # bytes
_LARGEST_SPEC = 2**24


def open_twin(database: Database) -> duckdb.DuckDBPyConnection:
    """Open a database with the same views and macros over empty tables; it can reach no file.

    SQL has the same meaning there, but no effect.
    """
    connection = open_connection()
    restrict(connection, Access.SEALED)
    freeze(connection, Access.SEALED)
    if database.is_cache:
        connection.execute(f"ATTACH ':memory:' AS {CACHE}")
        layout.create_snapshot_table(connection, CACHE)
        layout.create_tables(connection, CACHE, database.spec)
        layout.create_views_of_attached(connection, CACHE, database.spec)
    else:
        create_views(connection, empty_snapshot(database.index, "", database.spec))
    return connection


def open_database(
    path: str, snapshots: Sequence[Snapshot], **settings: str
) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB database that can read the files of snapshots and loads no extension.

    It is not locked: run only SQL of this package.
    """
    connection = open_connection(path, settings)
    if storage.is_remote(snapshots[0].index):
        connection.register_filesystem(SnapshotFiles(snapshots))
    return connection
