"""Read the log entries of the index's Delta tables, and all files that they have ever named.

Delta Lake's own calls return the files of one version. Vacuum may delete every file that any entry
names, so it needs all entries; a missing entry can be detected only by the names of log files.
"""

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from segrec_batch.common.errors import IndexStateError
from segrec_batch.index.parquet import open_parquet
from segrec_batch.index.schema import TABLES
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import parse_json, shorten

MODEL = "model"  # the transaction identifier of `images` that names a snapshot's bundle

_LOG = "_delta_log"
_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"\d{20}\.checkpoint(\.\S+)?\.parquet")
_MAX_UINT64 = 2**64 - 1

Action = Mapping[str, Any]


@dataclass(frozen=True)
class LoggedNames:
    """Data files and bundles that logs name.

    Attributes:
        files: table and path of each data file.
        bundles: bundle_ids.
    """

    files: frozenset[tuple[str, str]]
    bundles: frozenset[str]


def entry_name(version: int) -> str:
    """Return the path of a log entry below its table's folder."""
    return f"{_LOG}/{version:020}.json"


def read_entries(index: str, table: str) -> dict[int, list[Action]]:
    """Return the entries in a table's log folder by version, newest first.

    Raises IndexStateError for an entry that cannot be read, StorageError.
    """
    uris = {}
    for uri, *_ in storage.find_files(storage.join(index, table, _LOG), ".json", links=True):
        if match := _ENTRY.fullmatch(storage.name(uri)):
            uris[int(match[1])] = uri
    versions = sorted(uris, reverse=True)
    contents = storage.read_many([uris[v] for v in versions])
    return {v: _parse_actions(uris[v], c) for v, c in zip(versions, contents, strict=True)}


def _parse_actions(uri: str, content: storage.Content) -> list[Action]:
    try:
        if isinstance(content, OSError):
            raise content
        actions = [parse_json(line) for line in content.splitlines() if line.strip()]
        for action in actions:
            if not isinstance(action, dict) or not all(map(_is_object, action.values())):
                raise ValueError(f"{shorten(action)} is no action")
        return actions
    except (OSError, ValueError) as error:
        raise IndexStateError(
            f"{uri} cannot be read ({error}); put it back (bucket versions, backup)"
        ) from error


def _is_object(value: object) -> bool:
    return value is None or isinstance(value, dict)


def read_commit_info(actions: Iterable[Action]) -> dict[str, Any]:
    """Return the `commitInfo` among the actions of an entry; empty if there is none."""
    return next((dict(a["commitInfo"]) for a in actions if a.get("commitInfo")), {})


def read_commit_time(info: Mapping[str, Any]) -> dt.datetime:
    """Return the time of a commit, by the clock of the machine that made it."""
    return dt.datetime.fromtimestamp(info.get("timestamp", 0) / 1000, dt.UTC)


def decode_bundle_id(number: int) -> str:
    """Return the bundle_id of its signed 64-bit number in a transaction identifier."""
    return f"{number & _MAX_UINT64:016x}"


def read_names(index: str) -> LoggedNames:
    """Return the names in all entries and checkpoints of the logs of an index.

    Raises IndexStateError, StorageError.
    """
    files: set[tuple[str, str]] = set()
    bundles: set[str] = set()
    for table in TABLES:
        actions = [a for entry in read_entries(index, table).values() for a in entry]
        for action in (*actions, *_read_checkpoints(index, table)):
            for kind in ("add", "remove"):
                path = (action.get(kind) or {}).get("path")
                if isinstance(path, str):
                    files |= {(table, path), (table, unquote(path))}
            transaction = action.get("txn") or {}
            if table == "images" and transaction.get("appId") == MODEL:
                if not isinstance(transaction.get("version"), int):
                    raise IndexStateError(f"{index}: its log is damaged: {shorten(transaction)}")
                bundles.add(decode_bundle_id(transaction["version"]))
    return LoggedNames(frozenset(files), frozenset(bundles))


def _read_checkpoints(index: str, table: str) -> list[Action]:
    actions: list[Action] = []
    folder = storage.join(index, table, _LOG)
    for uri, *_ in storage.find_files(folder, ".parquet", links=True):
        if not _CHECKPOINT.fullmatch(storage.name(uri)):
            continue
        columns = ["add.path", "remove.path", "txn.appId", "txn.version"]
        try:
            rows = open_parquet(storage.read_bytes(uri)).read(columns=columns)
            actions += rows.to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            text = f"{uri} cannot be read ({error}); put it back (bucket versions, backup)"
            raise IndexStateError(text) from error
    return actions
