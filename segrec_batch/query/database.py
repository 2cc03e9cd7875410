"""An index as a DuckDB database: views of one snapshot, and the SQL functions."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from segrec_batch import storage
from segrec_batch.errors import IndexStateError, InputError, ModelError, StorageError
from segrec_batch.model.spec import ModelSpec, bundle_id
from segrec_batch.query import oracle
from segrec_batch.query.remote import SnapshotFiles
from segrec_batch.query.views import create_views, quoted
from segrec_batch.store.index import Snapshot, model_uri, open_snapshot


@dataclass(frozen=True)
class Database:
    """One snapshot of an index, as views over its files or as the tables of a query cache."""

    connection: duckdb.DuckDBPyConnection
    index: str
    version: int
    model_id: str
    spec: ModelSpec
    folders: tuple[str, ...]
    """Where DuckDB finds the rows; nothing if they are in the database itself."""

    @property
    def bundle_id(self) -> str:
        """The bundle that made the rows."""
        return bundle_id(self.model_id, self.spec)

    @property
    def model_uri(self) -> str:
        """Where it lies."""
        return model_uri(self.index, self.bundle_id)

    def lock(self) -> None:
        """From now on SQL can reach nothing but the rows, and no setting can change that."""
        folders = list(self.folders)
        self.connection.execute("SET allowed_directories = $folders", {"folders": folders})
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")


def connect(index: str, version: int | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection on the newest snapshot of an index, or on that of a version.

    `index` may also be a query cache, as `segrec duckdb` makes it.

    It has the views `images`, `regions`, `descriptors` and `failures` and the functions of
    `schemas/*.sql`, among them `pearson(a, b)` and `recommend(query, …)`; and `pearson_udf(a, b)`,
    which is in Python. The snapshot stays the same while the connection lives, whatever is indexed
    meanwhile. Raises IndexStateError if there is no index.

        con = connect("s3://bucket/index")
        con.sql("SELECT uri FROM images WHERE coverage_car > 0.3")
    """
    connection = open_index(index, version).connection
    oracle.register(connection)
    return connection


def open_index(index: str, version: int | None = None) -> Database:
    """An index, or a query cache, for questions. Raises IndexStateError, InputError."""
    if not is_cache(index):
        return open_files(open_snapshot(storage.absolute(index), version))
    found = open_cache(index)
    if version not in (None, found.version):
        raise InputError(
            f"{index} is a query cache of version {found.version}, not of {version}; ask the index "
            f"itself, {found.index}"
        )
    return found


def open_files(snapshot: Snapshot) -> Database:
    """A snapshot that is already open. Raises IndexStateError if files are gone."""
    connection = open_database(":memory:", [snapshot])
    with reading(snapshot):
        create_views(connection, snapshot)
    remote = storage.is_remote(snapshot.index)
    folder = f"{SnapshotFiles.protocol}://" if remote else snapshot.index
    return Database(
        connection, snapshot.index, snapshot.version, snapshot.model_id, snapshot.spec, (folder,)
    )


@contextmanager
def reading(snapshot: Snapshot) -> Iterator[None]:
    """DuckDB's errors while it reads a snapshot, as errors of ours.

    IndexStateError for files that are gone or damaged, StorageError for a store that fails, or for
    the disk on which DuckDB has its own files.
    """
    try:
        yield
    except duckdb.Error as error:
        kind, _, text = _said(error).partition(": ")
        if kind.endswith("StorageError"):
            raise StorageError(text) from error
        if ".parquet" in text or kind.endswith("FileNotFoundError"):
            raise IndexStateError(
                f"{snapshot.index}: version {snapshot.version} has lost or damaged files: {text}; "
                "jobs/maintain.py verify names them all. Put them back from a backup, roll back to "
                "a version that does not need them, or index anew elsewhere"
            ) from error
        if isinstance(error, duckdb.IOException):
            raise StorageError(f"{text} (TMPDIR names the folder of temporary files)") from error
        raise


def _said(error: duckdb.Error) -> str:
    """`KIND: TEXT`. DuckDB quotes the query and, of errors in Python, the whole traceback."""
    text = str(error).partition("\n\nLINE ")[0]
    return text.strip().rpartition("\n")[2].strip()


def is_cache(uri: str) -> bool:
    """Whether a path is that of a query cache: a local file, where an index is a folder."""
    return not storage.is_remote(uri) and Path(uri).is_file()


def open_cache(path: str) -> Database:
    """A query cache, to read. Raises InputError for a file that is none."""
    try:
        # not opened as the database itself: DuckDB would give a renewed file's old state again
        connection = duckdb.connect(":memory:", config=dict(_CLOSED))
        connection.execute(f"ATTACH {quoted(path)} AS cache (READ_ONLY)")
        connection.execute("USE cache")
        found = connection.execute("SELECT index, version, model_id, spec FROM segrec.snapshot")
        ((index, version, model_id, spec),) = found.fetchall()
    except duckdb.Error as error:
        raise InputError(f"{path} is not a query cache of `segrec duckdb`: {error}") from error
    try:
        model = ModelSpec.from_json(json.loads(spec))
    except ModelError as error:
        text = f"{path} was made by another version of segrec_batch; delete it and make it anew"
        raise InputError(text) from error
    return Database(connection, index, version, model_id, model, ())


def open_database(
    path: str, snapshots: Sequence[Snapshot], **settings: str
) -> duckdb.DuckDBPyConnection:
    """A DuckDB database that can read the files of snapshots and loads no extension."""
    connection = duckdb.connect(path, config={**_CLOSED, **settings})
    connection.execute("SET parquet_metadata_cache = true")
    if storage.is_remote(snapshots[0].index):
        connection.register_filesystem(SnapshotFiles(snapshots))
    return connection


_CLOSED: Mapping[str, bool | str] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # of table names by variables of the calling program
}


def query(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Sequence[object] | Mapping[str, object] = (),
) -> pa.Table:
    """Run SQL that returns rows. Raises InputError with DuckDB's message."""
    try:
        return connection.sql(sql, params=parameters or None).to_arrow_table()
    except duckdb.Error as error:
        said = _said(error) if "Traceback (" in str(error) else error
        raise InputError(f"SQL: {said}") from error


def read_only(sql: str) -> str:
    """The SQL itself, if it is one query. InputError if it is anything that could change something.

    `Database.lock` does not keep SQL from writing below the index, with COPY say.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise InputError(f"SQL: {error}") from error
    if [s.type for s in statements] != [duckdb.StatementType.SELECT] or _writes(sql):
        raise InputError("SQL: give one query: SELECT, FROM, WITH, VALUES, DESCRIBE or SUMMARIZE")
    return sql


def _writes(sql: str) -> bool:
    """Whether a query has COPY, INSERT, UPDATE or DELETE in a WITH, which DuckDB calls SELECT."""
    with duckdb.connect(config=dict(_CLOSED)) as connection:
        found = connection.execute("SELECT json_serialize_sql($sql::VARCHAR)", {"sql": sql})
        ((tree,),) = found.fetchall()
    return bool(json.loads(tree)["error"] or re.search(r'"type":"\w+_QUERY_NODE"', tree))
