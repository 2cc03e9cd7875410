"""Files of an unfinished rebuild, staged beside the published index.

The files are in the folders of the tables and stay there; a Delta table in INDEX/rebuild/BUNDLE_ID
describes them. An interrupted rebuild continues from it; publication replaces the old files by the
staged files in one commit.
"""

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from segrec_batch.common.errors import IndexStateError
from segrec_batch.index import commits, delta
from segrec_batch.index.files import DataFile, check_statistics, described_file
from segrec_batch.index.snapshot import Snapshot, empty_snapshot, model_uri, with_changes
from segrec_batch.sources import storage

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model  # torch

_FOLDER = "rebuild"
_ENTRY = re.compile(r"([0-9a-f]{16})/_delta_log/\d{20}\.json")
# delta-rs's file names; those of a killed process end with # and a number
_LOG_FILE = re.compile(
    r"_delta_log/(\d{20}\.(json|crc|checkpoint\.parquet)|_last_checkpoint|_commit_\S+\.tmp)(#\d+)?"
)
_DATA_FILE = re.compile(r"part-\d{5}-[0-9a-f-]{36}-c\d{3}(\.\w+)?\.parquet(#\d+)?")
_NAMES = [f.name for f in fields(DataFile)]
_SCHEMA = pa.schema(
    [
        *(pa.field(n, pa.int64() if n in ("size", "rows") else pa.string()) for n in _NAMES),
        pa.field("staged", pa.bool_()),  # false: removed again
    ]
)


def open_staging(base: Snapshot, model: "Model") -> Snapshot:
    """Return the staged files of a rebuild of `base` with a model, as a snapshot.

    Files that the rebuild published right before it was killed do not count. Raises InputError if
    the folder of the rebuild has other content.
    """
    storage.refuse_foreign_files(
        storage.join(base.index, _table(model.bundle_id)),
        lambda path: bool(_DATA_FILE.fullmatch(path) or path.startswith("_delta_log/")),
        "what a rebuild has staged",
        "move that elsewhere",
    )
    model.save(model_uri(base.index, model.bundle_id))
    staged, version = staged_files(base.index, model.bundle_id)
    published = {(f.table, f.path) for f in base.all_files}
    if any((f.table, f.path) in published for f in staged):
        discard(base.index, model.bundle_id)
        staged, version = [], -1
    empty = empty_snapshot(base.index, model.model_id, model.spec)
    empty = replace(empty, versions={**base.versions, _FOLDER: version})
    return with_changes(empty, staged)


def stage(staged: Snapshot, add: Sequence[DataFile], remove: Sequence[DataFile] = ()) -> Snapshot:
    """Add and remove files of a rebuild. Raises IndexStateError if another run does the same."""
    rows = [
        {**vars(file), "staged": is_staged}
        for files, is_staged in ((remove, False), (add, True))
        for file in files
    ]
    version = staged.versions[_FOLDER]
    try:
        with delta.errors(staged.index):
            added = pa.Table.from_pylist(rows, _SCHEMA)
            commits.append(staged.index, _table(staged.bundle_id), added, version)
    except commits.CommitFailedError as error:
        text = f"{staged.index}: another run rebuilds it with model {staged.bundle_id}"
        raise IndexStateError(f"{text}; wait for it, then run again") from error
    after = with_changes(staged, add, remove)
    return replace(after, versions={**staged.versions, _FOLDER: version + 1})


def staged_files(index: str, bundle: str) -> tuple[list[DataFile], int]:
    """Return the files staged for a bundle, and the version of that state; -1 if there is none.

    Raises IndexStateError for entries that no rebuild stages.
    """
    entries, version = _entries(index, bundle)
    removed = {(entry["table"], entry["path"]) for entry in entries if not entry["staged"]}
    try:
        files = [
            described_file(**{name: entry[name] for name in _NAMES})
            for entry in entries
            if (entry["table"], entry["path"]) not in removed
        ]
        for file in files:
            check_statistics(file.stats)
    except (KeyError, ValueError) as error:
        raise IndexStateError(
            f"{storage.join(index, _table(bundle))}: not what a rebuild has staged: {error}"
        ) from error
    return files, version


def named_files(index: str, bundle: str) -> set[tuple[str, str]]:
    """Return table and path of all files that were ever staged for a bundle."""
    entries = _entries(index, bundle)[0]
    return {(entry["table"], entry["path"]) for entry in entries}


def _entries(index: str, bundle: str) -> tuple[list[dict[str, Any]], int]:
    """Return the entries of a bundle, unordered, and their version. Raises IndexStateError."""
    try:
        with delta.errors(index):
            rows, version = delta.read(index, _table(bundle), _SCHEMA)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise IndexStateError(
            f"{storage.join(index, _table(bundle))}: not what a rebuild has staged: {error}"
        ) from error
    return rows.to_pylist() if rows is not None else [], version


def rebuilds(index: str) -> list[str]:
    """Return the bundles that have staged files."""
    prefix = storage.join(index, _FOLDER) + "/"
    paths = (uri.removeprefix(prefix) for uri, *_ in storage.find_files(prefix, ".json"))
    return sorted({match[1] for path in paths if (match := _ENTRY.fullmatch(path))})


def last_staged(index: str, bundle: str) -> dt.datetime:
    """Return the time of the last progress of a rebuild."""
    with delta.errors(index):
        (last, *_) = delta.history(index, _table(bundle))
    return dt.datetime.fromtimestamp(last["timestamp"] / 1000, dt.UTC)


def discard(index: str, bundle: str) -> None:
    """Delete the entries of a bundle; vacuum deletes the files."""
    folder = storage.join(index, _table(bundle))
    paths = [uri.removeprefix(f"{folder}/") for uri, *_ in storage.find_files(folder)]
    # newest entry first: after an interruption an earlier state remains
    entries = sorted(filter(_LOG_FILE.fullmatch, paths), key=_from_last)
    data = filter(_DATA_FILE.fullmatch, paths)
    storage.delete([storage.join(folder, path) for path in entries])
    storage.delete([storage.join(folder, path) for path in data])


def _from_last(path: str) -> tuple[bool, int]:
    """Return the sort key of log files for deletion: the pointer, then the last version first."""
    version = storage.name(path).split(".")[0]
    return version.isdigit(), -int(version) if version.isdigit() else 0


def _table(bundle: str) -> str:
    return f"{_FOLDER}/{bundle}"
