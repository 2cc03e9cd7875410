"""Delta tables: open, compare with a wanted set of files, commit. The only place with deltalake."""

import json
import os
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

from segrec_batch import faults, storage
from segrec_batch.errors import IndexStateError, InputError, StorageError
from segrec_batch.store.commits import commit, unless, whole
from segrec_batch.store.files import DataFile
from segrec_batch.store.schema import PARTITION

__all__ = ["CommitFailedError"]

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
        raise IndexStateError(f"{index}: no index there; make one with jobs/index.py") from error
    except DeltaError as error:
        if version is not None:
            text = f"{index}: version {version} cannot be opened; see jobs/maintain.py history"
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
                commit_properties=CommitProperties(app_transactions=_transactions(names)),
            )
        )


def open_table(index: str, table: str, version: int | None = None) -> DeltaTable:
    """A version of a table, or the newest. It stays as it was when the table is written."""
    uri, options = _location(index, table)
    return whole(lambda: DeltaTable(uri, version, storage_options=options))


def history(index: str, table: str) -> list[dict[str, Any]]:
    """What the commits of a table say of themselves, newest first."""
    return whole(open_table(index, table).history)


def files(name: str, table: DeltaTable) -> tuple[DataFile, ...]:
    """The files of an open table."""
    key = PARTITION.get(name)
    return tuple(
        DataFile(
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


def _known(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that have statistics: plain values."""
    return {k: v for k, v in statistics.items() if isinstance(v, str | int | float)}


def bring_to(index: str, table: str, wanted: Sequence[DataFile]) -> int:
    """Commit what makes a table's newest version the wanted one; the version that then is."""
    latest = open_table(index, table)
    actions = _actions(latest, table, wanted)
    if not actions:
        return latest.version()
    after = latest.version() + 1
    with commit(lambda: open_table(index, table, after)) as properties:
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
    named = _transactions(names)
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


def read(index: str, table: str) -> tuple[pa.Table | None, int]:
    """All rows of such a table and its version; None and -1 if there is none."""
    try:
        found = open_table(index, table)
    except TableNotFoundError:
        return None, -1
    return whole(found.to_pyarrow_table), found.version()


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


def _transactions(names: Mapping[str, int]) -> list[Transaction]:
    return [Transaction(name, version) for name, version in names.items()]


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
