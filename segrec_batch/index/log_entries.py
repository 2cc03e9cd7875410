"""Entries of the logs of the index's Delta tables, and all files that they have ever named.

Delta Lake's own calls return the files of one version. A file may be deleted if any entry has named
it, and a missing entry shows only in the names of the log's files.
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
_64_BITS = 2**64 - 1

Action = Mapping[str, Any]


@dataclass(frozen=True)
class Names:
    """Names in logs.

    files: table and path of data files.
    bundles: bundle_ids.
    """

    files: frozenset[tuple[str, str]]
    bundles: frozenset[str]


def entry_name(version: int) -> str:
    """Return the path of a log entry below its table's folder."""
    return f"{_LOG}/{version:020}.json"


def read_entries(index: str, table: str) -> dict[int, list[Action]]:
    """Return the entries in a table's log folder by version, the newest first.

    Raises IndexStateError for an entry that cannot be read, StorageError.
    """
    uris = {}
    for uri, *_ in storage.find_files(storage.join(index, table, _LOG), ".json", links=True):
        if match := _ENTRY.fullmatch(storage.name(uri)):
            uris[int(match[1])] = uri
    versions = sorted(uris, reverse=True)
    contents = storage.read_many([uris[v] for v in versions])
    return {v: _actions(uris[v], c) for v, c in zip(versions, contents, strict=True)}


def _actions(uri: str, content: storage.Content) -> list[Action]:
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


def commit_info(actions: Iterable[Action]) -> dict[str, Any]:
    """Return the information of the commit of an entry; empty if there is none."""
    return next((dict(a["commitInfo"]) for a in actions if a.get("commitInfo")), {})


def commit_time(info: Mapping[str, Any]) -> dt.datetime:
    """Return the time of a commit, by the clock of the machine that made it."""
    return dt.datetime.fromtimestamp(info.get("timestamp", 0) / 1000, dt.UTC)


def bundle_of(number: int) -> str:
    """Return the bundle_id that a transaction identifier stands for."""
    return f"{number & _64_BITS:016x}"


def names(index: str) -> Names:
    """Return all names in entries and checkpoints of the logs of an index.

    Raises IndexStateError, StorageError.
    """
    files: set[tuple[str, str]] = set()
    bundles: set[str] = set()
    for table in TABLES:
        actions = [a for entry in read_entries(index, table).values() for a in entry]
        for action in (*actions, *_checkpoints(index, table)):
            for kind in ("add", "remove"):
                path = (action.get(kind) or {}).get("path")
                if isinstance(path, str):
                    files |= {(table, path), (table, unquote(path))}
            transaction = action.get("txn") or {}
            if table == "images" and transaction.get("appId") == MODEL:
                if not isinstance(transaction.get("version"), int):
                    raise IndexStateError(f"{index}: its log is damaged: {shorten(transaction)}")
                bundles.add(bundle_of(transaction["version"]))
    return Names(frozenset(files), frozenset(bundles))


def _checkpoints(index: str, table: str) -> list[Action]:
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
