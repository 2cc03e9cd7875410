"""Query cache: the rows of one snapshot as tables of a DuckDB file, laid out for ranking.

It also holds the views and macros, so any DuckDB client can query it. Regions are sorted by class
and coverage, images along a Z-curve of their coverages, in small row groups, so that a filter on
coverage skips most groups without a match.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from segrec_batch import __version__
from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import IndexStateError, InputError, StorageError
from segrec_batch.distributed.scratch import scratch_folder
from segrec_batch.index.files import group_by_part
from segrec_batch.index.schema import TABLES, coverage_column
from segrec_batch.index.snapshot import Snapshot, open_snapshot, with_changes
from segrec_batch.model.spec import ModelSpec
from segrec_batch.search.cache_layout import (
    SNAPSHOT,
    column_sql,
    create_cache_views,
    create_snapshot_table,
    create_tables,
    read_catalogue,
    read_expected_catalogue,
)
from segrec_batch.search.database import CACHE, is_cache, open_cache, open_database
from segrec_batch.search.sql.views import PART, identifier, quoted, schema_file, select
from segrec_batch.sources import storage

ROW_GROUP = 8192
"""Rows of a row group; a filter skips only whole row groups."""

_REBUILD = 4  # a cache is rebuilt if 1 row in 4 or more is new: new rows are not sorted
_Z_BITS = 3  # bits of each coverage on the Z-curve


@dataclass(frozen=True)
class CacheChanges:
    """Rows of a cache, and changes that brought it to the version of an index."""

    version: int
    rows: int
    """Rows of all tables."""
    added: int
    removed: int


def refresh_cache(index: str, path: str, *, rebuild: bool = False) -> CacheChanges:
    """Create or update the query cache of an index; `rebuild` reads all rows again.

    Open readers keep the old file; a crash does not change it. Raises InputError for a file that
    is not a cache of this index, IndexStateError for a cache of another model.
    """
    snapshot = open_snapshot(storage.absolute(index))
    old, version = _present_parts(path, snapshot, rebuild)
    rows = {
        part: sum(f.rows for f in files)
        for part, files in group_by_part(snapshot.all_files).items()
    }
    new = rows.keys() - old
    if version == snapshot.version:
        return CacheChanges(snapshot.version, sum(rows.values()), 0, 0)
    if sum(rows[part] for part in new) * _REBUILD > sum(rows.values()):
        old, new = set(), set(rows)
    try:
        with _replacing(path) as draft:
            if old:
                shutil.copyfile(path, draft)
            removed = _write(draft, snapshot, new, gone=old - rows.keys())
    except (OSError, duckdb.IOException) as error:
        raise StorageError(f"{path} cannot be made: {error}") from error
    added = sum(rows[part] for part in new)
    return CacheChanges(snapshot.version, sum(rows.values()), added, removed)


def _present_parts(path: str, snapshot: Snapshot, rebuild: bool) -> tuple[set[str], int | None]:
    """Return the parts and the version of a cache; no parts if it must be rebuilt.

    Raises InputError, IndexStateError.
    """
    if not Path(path).exists():
        return set(), None
    if not is_cache(path):
        raise InputError(f"{path} is a folder; name a file for the query cache")
    if Path(f"{path}.wal").exists():  # a copy of the file alone would lack its changes
        raise InputError(
            f"{path}.wal lies beside the cache: a program writes to it, or was stopped; close it, "
            "or delete both files"
        )
    cache = open_cache(path)
    with cache.connection as connection:
        if cache.index != snapshot.index:
            raise InputError(f"{path} is the query cache of {cache.index}; name another file")
        if rebuild:
            return set(), None
        if cache.model_id != snapshot.model_id:
            raise IndexStateError(
                f"{path} has rows of model {cache.model_id}, the index now of "
                f"{snapshot.model_id}: say --rebuild"
            )
        recipes = connection.execute(f"SELECT recipe FROM {CACHE}.segrec.{SNAPSHOT}").fetchall()  # noqa: S608
        if recipes != [(_recipe(),)]:
            return set(), None
        if cache.bundle_id != snapshot.bundle_id:  # vectors of other descriptors
            return set(), None
        if read_catalogue(connection, CACHE) != read_expected_catalogue(snapshot.spec):
            return set(), None  # other views or macros, which _write would use
        selects = " UNION ".join(f"SELECT part FROM segrec.{table}" for table in TABLES)  # noqa: S608
        return {part for (part,) in connection.execute(selects).fetchall()}, cache.version


@contextmanager
def _replacing(path: str) -> Iterator[str]:
    """Yield the path of a draft that replaces the file when it is complete.

    The draft is in a new folder beside the file, so that nothing else is deleted.
    """
    target = Path(path)
    with scratch_folder(f".{target.name}.", target.parent) as folder:
        draft = folder / "draft.duckdb"
        yield str(draft)
        draft.replace(target)


def _write(path: str, snapshot: Snapshot, new: set[str], gone: set[str]) -> int:
    """Update or create the cache of a snapshot; return the number of rows removed."""
    is_new = not Path(path).exists()
    with open_database(":memory:", [snapshot], temp_directory=f"{path}.spill") as connection:
        # delta and dictionary encoding save a fifth of the bytes but double the time of a scan
        connection.execute("SET force_compression = 'uncompressed'")
        connection.execute(f"ATTACH {quoted(path)} AS cache (ROW_GROUP_SIZE {ROW_GROUP})")
        connection.execute("USE cache")
        connection.execute("BEGIN")
        if is_new:
            _create(connection, snapshot)
        removed = sum(_delete(connection, table, gone) for table in TABLES)
        added = [f for f in snapshot.all_files if f.part in new]
        changes = with_changes(snapshot, added, list(snapshot.all_files))
        with ProgressMeter("rows copied", sum(f.rows for f in added)) as meter:
            for table in TABLES:
                _insert(connection, changes, table)
                meter.advance(changes.rows(table))
        _write_identity(connection, snapshot)
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")
        connection.execute("USE memory")
        connection.execute("DETACH cache")
    return removed


def _create(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    create_snapshot_table(connection, "cache")
    create_tables(connection, "cache", snapshot.spec)
    create_cache_views(connection, snapshot.spec)


def _delete(connection: duckdb.DuckDBPyConnection, table: str, parts: set[str]) -> int:
    sql = f"DELETE FROM segrec.{table} WHERE part IN (SELECT unnest($parts::VARCHAR[]))"  # noqa: S608
    ((count,),) = connection.execute(sql, {"parts": sorted(parts)}).fetchall()
    return int(count)


def _insert(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, table: str) -> None:
    scan = select(snapshot, table, PART)
    if scan is None:
        return
    connection.execute(f"DELETE FROM segrec.{SNAPSHOT}")  # noqa: S608
    connection.execute(
        f"INSERT INTO segrec.{table} BY NAME SELECT {column_sql(table, snapshot.spec)}, part "  # noqa: S608
        f"FROM ({scan}) ORDER BY {_order(table, snapshot.spec)}, image_id"
    )


def _order(table: str, spec: ModelSpec) -> str:
    if table == "images":
        return _z_order(spec.all_classes)
    return {"regions": "class, coverage", "descriptors": "descriptor, category"}.get(table, "uri")


def _z_order(classes: Sequence[str]) -> str:
    """Return SQL for the position on the Z-curve, as `parts.compute_z_order` computes it."""
    names = [identifier(coverage_column(name)) for name in classes[: 63 // _Z_BITS]]
    top = 2**_Z_BITS - 1
    bits = [
        f"(least(floor({name} * {top + 1})::BIGINT, {top}) >> {bit} & 1)"
        for bit in reversed(range(_Z_BITS))
        for name in names
    ]
    return " + ".join(f"({bit} << {len(bits) - 1 - i})" for i, bit in enumerate(bits))


def _recipe() -> str:
    """Return a hash of the SQL and the layout that make a cache."""
    names = ("functions", "stale", "recommend", "feedback", "comments")
    texts = [schema_file(f"{name}.sql") for name in names]
    return hashlib.sha256("".join([*texts, str(ROW_GROUP), __version__]).encode()).hexdigest()


def _write_identity(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    connection.execute(f"DELETE FROM segrec.{SNAPSHOT}")  # noqa: S608
    connection.execute(
        f"INSERT INTO segrec.{SNAPSHOT} VALUES ($index, $version, $model_id, $spec, $recipe)",  # noqa: S608
        {
            "index": snapshot.index,
            "version": snapshot.version,
            "model_id": snapshot.model_id,
            "spec": json.dumps(snapshot.spec.to_json()),
            "recipe": _recipe(),
        },
    )
