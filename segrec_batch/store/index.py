"""The index: three Delta tables that change together, and snapshots of them.

    INDEX/images, INDEX/regions, INDEX/failures    Delta tables
    INDEX/model                                    the bundle that made them

A *snapshot* is a version of `images`. Each commit of `images` records, as Delta transaction
identifiers, the versions of the other two that belong to it, so a reader never sees half a commit.
Commits go failures, regions, images: what comes before the last one is invisible. A run that dies
in between leaves versions that no snapshot names; the next commit starts from the published files.
Of two runs that publish at once the second fails: both move the same transaction identifiers.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    RemoveAction,
    Transaction,
    create_table_with_add_actions,
)

from segrec_batch import storage
from segrec_batch.errors import IndexStateError
from segrec_batch.model.bundle import Model, ModelSpec, load_model
from segrec_batch.store.files import DataFile, count_rows
from segrec_batch.store.schema import PARTITION, TABLES, schemas

_COMPANIONS = tuple(t for t in TABLES if t != "images")


@dataclass(frozen=True)
class Snapshot:
    """One consistent state of an index: table versions and the files in them."""

    index: str
    versions: Mapping[str, int]
    files: Mapping[str, tuple[DataFile, ...]]
    model_id: str
    spec: ModelSpec

    @property
    def version(self) -> int:
        """The version of `images`, by which a snapshot is named."""
        return self.versions["images"]

    def rows(self, table: str) -> int:
        """Rows of a table, from the log."""
        return count_rows(self.files[table], table)

    def load_model(self) -> Model:
        """The model that made the index."""
        return load_model(model_uri(self.index))


def model_uri(index: str) -> str:
    """Where an index keeps its model bundle."""
    return storage.join(index, "model")


def exists(index: str) -> bool:
    """Whether there is an index at a URI."""
    return DeltaTable.is_deltatable(storage.join(index, "images"), _storage_options())


def create(index: str, model: Model) -> Snapshot:
    """Make an empty index for a model; what an earlier attempt left unfinished is completed."""
    model.save(model_uri(index))
    description = json.dumps({"model_id": model.model_id, "spec": model.spec.to_json()})
    for table, schema in schemas(model.spec.classes).items():
        create_table_with_add_actions(
            storage.join(index, table),
            Schema.from_arrow(schema),
            [],
            mode="ignore",
            partition_by=_partition_by(table),
            name=table,
            description=description,
            storage_options=_storage_options(),
            commit_properties=CommitProperties(
                app_transactions=[Transaction(t, 0) for t in _COMPANIONS]
            ),
        )
    return open_snapshot(index)


def open_snapshot(index: str, version: int | None = None) -> Snapshot:
    """The newest snapshot, or that of a version. Raises IndexStateError."""
    try:
        images = _open(index, "images", version)
    except TableNotFoundError as error:
        raise IndexStateError(f"{index}: no index there; make one with jobs/index.py") from error
    except DeltaError as error:
        raise IndexStateError(f"{index}: version {version} cannot be opened: {error}") from error
    tables = {"images": images}
    for name in _COMPANIONS:
        tables[name] = _open(index, name, images.transaction_version(name))
    about = json.loads(images.metadata().description)
    return Snapshot(
        index=index,
        versions={name: table.version() for name, table in tables.items()},
        files={name: _files(name, table) for name, table in tables.items()},
        model_id=about["model_id"],
        spec=ModelSpec.from_json(about["spec"]),
    )


def commit(
    base: Snapshot,
    add: Sequence[DataFile],
    remove: Sequence[DataFile] = (),
    info: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Publish one new snapshot: the files of `base`, less `remove`, plus `add`.

    `info` is kept with the commit of `images`. Raises IndexStateError if another run has published
    since `base`; the index is then as that run left it.
    """
    versions = {}
    try:
        for table in _COMPANIONS:
            versions[table] = _bring_to(base, table, add, remove)
        images = _open(base.index, "images", None)
        if images.version() != base.version:
            raise IndexStateError(_overtaken(base))
        transactions = [Transaction(t, v) for t, v in versions.items()]
        properties = CommitProperties(dict(info or {}), 0, transactions)
        _write(images, "images", _actions(base, images, "images", add, remove), properties)
    except CommitFailedError as error:
        raise IndexStateError(_overtaken(base)) from error
    return open_snapshot(base.index)


def _overtaken(base: Snapshot) -> str:
    return (
        f"{base.index}: another run has published since version {base.version}, on which this one "
        "is built. Nothing of this commit is visible; run again to do only what is still missing"
    )


def history(index: str) -> list[dict[str, Any]]:
    """The commits of `images`, newest first, with what `commit` was given as `info`."""
    return _open(index, "images", None).history()


def _bring_to(
    base: Snapshot, table: str, add: Sequence[DataFile], remove: Sequence[DataFile]
) -> int:
    """Commit to `regions` or `failures` what makes its newest version the wanted one."""
    latest = _open(base.index, table, None)
    actions = _actions(base, latest, table, add, remove)
    if not actions:
        return latest.version()
    _write(latest, table, actions, CommitProperties(max_commit_retries=0))
    return latest.version() + 1


def _actions(
    base: Snapshot,
    latest: DeltaTable,
    table: str,
    add: Sequence[DataFile],
    remove: Sequence[DataFile],
) -> list[AddAction | RemoveAction]:
    """From the files of the latest version, published or not, to the wanted ones."""
    removed = {f.path for f in remove if f.table == table}
    kept = [f for f in base.files[table] if f.path not in removed]
    wanted = {f.path: f for f in [*kept, *(f for f in add if f.table == table)]}
    present = {f.path: f for f in _files(table, latest)}
    now = int(time.time() * 1000)
    return [
        *(_add(f, now) for path, f in wanted.items() if path not in present),
        *(_remove(f, now) for path, f in present.items() if path not in wanted),
    ]


def _partition_values(file: DataFile) -> dict[str, str | None]:
    return {PARTITION[file.table]: file.partition} if file.table in PARTITION else {}


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
    name: str,
    actions: list[AddAction | RemoveAction],
    properties: CommitProperties,
) -> None:
    table.create_write_transaction(
        actions,
        "append",
        table.schema(),
        partition_by=_partition_by(name),
        commit_properties=properties,
    )


def _files(name: str, table: DeltaTable) -> tuple[DataFile, ...]:
    actions = pa.table(table.get_add_actions()).to_pylist()
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
        for a in actions
    )


def _known(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that have statistics: plain values."""
    return {k: v for k, v in statistics.items() if isinstance(v, str | int | float)}


def _open(index: str, table: str, version: int | None) -> DeltaTable:
    return DeltaTable(storage.join(index, table), version, storage_options=_storage_options())


def _partition_by(table: str) -> list[str]:
    return [PARTITION[table]] if table in PARTITION else []


def _storage_options() -> dict[str, str]:
    """Delta Lake reads `AWS_*` itself; plain http must be allowed where the endpoint is that."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    return {"AWS_ALLOW_HTTP": "true"} if endpoint.startswith("http://") else {}
