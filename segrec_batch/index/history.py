"""Read the history of an index and the information that its commits store."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltalake import DeltaTable

from segrec_batch.common.errors import IndexStateError, StorageError
from segrec_batch.index import delta, log_entries
from segrec_batch.sources.roots import ImageRoots, parse_roots
from segrec_batch.sources.storage import scheme_of

_ROOTS = "image_roots"  # key of the information of a commit


@dataclass(frozen=True)
class Commit:
    """A commit of an index: its version, its time, and the `info` that `snapshot.commit` stored."""

    version: int
    time: dt.datetime
    info: Mapping[str, Any]


def newest_version(index: str) -> int:
    """Return the version of the newest snapshot. Raises IndexStateError."""
    with delta.convert_errors(index):
        return delta.open_table(index, "images").version()


def choose_roots(index: str, named: Sequence[str] = ()) -> ImageRoots:
    """Return the roots below which images of an index may be fetched: `named`, or its own.

    Old indexes have no roots, nor has a deleted index with a query cache. Raises InputError for an
    empty name, IndexStateError for impossible roots.
    """
    if named:
        return ImageRoots.of(named)
    try:
        if scheme_of(index) in ("file", "s3"):
            with delta.convert_errors(index):
                if delta.exists(index, "images"):
                    return _read_roots(index, delta.open_table(index, "images"))
    except StorageError:
        pass
    return ImageRoots(())


def _read_roots(index: str, images: DeltaTable) -> ImageRoots:
    """Return the roots in the newest commit of `images`, which includes all earlier ones."""
    try:
        return parse_roots(delta.read_last_commit(images).get(_ROOTS, []))
    except ValueError as error:
        raise IndexStateError(f"{index}: its log is damaged: {error}") from error


def add_roots(index: str, images: DeltaTable, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return `info` with the roots of the index, to which that of its run is added."""
    root = info.get("segrec", {}).get("images_root")
    roots = _read_roots(index, images).extend(root and [root])
    return {**info, _ROOTS: [*parse_roots([*roots.uris]).uris]}


def history(index: str) -> list[Commit]:
    """Return the snapshots of the log, newest first. Raises IndexStateError."""
    newest = newest_version(index)
    # delta-rs derives versions from the number of entries, which is wrong if one is missing
    try:
        entries = log_entries.read_entries(index, "images")
        infos = {
            version: log_entries.read_commit_info(actions) for version, actions in entries.items()
        }
        return [
            Commit(v, log_entries.read_commit_time(i), i) for v, i in infos.items() if v <= newest
        ]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise IndexStateError(f"{index}: its log is damaged: {error}") from error
