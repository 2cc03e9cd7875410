"""Read Delta tables: open them, compare them with our schemas, list their files."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from segrec_batch.common.errors import IndexStateError, InputError, StorageError
from segrec_batch.index.files import DataFile, parse_data_file
from segrec_batch.index.parquet import read_parquet
from segrec_batch.index.schema import PARTITION, coverage_column, schemas
from segrec_batch.model.names import BACKGROUND, check_class_names
from segrec_batch.sources import object_store, storage, store_errors
from segrec_batch.sources.strict_json import shorten

T = TypeVar("T")

VERSION, FILES = "version", "files"
"""Transaction identifiers of each commit: its version, and the number of files in the table then.

delta-rs accepts an entry of the log that is cut short; `check_log` detects it by these numbers."""

_CALLS = 5  # maximum number of calls if responses are cut off
_DELTALAKE_FILE = re.compile(r"[0-9A-Za-z_.-]{1,200}\.parquet")  # file names of delta-rs
_DAMAGE_TEXTS = (  # messages of delta-rs about missing or truncated files of a log
    "gap",
    "Invalid Checkpoint",
    "No table metadata",
    "No protocol",
    "Json error",
    "Corrupt footer",
    "Parquet error",
)


@contextmanager
def convert_errors(index: str, version: int | None = None) -> Iterator[None]:
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
    """Return the result of a call; repeat it, 5 calls at most, while its response is cut off."""
    for _ in range(_CALLS - 1):
        try:
            return call()
        except (DeltaError, OSError) as error:
            if "response body" not in str(error):
                raise
    return call()


def exists(index: str, table: str) -> bool:
    """Return True if a table exists."""
    uri, options = locate_table(index, table)
    return retry(lambda: DeltaTable.is_deltatable(uri, options))


def open_table(index: str, table: str, version: int | None = None) -> DeltaTable:
    """Return a version of a table, by default the newest; later writes do not change it.

    Raises IndexStateError if the newest version is unknown because the log is damaged.
    """
    uri, options = locate_table(index, table)
    if version is not None and not is_version(version):
        raise DeltaError(f"there is no version {version}")
    try:
        return retry(lambda: DeltaTable(uri, version, storage_options=options))
    except DeltaError as error:
        reason = store_errors.describe(error)
        if version is not None or not any(text in reason for text in _DAMAGE_TEXTS):
            raise
        raise IndexStateError(_describe_damage(index, table, reason)) from error


def _describe_damage(index: str, table: str, reason: str) -> str:
    remedy = "put back what is missing (bucket versions, backup)"
    if "_last_checkpoint hint" in reason:
        remedy += "; or delete _last_checkpoint there, if no entry is missing"
    return f"{index}: the log in {table}/_delta_log is damaged: {remedy} ({reason[:300]})"


def is_version(version: int) -> bool:
    """Return True if a table can have a version; delta-rs counts up to any number."""
    return 0 <= version < 2**22


def check_log(index: str, name: str, table: DeltaTable, files: Sequence[DataFile]) -> None:
    """Raise IndexStateError if the log of an open table is incomplete up to its version.

    A table whose last commit lacks the identifiers VERSION and FILES is accepted.
    """
    version, recorded = table.version(), table.transaction_version(VERSION)
    if recorded is None:
        return
    if recorded != version or table.transaction_version(FILES) != len(files):
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
    """Check that the protocol and the columns of a table are ours.

    Call it before reading anything else of the table: Arrow makes extension types from column
    metadata in a log, and readers with deletion vectors or mapped columns return other rows.

    Returns:
        The foreground classes of the coverage columns of `images`; empty for other tables.

    Raises:
        ValueError: The table is none of ours.
    """
    protocol = table.protocol()
    if protocol.min_reader_version != 1 or protocol.reader_features:
        features = ", ".join(protocol.reader_features or ())
        raise ValueError(
            f"{name} needs a reader of version {protocol.min_reader_version} ({shorten(features)})"
        )
    if table.metadata().partition_columns != get_partition_columns(name):
        raise ValueError(f"{name} is not partitioned by {get_partition_columns(name)}")
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


def read_last_commit(table: DeltaTable) -> dict[str, Any]:
    """Return the `commitInfo` of an open table's version."""
    return next(iter(retry(lambda: table.history(1))), {})


def read_commit_time(table: DeltaTable) -> float:
    """Return the time of the commit of an open table's version, in seconds since 1970."""
    return float(read_last_commit(table).get("timestamp", 0)) / 1000


def read_history(index: str, table: str) -> list[dict[str, Any]]:
    """Return the `commitInfo` of a table's commits, newest first."""
    return retry(open_table(index, table).history)


def list_files(name: str, table: DeltaTable) -> tuple[DataFile, ...]:
    """Return the files of an open table. Raises ValueError for a file that cannot be ours."""
    partition_column = PARTITION.get(name)
    return tuple(
        parse_data_file(
            table=name,
            path=action["path"],
            size=action["size_bytes"],
            rows=action["num_records"],
            partition=action["partition"][partition_column] if partition_column else None,
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
    """Return an Arrow stream as Python values; pa.table() would import pandas."""
    rows: list[dict[str, Any]] = pa.RecordBatchReader.from_stream(stream).read_all().to_pylist()
    return rows


def _plain_values(statistics: Mapping[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in (statistics or {}).items() if isinstance(v, str | int | float)}


def read_rows(index: str, table: str, schema: pa.Schema) -> tuple[pa.Table | None, int]:
    """Return all rows and the version of a table that deltalake has written.

    Returns None and -1 if the table does not exist. Raises ValueError, pa.ArrowException for a
    table of another kind.
    """
    try:
        delta_table = open_table(index, table)
    except TableNotFoundError:
        return None, -1
    if delta_table.schema() != Schema.from_arrow(schema) or delta_table.protocol().reader_features:
        raise ValueError(f"its columns are not those of {table}")
    rows = [schema.empty_table()]
    for action in _to_rows(retry(delta_table.get_add_actions)):
        if not _DELTALAKE_FILE.fullmatch(action["path"]):
            raise ValueError(f"{shorten(action['path'])} is no path of a file of {table}")
        content = storage.read_bytes(storage.join(index, table, action["path"]))
        rows.append(read_parquet(content, schema.names).cast(schema))
    return pa.concat_tables(rows), delta_table.version()


def get_partition_columns(table: str) -> list[str]:
    """Return the partition columns of a table."""
    return [PARTITION[table]] if table in PARTITION else []


def locate_table(index: str, table: str) -> tuple[str, dict[str, str]]:
    """Return the URI of a table, and delta-rs's storage options in addition to `AWS_*`.

    Raises InputError for a URI that delta-rs cannot use.
    """
    if "%" in index:
        raise InputError(f"{index}: delta-rs cannot keep tables below a name with % in it")
    uri = storage.join(index, table)
    if not uri.startswith(("s3://", "s3a://")):
        return uri, {}
    return uri, object_store.get_delta_options()
