"""Stage the files of an unfinished rebuild beside the published index.

The files are in the folders of the tables and stay there; a Delta table in INDEX/rebuild/BUNDLE_ID
lists them. An interrupted rebuild continues from this table; one commit replaces the published
files by the staged files.
"""

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from segrec_batch.common.errors import IndexStateError
from segrec_batch.index import commits, delta
from segrec_batch.index.files import DataFile, check_statistics, parse_data_file
from segrec_batch.index.snapshot import Snapshot, empty_snapshot, model_uri, with_changes
from segrec_batch.sources import storage

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model  # torch

_FOLDER = "rebuild"
_ENTRY = re.compile(r"([0-9a-f]{16})/_delta_log/\d{20}\.json")
# file names of delta-rs; files that a killed process left end with # and a number
_LOG_FILE = re.compile(
    r"_delta_log/(\d{20}\.(json|crc|checkpoint\.parquet)|_last_checkpoint|_commit_\S+\.tmp)(#\d+)?"
)
_DATA_FILE = re.compile(r"part-\d{5}-[0-9a-f-]{36}-c\d{3}(\.\w+)?\.parquet(#\d+)?")
_NAMES = [f.name for f in fields(DataFile)]
_SCHEMA = pa.schema(
    [
        *(pa.field(n, pa.int64() if n in ("size", "rows") else pa.string()) for n in _NAMES),
        pa.field("staged", pa.bool_()),  # false if the file was removed again
    ]
)


def open_staging(base: Snapshot, model: "Model") -> Snapshot:
    """Return the staged files of a rebuild of `base` with a model, as a snapshot.

    Files that are published already, because the rebuild was killed right after its commit, are
    discarded. Raises InputError if the folder of the rebuild has other content.
    """
    storage.refuse_foreign_files(
        storage.join(base.index, _table_name(model.bundle_id)),
        lambda path: bool(_DATA_FILE.fullmatch(path) or path.startswith("_delta_log/")),
        "what a rebuild has staged",
        "move that elsewhere",
    )
    model.save(model_uri(base.index, model.bundle_id))
    staged, version = read_staged_files(base.index, model.bundle_id)
    published = {(f.table, f.path) for f in base.all_files}
    if any((f.table, f.path) in published for f in staged):
        discard(base.index, model.bundle_id)
        staged, version = [], -1
    empty = empty_snapshot(base.index, model.model_id, model.spec)
    empty = replace(empty, versions={**base.versions, _FOLDER: version})
    return with_changes(empty, staged)


def stage(staged: Snapshot, add: Sequence[DataFile], remove: Sequence[DataFile] = ()) -> Snapshot:
    """Add and remove staged files. Raises IndexStateError if another run stages files meanwhile."""
    rows = [
        {**vars(file), "staged": is_staged}
        for files, is_staged in ((remove, False), (add, True))
        for file in files
    ]
    version = staged.versions[_FOLDER]
    try:
        with delta.convert_errors(staged.index):
            rows_to_append = pa.Table.from_pylist(rows, _SCHEMA)
            commits.append_rows(
                staged.index, _table_name(staged.bundle_id), rows_to_append, version
            )
    except commits.CommitFailedError as error:
        text = f"{staged.index}: another run rebuilds it with model {staged.bundle_id}"
        raise IndexStateError(f"{text}; wait for it, then run again") from error
    after = with_changes(staged, add, remove)
    return replace(after, versions={**staged.versions, _FOLDER: version + 1})


def read_staged_files(index: str, bundle: str) -> tuple[list[DataFile], int]:
    """Return the files staged for a bundle, and the version of that state; -1 if there is none.

    Raises IndexStateError for entries that no rebuild stages.
    """
    entries, version = _read_entries(index, bundle)
    removed = {(entry["table"], entry["path"]) for entry in entries if not entry["staged"]}
    try:
        files = [
            parse_data_file(**{name: entry[name] for name in _NAMES})
            for entry in entries
            if (entry["table"], entry["path"]) not in removed
        ]
        for file in files:
            check_statistics(file.stats)
    except (KeyError, ValueError) as error:
        raise IndexStateError(
            f"{storage.join(index, _table_name(bundle))}: not what a rebuild has staged: {error}"
        ) from error
    return files, version


def read_named_files(index: str, bundle: str) -> set[tuple[str, str]]:
    """Return table and path of all files that were ever staged for a bundle."""
    entries = _read_entries(index, bundle)[0]
    return {(entry["table"], entry["path"]) for entry in entries}


def _read_entries(index: str, bundle: str) -> tuple[list[dict[str, Any]], int]:
    """Return the entries of a bundle, unordered, and their version. Raises IndexStateError."""
    try:
        with delta.convert_errors(index):
            rows, version = delta.read_rows(index, _table_name(bundle), _SCHEMA)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise IndexStateError(
            f"{storage.join(index, _table_name(bundle))}: not what a rebuild has staged: {error}"
        ) from error
    return rows.to_pylist() if rows is not None else [], version


def list_rebuilds(index: str) -> list[str]:
    """Return the bundles that have staged files."""
    prefix = storage.join(index, _FOLDER) + "/"
    paths = (uri.removeprefix(prefix) for uri, *_ in storage.find_files(prefix, ".json"))
    return sorted({match[1] for path in paths if (match := _ENTRY.fullmatch(path))})


def read_last_staged(index: str, bundle: str) -> dt.datetime:
    """Return the time when files were last staged for a bundle."""
    with delta.convert_errors(index):
        (last, *_) = delta.read_history(index, _table_name(bundle))
    return dt.datetime.fromtimestamp(last["timestamp"] / 1000, dt.UTC)


def discard(index: str, bundle: str) -> None:
    """Delete the table of staged files of a bundle; vacuum deletes the files themselves."""
    folder = storage.join(index, _table_name(bundle))
    paths = [uri.removeprefix(f"{folder}/") for uri, *_ in storage.find_files(folder)]
    # newest entry first, so that an interruption leaves an earlier state
    entries = sorted(filter(_LOG_FILE.fullmatch, paths), key=_get_deletion_key)
    data = filter(_DATA_FILE.fullmatch, paths)
    storage.delete([storage.join(folder, path) for path in entries])
    storage.delete([storage.join(folder, path) for path in data])


def _get_deletion_key(path: str) -> tuple[bool, int]:
    """Return the key that sorts log files for deletion: checkpoint pointer, then newest version."""
    version = storage.name(path).split(".")[0]
    return version.isdigit(), -int(version) if version.isdigit() else 0


def _table_name(bundle: str) -> str:
    return f"{_FOLDER}/{bundle}"
