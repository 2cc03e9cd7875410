"""The state of an index according to the logs of its tables: versions, files, bundle."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from segrec_batch.common.errors import IndexStateError, ModelError
from segrec_batch.index import delta, log_entries
from segrec_batch.index.files import DataFile
from segrec_batch.index.replacements import read_replacements
from segrec_batch.index.schema import TABLES

COMPANIONS = tuple(table for table in TABLES if table != "images")
"""The tables beside `images`, in the order of commits."""
TARGET = "images"
"""Transaction identifier of the companions: the version of `images` that a commit belongs to."""

Files = Mapping[str, tuple[DataFile, ...]]


@dataclass(frozen=True)
class SnapshotLog:
    """A snapshot as the logs describe it; the files themselves may be deleted.

    Attributes:
        versions: version of each table.
        files: files of each table.
        bundle: bundle_id.
        classes: foreground classes of the columns of `images`.
        ahead: versions of tables that are later than the newest snapshot names.
        target: newest version of `images` to which these later versions belong.
        age: seconds since the last commit of these versions.
    """

    versions: Mapping[str, int]
    files: Files
    bundle: str
    classes: tuple[str, ...]
    ahead: Mapping[str, int]
    target: int
    age: float

    def describe_problem(self, index: str) -> str:
        """Return the possible causes of tables that are ahead, and the remedy."""
        newest = self.versions["images"]
        tables = ", ".join(
            f"{t} is at version {v}, the snapshot names {self.versions[t]}"
            for t, v in self.ahead.items()
        )
        cause = "a run was interrupted, or the newest entry of images/_delta_log was lost"
        if self.target > newest + 1:
            missing = f"{newest + 1} to {self.target - 1}"
            cause = f"entries {missing} of images/_delta_log are lost, maybe more"
        return (
            f"{index}: {tables}: {cause}; if entries are lost, put them back (bucket versions, "
            "backup), else run segrec index again, which mends it from the sources"
        )


def read_log(index: str, version: int | None = None) -> SnapshotLog:
    """Return a snapshot as the logs describe it, by default the newest.

    In an older version, the newest replacements stand for files that a purge has rewritten. Raises
    IndexStateError, also for a log with missing or damaged entries; StorageError.
    """
    try:
        log = _parse_log(index, version)
    except (ValueError, KeyError, TypeError, OverflowError, ModelError) as error:
        raise IndexStateError(
            f"{index}: its log is damaged, or not of segrec_batch: {error}; take the index from "
            "its backup, or index anew"
        ) from error
    return log


def make_identifiers(versions: Mapping[str, int], bundle: str) -> dict[str, int]:
    """Return the transaction identifiers of a commit of `images`: versions and the bundle_id.

    The bundle_id is stored as a signed 64-bit integer.
    """
    return {**versions, log_entries.MODEL: int.from_bytes(bytes.fromhex(bundle), signed=True)}


def _parse_log(index: str, version: int | None) -> SnapshotLog:
    with delta.convert_errors(index, version):
        images = delta.open_table(index, "images", version)
        recorded = {t: images.transaction_version(t) for t in COMPANIONS}
        versions = {t: v for t, v in recorded.items() if v is not None}
        bundle_number = images.transaction_version(log_entries.MODEL)
        files = {"images": delta.list_files("images", images)}
        delta.check_log(index, "images", images, files["images"])
        if bundle_number is None or len(versions) < len(recorded):
            raise IndexStateError(f"{index}: made by another version of segrec_batch; index anew")
        _check_version_numbers(versions.values())
        classes = delta.check_table("images", images)
        later_tables = {}
        for name, number in versions.items():
            # for the newest snapshot, open the newest version: it shows whether the table is ahead
            table = delta.open_table(index, name, None if version is None else number)
            if table.version() < number:
                raise IndexStateError(_describe_lost_entries(index, name, table.version(), number))
            if table.version() > number:
                later_tables[name] = table
                table = delta.open_table(index, name, number)
            delta.check_table(name, table)
            files[name] = delta.list_files(name, table)
            delta.check_log(index, name, table, files[name])
            if (table.transaction_version(TARGET) or 0) > images.version():
                raise IndexStateError(_describe_lost_entries(index, name, number - 1, number))
        times = [delta.read_commit_time(table) for table in later_tables.values()]
        targets = [table.transaction_version(TARGET) or 0 for table in later_tables.values()]
    return SnapshotLog(
        versions={**versions, "images": images.version()},
        files=files if version is None else _apply_replacements(index, files),
        bundle=log_entries.decode_bundle_id(bundle_number),
        classes=classes,
        ahead={name: table.version() for name, table in later_tables.items()},
        target=max(targets, default=0),
        age=abs(time.time() - max(times, default=0.0)),
    )


def _check_version_numbers(versions: Iterable[int]) -> None:
    if not all(map(delta.is_version, versions)):
        raise ValueError(f"there is no version {max(versions, key=abs)}")


def _describe_lost_entries(index: str, table: str, version: int, recorded: int) -> str:
    return (
        f"{index}: {table} is at version {version}, the snapshot names {recorded}: the newest "
        f"entries of {table}/_delta_log are lost; put them back (bucket versions, backup), or "
        "go back to a version before them with segrec maintain rollback"
    )


def _apply_replacements(index: str, files: Files) -> Files:
    successors = read_replacements(index)
    current = {
        t: [successors.get((t, f.path), f) for f in table_files] for t, table_files in files.items()
    }
    return {t: tuple(f for f in table_files if f is not None) for t, table_files in current.items()}
