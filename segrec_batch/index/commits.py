"""Commits to Delta tables, also over a network that drops responses.

delta-rs repeats a request that the store refused temporarily. It does not repeat a request whose
response was cut off, and it takes its own commit for another run's if the response was dropped. So
each commit has a mark, by which it is recognised afterwards.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    RemoveAction,
    Transaction,
    create_table_with_add_actions,
)

from segrec_batch.index import delta
from segrec_batch.index.delta import retry
from segrec_batch.index.files import DataFile
from segrec_batch.index.schema import PARTITION

__all__ = ["CommitFailedError"]

_MARK = "commit"  # key of the mark in the information of a commit

Actions = list[AddAction | RemoveAction]


def create(index: str, table: str, schema: pa.Schema, names: Mapping[str, int]) -> None:
    """Create an empty table unless it exists; `names` are transaction identifiers."""
    uri, options = delta.location(index, table)
    with _unless(lambda: delta.exists(index, table)):
        retry(
            lambda: create_table_with_add_actions(
                uri,
                Schema.from_arrow(schema),
                [],
                mode="ignore",
                partition_by=delta.partition_by(table),
                name=table,
                description=f"segrec_batch index: {table}",
                storage_options=options,
                commit_properties=CommitProperties(
                    app_transactions=_transactions(names, 0, files=0)
                ),
            )
        )


def replace_files(
    index: str,
    table: str,
    wanted: Sequence[DataFile],
    names: Mapping[str, int] | None = None,
    always: bool = False,
) -> int:
    """Commit the difference between a table's newest version and the wanted files.

    Args:
        index: The index.
        table: Name of the table.
        wanted: Files that the table has afterwards.
        names: Transaction identifiers of the commit.
        always: Commit also if nothing differs.

    Returns:
        The version afterwards.

    Raises:
        CommitFailedError: Another run committed first.
    """
    latest = delta.open_table(index, table)
    actions = _actions(latest, table, wanted)
    if not actions and not always:
        return latest.version()
    after = latest.version() + 1
    transactions = _transactions(names or {}, after, len(wanted))
    with _commit(lambda: delta.open_table(index, table, after), names=transactions) as properties:
        retry(lambda: _write(latest, actions, delta.partition_by(table), properties))
    return after


def publish(
    index: str,
    images: DeltaTable,
    wanted: Sequence[DataFile],
    schema: pa.Schema,
    names: Mapping[str, int],
    info: Mapping[str, Any],
) -> None:
    """Commit the wanted files of `images`, with transaction identifiers and information.

    Raises CommitFailedError if another run committed first.
    """
    has_other_schema = images.schema() != Schema.from_arrow(schema)
    after = images.version() + 1
    transactions = _transactions(names, after, len(wanted))
    with _commit(
        lambda: delta.open_table(index, "images", after), info, transactions
    ) as properties:
        if has_other_schema:
            retry(lambda: _overwrite(images, wanted, schema, properties))
        else:
            retry(lambda: _write(images, _actions(images, "images", wanted), [], properties))


def append(index: str, table: str, rows: pa.Table, version: int) -> None:
    """Append rows after a version of a table whose files deltalake writes.

    A version of -1 creates the table. Raises CommitFailedError if the version has a successor.
    """
    uri, options = delta.location(index, table)
    if version < 0 and delta.exists(index, table):
        raise CommitFailedError(f"{uri} exists")
    target = uri if version < 0 else delta.open_table(index, table, version)
    with _commit(lambda: delta.open_table(index, table, version + 1)) as properties:
        retry(
            lambda: write_deltalake(
                target,
                rows,
                mode="error" if version < 0 else "append",
                storage_options=options,
                commit_properties=properties,
            )
        )


@contextmanager
def _commit(
    open_version: Callable[[], DeltaTable],
    info: Mapping[str, Any] | None = None,
    names: Sequence[Transaction] = (),
) -> Iterator[CommitProperties]:
    """Yield the properties of a commit that the block makes.

    Errors of the block are raised unless the version that `open_version` opens has the mark.
    """
    mark = uuid.uuid4().hex

    def is_committed() -> bool:
        (last,) = retry(lambda: open_version().history(1))
        return bool(last.get(_MARK) == mark)

    with _unless(is_committed):
        yield CommitProperties({**(info or {}), _MARK: mark}, 0, list(names))


@contextmanager
def _unless(is_done: Callable[[], bool]) -> Iterator[None]:
    """Raise errors of the block unless its work is done in spite of them."""
    try:
        yield
    except (DeltaError, OSError):
        with suppress(DeltaError, OSError):
            if is_done():
                return
        raise


def _actions(latest: DeltaTable, table: str, wanted: Sequence[DataFile]) -> Actions:
    """Return the actions that turn the files of the latest version into the wanted files."""
    after = {f.path: f for f in wanted}
    present = {f.path: f for f in delta.files(table, latest)}
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
    table: DeltaTable, actions: Actions, partition_by: list[str], properties: CommitProperties
) -> None:
    table.create_write_transaction(
        actions, "append", table.schema(), partition_by=partition_by, commit_properties=properties
    )


def _overwrite(
    table: DeltaTable, wanted: Sequence[DataFile], schema: pa.Schema, properties: CommitProperties
) -> None:
    """Replace the schema and all files of the previous version."""
    now = _milliseconds()
    table.create_write_transaction(
        [_add(f, now) for f in wanted],
        "overwrite",
        Schema.from_arrow(schema),
        partition_by=[],
        commit_properties=properties,
    )


def _transactions(names: Mapping[str, int], version: int, files: int) -> list[Transaction]:
    """Return the transaction identifiers of a commit; its own version is last in its entry."""
    values = {**names, delta.FILES: files, delta.VERSION: version}
    return [Transaction(name, value) for name, value in values.items()]


def _partition_values(file: DataFile) -> dict[str, str | None]:
    return {PARTITION[file.table]: file.partition} if file.table in PARTITION else {}


def _milliseconds() -> int:
    return int(time.time() * 1000)
