"""Read access to Delta tables: open, compare with our schemas, list files."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from segrec_batch.common.errors import IndexStateError, InputError, StorageError
from segrec_batch.index.files import DataFile, described_file
from segrec_batch.index.parquet import read_parquet
from segrec_batch.index.schema import PARTITION, coverage_column, schemas
from segrec_batch.model.names import BACKGROUND, check_class_names
from segrec_batch.sources import object_store, storage, store_errors
from segrec_batch.sources.strict_json import shorten

T = TypeVar("T")

VERSION, FILES = "version", "files"
"""Transaction identifiers of each commit: its version, and the number of files in the table then.

delta-rs reads an entry of the log that is cut short as if it were whole; `check` compares these."""

_TRIES = 5  # of a call whose response was cut off
_WRITTEN = re.compile(r"[0-9A-Za-z_.-]{1,200}\.parquet")  # names that delta-rs gives to files
_DAMAGE = (  # messages of delta-rs about missing or truncated files of a log
    "gap",
    "Invalid Checkpoint",
    "No table metadata",
    "No protocol",
    "Json error",
    "Corrupt footer",
    "Parquet error",
)


@contextmanager
def errors(index: str, version: int | None = None) -> Iterator[None]:
    """Translate errors of delta-rs into ours; CommitFailedError stays as it is."""
    try:
        with store_errors.store_errors(index):
            yield
    except CommitFailedError:
        raise
    except (TableNotFoundError, FileNotFoundError) as error:
        raise IndexStateError(f"{index}: no index there; make one with segrec index") from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # delta-rs raises it for impossible logs
            raise IndexStateError(f"{index}: its log is damaged") from error
        if not isinstance(error, DeltaError):
            raise
        if version is not None:
            text = f"{index}: version {version} cannot be opened; see segrec maintain history"
            raise IndexStateError(f"{text} ({store_errors.describe(error)})") from error
        raise StorageError(f"{index}: {store_errors.describe(error)}") from error


def retry(call: Callable[[], T]) -> T:
    """Return the result of a call; repeat it while its response is cut off, 5 calls at most."""
    for _ in range(_TRIES - 1):
        try:
            return call()
        except (DeltaError, OSError) as error:
            if "response body" not in str(error):
                raise
    return call()


def exists(index: str, table: str) -> bool:
    """Return True if a table exists."""
    uri, options = location(index, table)
    return retry(lambda: DeltaTable.is_deltatable(uri, options))


def open_table(index: str, table: str, version: int | None = None) -> DeltaTable:
    """Return a version of a table, by default the newest; later writes do not change it.

    Raises IndexStateError if the newest version is unknown because the log is damaged.
    """
    uri, options = location(index, table)
    if version is not None and not is_version(version):
        raise DeltaError(f"there is no version {version}")
    try:
        return retry(lambda: DeltaTable(uri, version, storage_options=options))
    except DeltaError as error:
        reason = store_errors.describe(error)
        if version is not None or not any(text in reason for text in _DAMAGE):
            raise
        raise IndexStateError(_damaged(index, table, reason)) from error


def _damaged(index: str, table: str, reason: str) -> str:
    remedy = "put back what is missing (bucket versions, backup)"
    if "_last_checkpoint hint" in reason:
        remedy += "; or delete _last_checkpoint there, if no entry is missing"
    return f"{index}: the log in {table}/_delta_log is damaged: {remedy} ({reason[:300]})"


def is_version(version: int) -> bool:
    """Return True if a table can have a version; delta-rs counts up to any number."""
    return 0 <= version < 2**22


def check(index: str, name: str, table: DeltaTable, members: Sequence[DataFile]) -> None:
    """Raise IndexStateError if the log is incomplete up to the version of an open table.

    Tables whose last commit has no such identifiers are accepted as they are.
    """
    version, stated = table.version(), table.transaction_version(VERSION)
    if stated is None:
        return
    if stated != version or table.transaction_version(FILES) != len(members):
        entry = f"{name}/_delta_log/{version:020}.json"
        remedy = "run segrec index again"
        if name != "images":
            remedy = "go back to a version before it with segrec maintain rollback"
        raise IndexStateError(
            f"{index}: {entry} or an entry before it is empty, cut short or not this program's: "
            "put it back (bucket versions, backup); or, if it is the newest, delete it and "
            f"{remedy}"
        )


def check_table(name: str, table: DeltaTable) -> tuple[str, ...]:
    """Compare the protocol and the columns of a table with ours.

    Call it before reading anything else of the table: Arrow makes extension types of a log's column
    metadata, and readers that know deletion vectors or mapped columns return other rows.

    Returns:
        The foreground classes of the coverage columns of `images`; empty for other tables.

    Raises:
        ValueError: The table is of another kind.
    """
    protocol = table.protocol()
    if protocol.min_reader_version != 1 or protocol.reader_features:
        features = ", ".join(protocol.reader_features or ())
        raise ValueError(
            f"{name} needs a reader of version {protocol.min_reader_version} ({shorten(features)})"
        )
    if table.metadata().partition_columns != partition_by(name):
        raise ValueError(f"{name} is not partitioned as it should be")
    columns = [(field.name, field.metadata) for field in table.schema().fields]
    if any(metadata for _, metadata in columns):
        raise ValueError(f"columns of {name} have metadata")
    prefix = coverage_column("")
    classes = tuple(
        column.removeprefix(prefix)
        for column, _ in columns
        if name == "images" and column.startswith(prefix) and column != coverage_column(BACKGROUND)
    )
    check_class_names(classes)
    if table.schema() != Schema.from_arrow(schemas(classes)[name]):
        raise ValueError(f"its columns are not those of {name}")
    return classes


def last_commit(table: DeltaTable) -> dict[str, Any]:
    """Return the information of the commit of an open table's version."""
    return next(iter(retry(lambda: table.history(1))), {})


def committed_at(table: DeltaTable) -> float:
    """Return the time of the commit of an open table's version, in seconds since 1970."""
    return float(last_commit(table).get("timestamp", 0)) / 1000


def history(index: str, table: str) -> list[dict[str, Any]]:
    """Return the information of a table's commits, newest first."""
    return retry(open_table(index, table).history)


def files(name: str, table: DeltaTable) -> tuple[DataFile, ...]:
    """Return the files of an open table. Raises ValueError for a file that is none of ours."""
    key = PARTITION.get(name)
    return tuple(
        described_file(
            table=name,
            path=action["path"],
            size=action["size_bytes"],
            rows=action["num_records"],
            partition=action["partition"][key] if key else None,
            stats=json.dumps(
                {
                    "numRecords": action["num_records"],
                    "minValues": _plain_values(action["min"]),
                    "maxValues": _plain_values(action["max"]),
                    "nullCount": _plain_values(action["null_count"]),
                }
            ),
        )
        for action in _to_rows(table.get_add_actions())
    )


def _to_rows(stream: Any) -> list[dict[str, Any]]:
    """Return Arrow data of any library as plain values; pa.table() would import pandas."""
    rows: list[dict[str, Any]] = pa.RecordBatchReader.from_stream(stream).read_all().to_pylist()
    return rows


def _plain_values(statistics: Mapping[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in (statistics or {}).items() if isinstance(v, str | int | float)}


def read(index: str, table: str, schema: pa.Schema) -> tuple[pa.Table | None, int]:
    """Return all rows and the version of a table that deltalake has written.

    Returns None and -1 if the table does not exist. Raises ValueError, pa.ArrowException for a
    table of another kind.
    """
    try:
        opened = open_table(index, table)
    except TableNotFoundError:
        return None, -1
    if opened.schema() != Schema.from_arrow(schema) or opened.protocol().reader_features:
        raise ValueError(f"its columns are not those of {table}")
    rows = [schema.empty_table()]
    for action in _to_rows(retry(opened.get_add_actions)):
        if not _WRITTEN.fullmatch(action["path"]):
            raise ValueError(f"{shorten(action['path'])} is no path of a file of {table}")
        content = storage.read_bytes(storage.join(index, table, action["path"]))
        rows.append(read_parquet(content, schema.names).cast(schema))
    return pa.concat_tables(rows), opened.version()


def partition_by(table: str) -> list[str]:
    """Return the partition columns of a table."""
    return [PARTITION[table]] if table in PARTITION else []


def location(index: str, table: str) -> tuple[str, dict[str, str]]:
    """Return the URI of a table and the storage options of delta-rs beside `AWS_*`.

    Raises InputError for places that delta-rs cannot use.
    """
    if "%" in index:
        raise InputError(f"{index}: delta-rs cannot keep tables below a name with % in it")
    uri = storage.join(index, table)
    if not uri.startswith(("s3://", "s3a://")):
        return uri, {}
    return uri, object_store.delta_options()
