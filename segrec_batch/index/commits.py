"""Commit to Delta tables, also over a network that drops responses.

delta-rs repeats a request that the store refused temporarily. It does not repeat a request whose
response was cut off; if the response to its own commit is lost, it reports a conflict with another
run. So each commit has a random mark: a version with the mark was committed here.
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

_MARK_KEY = "commit"  # key of the mark in the `commitInfo` of a commit

Actions = list[AddAction | RemoveAction]


def create_table(index: str, table: str, schema: pa.Schema, identifiers: Mapping[str, int]) -> None:
    """Create an empty table unless it exists; `identifiers` are its transaction identifiers."""
    uri, options = delta.locate_table(index, table)
    with _ignore_errors_if(lambda: delta.exists(index, table)):
        retry(
            lambda: create_table_with_add_actions(
                uri,
                Schema.from_arrow(schema),
                [],
                mode="ignore",
                partition_by=delta.get_partition_columns(table),
                name=table,
                description=f"segrec_batch index: {table}",
                storage_options=options,
                commit_properties=CommitProperties(
                    app_transactions=_to_transactions(identifiers, 0, files=0)
                ),
            )
        )


def replace_files(
    index: str,
    table: str,
    files: Sequence[DataFile],
    identifiers: Mapping[str, int] | None = None,
    even_if_equal: bool = False,
) -> int:
    """Commit the difference between a table's newest version and `files`.

    Args:
        index: The index.
        table: Name of the table.
        files: All files of the table after the commit.
        identifiers: Transaction identifiers of the commit, with their values.
        even_if_equal: Commit even if the table has these files already.

    Returns:
        The version after the commit.

    Raises:
        CommitFailedError: Another run committed first.
    """
    latest = delta.open_table(index, table)
    actions = _make_actions(latest, table, files)
    if not actions and not even_if_equal:
        return latest.version()
    next_version = latest.version() + 1
    transactions = _to_transactions(identifiers or {}, next_version, len(files))
    with _make_properties(
        lambda: delta.open_table(index, table, next_version), identifiers=transactions
    ) as properties:
        retry(lambda: _write(latest, actions, delta.get_partition_columns(table), properties))
    return next_version


def publish_images(
    index: str,
    images: DeltaTable,
    files: Sequence[DataFile],
    schema: pa.Schema,
    identifiers: Mapping[str, int],
    info: Mapping[str, Any],
) -> None:
    """Commit `files` as all files of `images`, with transaction identifiers and information.

    Raises CommitFailedError if another run committed first.
    """
    has_other_schema = images.schema() != Schema.from_arrow(schema)
    next_version = images.version() + 1
    transactions = _to_transactions(identifiers, next_version, len(files))
    with _make_properties(
        lambda: delta.open_table(index, "images", next_version), info, transactions
    ) as properties:
        if has_other_schema:
            retry(lambda: _write_schema(images, files, schema, properties))
        else:
            retry(lambda: _write(images, _make_actions(images, "images", files), [], properties))


def append_rows(index: str, table: str, rows: pa.Table, version: int) -> None:
    """Append rows to a version of a table; deltalake writes the file.

    A version of -1 creates the table. Raises CommitFailedError if the version has a successor.
    """
    uri, options = delta.locate_table(index, table)
    if version < 0 and delta.exists(index, table):
        raise CommitFailedError(f"{uri} exists")
    destination = uri if version < 0 else delta.open_table(index, table, version)
    with _make_properties(lambda: delta.open_table(index, table, version + 1)) as properties:
        retry(
            lambda: write_deltalake(
                destination,
                rows,
                mode="error" if version < 0 else "append",
                storage_options=options,
                commit_properties=properties,
            )
        )


@contextmanager
def _make_properties(
    open_version: Callable[[], DeltaTable],
    info: Mapping[str, Any] | None = None,
    identifiers: Sequence[Transaction] = (),
) -> Iterator[CommitProperties]:
    """Yield the properties of the commit that the block makes.

    An error of the block is ignored if the version that `open_version` opens has the mark, which
    shows that the commit was made.
    """
    mark = uuid.uuid4().hex

    def is_committed() -> bool:
        (newest,) = retry(lambda: open_version().history(1))
        return bool(newest.get(_MARK_KEY) == mark)

    with _ignore_errors_if(is_committed):
        yield CommitProperties({**(info or {}), _MARK_KEY: mark}, 0, list(identifiers))


@contextmanager
def _ignore_errors_if(is_done: Callable[[], bool]) -> Iterator[None]:
    """Ignore an error of the block if `is_done` returns True after it."""
    try:
        yield
    except (DeltaError, OSError):
        with suppress(DeltaError, OSError):
            if is_done():
                return
        raise


def _make_actions(latest: DeltaTable, table: str, files: Sequence[DataFile]) -> Actions:
    """Return the actions that turn the files of the latest version into `files`."""
    by_path = {f.path: f for f in files}
    present = {f.path: f for f in delta.list_files(table, latest)}
    now = _read_milliseconds()
    return [
        *(_add_action(f, now) for path, f in by_path.items() if path not in present),
        *(_remove_action(f, now) for path, f in present.items() if path not in by_path),
    ]


def _add_action(file: DataFile, now: int) -> AddAction:
    return AddAction(file.path, file.size, _partition_values(file), now, True, file.stats)


def _remove_action(file: DataFile, now: int) -> RemoveAction:
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


def _write_schema(
    table: DeltaTable, files: Sequence[DataFile], schema: pa.Schema, properties: CommitProperties
) -> None:
    """Commit another schema and `files`, which replace all files of the previous version."""
    now = _read_milliseconds()
    table.create_write_transaction(
        [_add_action(f, now) for f in files],
        "overwrite",
        Schema.from_arrow(schema),
        partition_by=[],
        commit_properties=properties,
    )


def _to_transactions(identifiers: Mapping[str, int], version: int, files: int) -> list[Transaction]:
    """Return the transaction identifiers of a commit, with its version and number of files."""
    values = {**identifiers, delta.FILES: files, delta.VERSION: version}
    return [Transaction(name, value) for name, value in values.items()]


def _partition_values(file: DataFile) -> dict[str, str | None]:
    return {PARTITION[file.table]: file.partition} if file.table in PARTITION else {}


def _read_milliseconds() -> int:
    return int(time.time() * 1000)
