"""Output folder of a recommendation job.

    OUTPUT/request.json                 the request; written first
    OUTPUT/class=CLASS/part-….parquet   RECOMMENDATIONS of one part of the queries, whole or absent
    OUTPUT/unanswered.parquet           UNANSWERED: the other queries, with reasons
    OUTPUT/_SUCCESS                     counts, as JSON; written last

For whole images the class is NULL; the folder is class=__HIVE_DEFAULT_PARTITION__.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segrec_batch.common.errors import InputError
from segrec_batch.index.parquet import open_parquet
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import parse_json, read_json

_REQUEST, _SUCCESS, _UNANSWERED = "request.json", "_SUCCESS", "unanswered.parquet"
_OF_SNAPSHOT = {"version", "model_id", "queries"}  # fields that differ between snapshots
_CLASS = re.compile(r"class=\w+")
_PART = re.compile(_CLASS.pattern + r"/part-(\d{6,})\.parquet")
_NULL = "__HIVE_DEFAULT_PARTITION__"
_RECEIPT = b"segrec"  # the key of a receipt in the metadata of a part


@dataclass(frozen=True)
class Receipt:
    """Counts of a written part, and its queries without recommendations.

    swept: queries whose shortlist was not proved, see `search`; 0 for parts of an earlier run.
    """

    queries: int
    rows: int
    nothing_left: tuple[str, ...]
    swept: int = 0


class Output:
    """Folder (absolute URI) of the recommendations for a class, or for whole images (None)."""

    def __init__(self, uri: str, cls: str | None) -> None:
        self.uri = uri
        self._parts = storage.join(uri, f"class={_NULL if cls is None else cls}")

    def part_uri(self, number: int) -> str:
        """Return the URI of a part."""
        return storage.join(self._parts, f"part-{number:06}.parquet")

    def begin(self, request: Mapping[str, Any], overwrite: bool) -> None:
        """Start or resume a request in the folder. Raises InputError if it has another request."""
        if overwrite and (self._read(_REQUEST) or {}).keys() >= _OF_SNAPSHOT:
            self._clear()
        stored = self._read(_REQUEST)
        if stored is None:
            self._refuse_foreign_files()
            self._write(_REQUEST, request)
        elif stored != request:
            raise InputError(f"{self.uri}: {self._describe_difference(stored, request)}")

    def _clear(self) -> None:
        """Delete the files of a job, `_SUCCESS` first and the request last."""
        for uris in ([self._at(_SUCCESS)], list(self._files()), [self._at(_REQUEST)]):
            storage.delete(uris)

    def _refuse_foreign_files(self) -> None:
        storage.refuse_foreign_files(
            self.uri, lambda _: False, "an output of this job", "give another --output"
        )

    def _describe_difference(self, stored: Mapping[str, Any], request: Mapping[str, Any]) -> str:
        state = "complete" if self.success() else "unfinished"
        names = {n for n in request if stored.get(n) != request[n]}
        remedy = "replace them with --overwrite, or give another --output"
        if "version" in names and names <= _OF_SNAPSHOT:
            versions = f"version {stored['version']} of the index, not {request['version']}"
            remedy = f"give --version {stored['version']}, {remedy}"
            return f"holds {state} recommendations of {versions}; {remedy}"
        pairs = ((n, _shorten(stored.get(n)), _shorten(request[n])) for n in sorted(names))
        fields = ", ".join(f"{name} {old}, not {new}" for name, old, new in pairs)
        return f"holds {state} recommendations of another request ({fields}); {remedy}"

    def _files(self) -> Iterator[str]:
        """Yield the parts of all classes, the unanswered queries, and drafts of these."""
        for uri, *_ in storage.find_files(self.uri):
            path = uri.removeprefix(f"{self.uri}/")
            folder = path.rpartition("/")[0]
            draft = storage.is_draft(path) and (not folder or _CLASS.fullmatch(folder))
            if path == _UNANSWERED or _PART.fullmatch(path) or draft:
                yield uri

    def finished_parts(self) -> set[int]:
        """Return the numbers of the written parts."""
        files = storage.find_files(self._parts, ".parquet", links=True)
        paths = (uri.removeprefix(f"{self.uri}/") for uri, *_ in files)
        return {int(match[1]) for path in paths if (match := _PART.fullmatch(path))}

    def success(self) -> dict[str, Any] | None:
        """Return the counts of the output; None if it is not complete."""
        return self._read(_SUCCESS)

    def finish(self, unanswered: pa.Table, counts: Mapping[str, Any]) -> None:
        """Write the queries without an answer, then the counts."""
        storage.write_bytes(self._at(_UNANSWERED), _parquet(unanswered))
        self._write(_SUCCESS, counts)

    def _at(self, name: str) -> str:
        return storage.join(self.uri, name)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content = read_json(self._at(name))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self._at(name)}: {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{self._at(name)} is not a file of this job; give another --output")
        return content

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        storage.write_bytes(self._at(name), (json.dumps(content, indent=2) + "\n").encode())


def write_part(uri: str, rows: pa.Table, queries: Sequence[str]) -> Receipt:
    """Write the RECOMMENDATIONS for some queries (image_ids), with a receipt in the metadata."""
    answered = set(rows["query_id"].to_pylist())
    nothing_left = tuple(name for name in queries if name not in answered)
    receipt = {"queries": len(queries), "nothing_left": nothing_left}
    rows = rows.replace_schema_metadata({_RECEIPT: json.dumps(receipt)})
    storage.write_bytes(uri, _parquet(rows))
    return Receipt(len(queries), rows.num_rows, nothing_left)


def read_receipt(uri: str) -> Receipt:
    """Read the receipt of a part. Raises InputError if it is damaged."""
    try:
        with storage.opened(uri) as file:
            metadata = open_parquet(file).metadata
        receipt = parse_json((metadata.metadata or {})[_RECEIPT])
        nothing_left = tuple(map(str, receipt["nothing_left"]))
        return Receipt(int(receipt["queries"]), metadata.num_rows, nothing_left)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{uri} is damaged: {error}; delete it and run again") from error


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _shorten(value: Any) -> str:
    return json.dumps(value)[:80]
