"""Delta tables: open, compare with a wanted set of files, commit. The only place with deltalake."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    RemoveAction,
    Transaction,
    create_table_with_add_actions,
)

from segrec_batch.common import faults
from segrec_batch.common.errors import IndexStateError, InputError, StorageError
from segrec_batch.index.commits import commit, unless, whole
from segrec_batch.index.files import DataFile, described_file
from segrec_batch.index.parquet import read_parquet
from segrec_batch.index.schema import PARTITION, coverage_column, schemas
from segrec_batch.model.spec import BACKGROUND, check_class_names
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import shorten

__all__ = ["CommitFailedError"]

VERSION, FILES = "version", "files"
"""Transaction identifiers of every commit: its own version, and how many files the table then has.

By these `check` knows an entry of the log that is cut short: delta-rs takes its lines for all."""

_DAMAGE = (  # what delta-rs says of a log that lacks files, or has some that are cut short
    "gap",
    "Invalid Checkpoint",
    "No table metadata",
    "No protocol",
    "Json error",
    "Corrupt footer",
    "Parquet error",
)

_S3_OPTIONS = {
    # finds profiles and roles beside the environment, and heeds AWS_EC2_METADATA_DISABLED, also
    # where there is an endpoint; without it only s3fs does
    "AWS_FORCE_CREDENTIAL_LOAD": "true",
    "connect_timeout": "5s",
    "retry_timeout": "15s",
}


@contextmanager
def errors(index: str, version: int | None = None) -> Iterator[None]:
    """What delta-rs raises, as errors of ours; a lost race stays a CommitFailedError."""
    try:
        with faults.store_errors(index):
            yield
    except CommitFailedError:
        raise
    except (TableNotFoundError, FileNotFoundError) as error:
        raise IndexStateError(f"{index}: no index there; make one with segrec index") from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of delta-rs, at logs that cannot be
            raise IndexStateError(f"{index}: its log is damaged") from error
        if not isinstance(error, DeltaError):
            raise
        if version is not None:
            text = f"{index}: version {version} cannot be opened; see segrec maintain history"
            raise IndexStateError(f"{text} ({faults.describe(error)})") from error
        raise StorageError(f"{index}: {faults.describe(error)}") from error


def exists(index: str, table: str) -> bool:
    """Whether a table is there."""
    uri, options = _location(index, table)
    return whole(lambda: DeltaTable.is_deltatable(uri, options))


def create(index: str, table: str, schema: pa.Schema, names: Mapping[str, int]) -> None:
    """Make an empty table, whose first version has transaction identifiers; or leave it."""
    uri, options = _location(index, table)
    with unless(lambda: exists(index, table)):
        whole(
            lambda: create_table_with_add_actions(
                uri,
                Schema.from_arrow(schema),
                [],
                mode="ignore",
                partition_by=_partition_by(table),
                name=table,
                description=f"segrec_batch index: {table}",
                storage_options=options,
                commit_properties=CommitProperties(
                    app_transactions=_transactions(names, 0, files=0)
                ),
            )
        )


def open_table(index: str, table: str, version: int | None = None) -> DeltaTable:
    """A version of a table, or the newest. It stays as it was when the table is written.

    Raises IndexStateError if the newest version cannot be told, for its log is damaged.
    """
    uri, options = _location(index, table)
    if version is not None and not can_be_version(version):
        raise DeltaError(f"there is no version {version}")
    try:
        return whole(lambda: DeltaTable(uri, version, storage_options=options))
    except DeltaError as error:
        said = faults.describe(error)
        if version is not None or not any(text in said for text in _DAMAGE):
            raise
        raise IndexStateError(_damaged(index, table, said)) from error


def _damaged(index: str, table: str, said: str) -> str:
    way_out = "put back what is missing (bucket versions, backup)"
    if "_last_checkpoint hint" in said:
        way_out += "; or delete _last_checkpoint there, if no entry is missing"
    return f"{index}: the log in {table}/_delta_log is damaged: {way_out} ({said[:300]})"


def check(index: str, name: str, table: DeltaTable, found: Sequence[DataFile]) -> None:
    """Raise IndexStateError if the log is not whole up to the version of an open table.

    Tables that were last written before commits had these identifiers are taken as they are.
    """
    version, stated = table.version(), table.transaction_version(VERSION)
    if stated is None:
        return
    if stated != version or table.transaction_version(FILES) != len(found):
        entry = f"{name}/_delta_log/{version:020}.json"
        way_out = "run segrec index again"
        if name != "images":
            way_out = "go back to a version before it with segrec maintain rollback"
        raise IndexStateError(
            f"{index}: {entry} or an entry before it is empty, cut short or not this program's: "
            "put it back (bucket versions, backup); or, if it is the newest, delete it and "
            f"{way_out}"
        )


def committed_at(table: DeltaTable) -> float:
    """When the version of an open table was committed, in seconds since 1970."""
    return float(last_commit(table).get("timestamp", 0)) / 1000


def can_be_version(version: int) -> bool:
    """Whether a table can have a version; delta-rs counts up to any that it is asked for."""
    return 0 <= version < 2**22


def history(index: str, table: str) -> list[dict[str, Any]]:
    """What the commits of a table say of themselves, newest first."""
    return whole(open_table(index, table).history)


def check_table(name: str, table: DeltaTable) -> tuple[str, ...]:
    """Hold the protocol and the columns of a table of an index against ours.

    Before anything else is asked of it: Arrow would make extension types of what a log says of
    columns, and readers that know deletion vectors or mapped columns would see other rows.

    Returns:
        The foreground classes that the columns of `images` are of.

    Raises:
        ValueError: It is of another kind than tables of this project.
    """
    protocol = table.protocol()
    if protocol.min_reader_version != 1 or protocol.reader_features:
        features = ", ".join(protocol.reader_features or ())
        raise ValueError(
            f"{name} needs a reader of version {protocol.min_reader_version} ({shorten(features)})"
        )
    if table.metadata().partition_columns != _partition_by(name):
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
    """What the commit of an open table's version says of itself."""
    return next(iter(whole(lambda: table.history(1))), {})


def files(name: str, table: DeltaTable) -> tuple[DataFile, ...]:
    """The files of an open table. Raises ValueError for any that is not of this project's kind."""
    key = PARTITION.get(name)
    return tuple(
        described_file(
            table=name,
            path=a["path"],
            size=a["size_bytes"],
            rows=a["num_records"],
            partition=a["partition"][key] if key else None,
            stats=json.dumps(
                {
                    "numRecords": a["num_records"],
                    "minValues": _known(a["min"]),
                    "maxValues": _known(a["max"]),
                    "nullCount": _known(a["null_count"]),
                }
            ),
        )
        for a in _rows(table.get_add_actions())
    )


def _rows(stream: Any) -> list[dict[str, Any]]:
    """Arrow data of any library as plain values; pa.table() would import pandas first."""
    rows: list[dict[str, Any]] = pa.RecordBatchReader.from_stream(stream).read_all().to_pylist()
    return rows


def _known(statistics: Mapping[str, Any] | None) -> dict[str, Any]:
    """The columns that have statistics: plain values."""
    return {k: v for k, v in (statistics or {}).items() if isinstance(v, str | int | float)}


def bring_to(
    index: str,
    table: str,
    wanted: Sequence[DataFile],
    names: Mapping[str, int] | None = None,
    always: bool = False,
) -> int:
    """Commit what makes a table's newest version the wanted one; the version that then is.

    `names` are transaction identifiers of the commit; with `always` there is one in any case.
    Raises CommitFailedError if another commit came first.
    """
    latest = open_table(index, table)
    actions = _actions(latest, table, wanted)
    if not actions and not always:
        return latest.version()
    after = latest.version() + 1
    named = _transactions(names or {}, after, len(wanted))
    with commit(lambda: open_table(index, table, after), names=named) as properties:
        whole(lambda: _write(latest, actions, _partition_by(table), properties))
    return after


def publish(
    index: str,
    images: DeltaTable,
    wanted: Sequence[DataFile],
    schema: pa.Schema,
    names: Mapping[str, int],
    info: Mapping[str, Any],
) -> None:
    """Commit what makes `images` the wanted one, with transaction identifiers and information.

    Raises CommitFailedError if another commit came first.
    """
    changed = images.schema() != Schema.from_arrow(schema)
    after = images.version() + 1
    named = _transactions(names, after, len(wanted))
    with commit(lambda: open_table(index, "images", after), info, named) as properties:
        if changed:
            whole(lambda: _overwrite(images, wanted, schema, properties))
        else:
            whole(lambda: _write(images, _actions(images, "images", wanted), [], properties))


def append(index: str, table: str, rows: pa.Table, version: int) -> None:
    """Add rows to a table that deltalake writes itself, as the successor of a version (-1: none).

    Raises CommitFailedError if it has one already.
    """
    if version < 0 and exists(index, table):
        raise CommitFailedError(f"{_location(index, table)[0]} exists")
    uri, options = _location(index, table)
    target = uri if version < 0 else open_table(index, table, version)
    with commit(lambda: open_table(index, table, version + 1)) as properties:
        whole(
            lambda: write_deltalake(
                target,
                rows,
                mode="error" if version < 0 else "append",
                storage_options=options,
                commit_properties=properties,
            )
        )


def read(index: str, table: str, schema: pa.Schema) -> tuple[pa.Table | None, int]:
    """All rows of such a table and its version; None and -1 if there is none.

    Raises ValueError, pa.ArrowException for a table of another kind.
    """
    try:
        found = open_table(index, table)
    except TableNotFoundError:
        return None, -1
    if found.schema() != Schema.from_arrow(schema) or found.protocol().reader_features:
        raise ValueError(f"its columns are not those of {table}")
    rows = [schema.empty_table()]
    for action in _rows(whole(found.get_add_actions)):
        if not _WRITTEN.fullmatch(action["path"]):
            raise ValueError(f"{shorten(action['path'])} is no path of a file of {table}")
        content = storage.read_bytes(storage.join(index, table, action["path"]))
        rows.append(read_parquet(content, schema.names).cast(schema))
    return pa.concat_tables(rows), found.version()


_WRITTEN = re.compile(r"[0-9A-Za-z_.-]{1,200}\.parquet")  # names that delta-rs gives to files


def _actions(
    latest: DeltaTable, table: str, wanted: Sequence[DataFile]
) -> list[AddAction | RemoveAction]:
    """From the files of the latest version, published or not, to the wanted ones."""
    after = {f.path: f for f in wanted}
    present = {f.path: f for f in files(table, latest)}
    now = _milliseconds()
    return [
        *(_add(f, now) for path, f in after.items() if path not in present),
        *(_remove(f, now) for path, f in present.items() if path not in after),
    ]


def _add(file: DataFile, now: int) -> AddAction:
    return AddAction(file.path, file.size, _partition_values(file), now, True, file.stats)


def _remove(file: DataFile, now: int) -> RemoveAction:
    return RemoveAction(
        file.path,
        deletion_timestamp=now,
        data_change=True,
        size=file.size,
        partition_values=_partition_values(file),
    )


def _write(
    table: DeltaTable,
    actions: list[AddAction | RemoveAction],
    partition_by: list[str],
    properties: CommitProperties,
) -> None:
    table.create_write_transaction(
        actions, "append", table.schema(), partition_by=partition_by, commit_properties=properties
    )


def _overwrite(
    table: DeltaTable, wanted: Sequence[DataFile], schema: pa.Schema, properties: CommitProperties
) -> None:
    """Take out all files of the version before, and take on the schema."""
    now = _milliseconds()
    table.create_write_transaction(
        [_add(f, now) for f in wanted],
        "overwrite",
        Schema.from_arrow(schema),
        partition_by=[],
        commit_properties=properties,
    )


def _transactions(names: Mapping[str, int], version: int, files: int) -> list[Transaction]:
    """Return the transaction identifiers of a commit; its own version comes last in its entry."""
    return [Transaction(k, v) for k, v in {**names, FILES: files, VERSION: version}.items()]


def _partition_by(table: str) -> list[str]:
    return [PARTITION[table]] if table in PARTITION else []


def _partition_values(file: DataFile) -> dict[str, str | None]:
    return {PARTITION[file.table]: file.partition} if file.table in PARTITION else {}


def _location(index: str, table: str) -> tuple[str, dict[str, str]]:
    """The URI of a table, and what delta-rs needs to know beside `AWS_*` to open it."""
    if "%" in index:
        raise InputError(f"{index}: delta-rs cannot keep tables below a name with % in it")
    uri = storage.join(index, table)
    if not uri.startswith(("s3://", "s3a://")):
        return uri, {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "https://")
    if not endpoint.startswith(("http://", "https://")):  # delta-rs panics
        raise InputError(f"AWS_ENDPOINT_URL is {endpoint!r}; it begins with http:// or https://")
    plain = {"AWS_ALLOW_HTTP": "true"} if endpoint.startswith("http://") else {}
    return uri, _S3_OPTIONS | plain


def _milliseconds() -> int:
    return int(time.time() * 1000)
