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
from segrec_batch.store.files import DataFile
from segrec_batch.store.schema import PARTITION

__all__ = ["CommitFailedError"]


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
            text = f"{index}: version {version} cannot be opened: {error}"
            raise IndexStateError(text) from error
        raise StorageError(f"{index}: {error}") from error


def exists(index: str, table: str) -> bool:
    """Whether a table is there."""
    return DeltaTable.is_deltatable(_url(index, table), _options())


def create(index: str, table: str, schema: pa.Schema, names: Mapping[str, int]) -> None:
    """Make an empty table, whose first version has transaction identifiers; or leave it."""
    create_table_with_add_actions(
        _url(index, table),
        Schema.from_arrow(schema),
        [],
        mode="ignore",
        partition_by=_partition_by(table),
        name=table,
        description=f"segrec_batch index: {table}",
        storage_options=_options(),
        commit_properties=CommitProperties(app_transactions=_transactions(names)),
    )


def open_table(index: str, table: str, version: int | None = None) -> DeltaTable:
    """A version of a table, or the newest. It stays as it was when the table is written."""
    return DeltaTable(_url(index, table), version, storage_options=_options())


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
        for a in pa.table(table.get_add_actions()).to_pylist()
    )


def _known(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that have statistics: plain values."""
    return {k: v for k, v in statistics.items() if isinstance(v, str | int | float)}


def bring_to(index: str, table: str, wanted: Sequence[DataFile]) -> int:
    """Commit what makes a table's newest version the wanted one; the version that then is."""
    latest = open_table(index, table)
    actions = _actions(latest, table, wanted)
    if not actions:
        return latest.version()
    _write(latest, actions, _partition_by(table), CommitProperties(max_commit_retries=0))
    return latest.version() + 1


def publish(
    images: DeltaTable,
    wanted: Sequence[DataFile],
    schema: pa.Schema,
    names: Mapping[str, int],
    info: Mapping[str, Any],
) -> None:
    """Commit what makes `images` the wanted one, with transaction identifiers and information.

    Raises CommitFailedError if another commit came first.
    """
    properties = CommitProperties(dict(info), 0, _transactions(names))
    if images.schema() == Schema.from_arrow(schema):
        _write(images, _actions(images, "images", wanted), [], properties)
        return
    now = _milliseconds()
    # overwriting takes out all files of the version before, and takes on the schema
    images.create_write_transaction(
        [_add(f, now) for f in wanted],
        "overwrite",
        Schema.from_arrow(schema),
        partition_by=[],
        commit_properties=properties,
    )


def append(index: str, table: str, rows: pa.Table, version: int) -> None:
    """Add rows to a table that deltalake writes itself, as the successor of a version (-1: none).

    Raises CommitFailedError if it has one already.
    """
    uri = _url(index, table)
    target: DeltaTable | str = uri
    if version >= 0:
        target = DeltaTable(uri, version, storage_options=_options())
    elif DeltaTable.is_deltatable(uri, _options()):
        raise CommitFailedError(f"{uri} exists")
    write_deltalake(
        target,
        rows,
        mode="append" if version >= 0 else "error",
        storage_options=_options(),
        commit_properties=CommitProperties(max_commit_retries=0),
    )


def read(index: str, table: str) -> tuple[pa.Table | None, int]:
    """All rows of such a table and its version; None and -1 if there is none."""
    try:
        found = open_table(index, table)
    except TableNotFoundError:
        return None, -1
    return found.to_pyarrow_table(), found.version()


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


def _transactions(names: Mapping[str, int]) -> list[Transaction]:
    return [Transaction(name, version) for name, version in names.items()]


def _partition_by(table: str) -> list[str]:
    return [PARTITION[table]] if table in PARTITION else []


def _partition_values(file: DataFile) -> dict[str, str | None]:
    return {PARTITION[file.table]: file.partition} if file.table in PARTITION else {}


def _url(index: str, table: str) -> str:
    if "%" in index:
        raise InputError(f"{index}: delta-rs cannot keep tables below a name with % in it")
    return storage.join(index, table)


def _milliseconds() -> int:
    return int(time.time() * 1000)


def _options() -> dict[str, str]:
    """delta-rs reads `AWS_*` itself; plain http must be allowed where the endpoint is that."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    return {"AWS_ALLOW_HTTP": "true"} if endpoint.startswith("http://") else {}
