"""Golden images: which they are, by a file that names them."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.index.column_values import image_id
from segrec_batch.index.parquet import read_parquet
from segrec_batch.sources import storage

_ID = re.compile(r"[0-9a-f]{32}")


def read_golden(uri: str) -> list[str]:
    """The image_ids that a file names, each once: by themselves, by URI or path.

    A .txt has one a line; a .csv or .parquet has a column image_id or uri. Raises InputError.
    """
    try:
        names = _READERS[storage.name(uri).rpartition(".")[2]](storage.read_bytes(uri))
    except (OSError, KeyError, TypeError, ValueError, csv.Error, pa.ArrowException) as error:
        raise InputError(
            f"{uri}: not a .txt with a name a line, nor a .csv or .parquet with a column image_id "
            f"or uri: {error}"
        ) from error
    ids = [n if _ID.fullmatch(n) else image_id(storage.absolute(n)) for n in names if n]
    if not ids:
        raise InputError(f"{uri}: names no image")
    return list(dict.fromkeys(ids))


def _lines(content: bytes) -> list[str]:
    return [line.removesuffix("\r") for line in content.decode().split("\n")]


def _csv(content: bytes) -> list[str]:
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    column = _column(rows.fieldnames or ())
    return [row[column] for row in rows]


def _parquet(content: bytes) -> list[str]:
    rows = read_parquet(content)
    return [str(v) for v in rows[_column(rows.column_names)].to_pylist() if v is not None]


def _column(names: Sequence[str]) -> str:
    for column in ("image_id", "uri"):
        if column in names:
            return column
    raise ValueError(f"its columns are {', '.join(names)}")


_READERS = {"txt": _lines, "csv": _csv, "parquet": _parquet}


def fingerprint(ids: Iterable[str]) -> str:
    """16 hex digits of a set of image_ids."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]
