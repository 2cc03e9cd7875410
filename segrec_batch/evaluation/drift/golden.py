"""Golden images: the file that lists them, and the overlap of their recommendations."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.index.column_values import image_id
from segrec_batch.index.parquet import read_parquet
from segrec_batch.search.database import Database
from segrec_batch.search.sql.connection import query
from segrec_batch.sources import storage

WHOLE, REGION = "whole images", "regions of the dominant class"

_ID = re.compile(r"[0-9a-f]{32}")
_RECOMMEND = """
SELECT image_id FROM recommend($query::VARCHAR, k := $k, class := $class)
WHERE pearson IS NOT NULL ORDER BY rank
"""


def read_golden(uri: str) -> list[str]:
    """Return the distinct image_ids that a file lists as image_ids, URIs or paths.

    A .txt has one per line; a .csv or .parquet has a column image_id or uri. Raises InputError.
    """
    try:
        names = _READERS[storage.name(uri).rpartition(".")[2]](storage.read_bytes(uri))
    except (OSError, KeyError, TypeError, ValueError, csv.Error, pa.ArrowException) as error:
        raise InputError(
            f"{uri}: not a .txt with one name per line, nor a .csv or .parquet with a column "
            f"image_id or uri: {error}"
        ) from error
    ids = [n if _ID.fullmatch(n) else image_id(storage.absolute(n)) for n in names if n]
    if not ids:
        raise InputError(f"{uri}: lists no image")
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
    """Return 16 hex digits that identify a set of image_ids."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def overlap(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Return |A ∩ B| / k of two rankings, k the longer length; None if both are empty.

    >>> overlap(["x", "y"], ["y", "z"])
    0.5
    """
    longer = max(len(a), len(b))
    return len({*a} & {*b}) / longer if longer else None


def average_overlap(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Return the mean of `overlap` over the first 1, 2, … places of two rankings.

    Early places weigh more (Fagin, Kumar and Sivakumar, Comparing top k lists, 2003, §2.4).

    >>> average_overlap(["x", "y"], ["y", "x"])
    0.5
    """
    depths = range(1, max(len(a), len(b)) + 1)
    shares = [len({*a[:d]} & {*b[:d]}) / d for d in depths]
    return sum(shares) / len(shares) if shares else None


def overlaps(
    before: Database, after: Database, image: Mapping[str, Any], classes: Iterable[str], k: int
) -> Iterator[dict[str, Any]]:
    """Yield the overlaps of one golden image, as rows of `golden_counts`.

    Recommendations are by the whole image, and by the region of its dominant class if that is one
    of `classes`.
    """
    queries = [(WHOLE, None)]
    if image["class"] in classes:
        queries.append((REGION, image["class"]))
    for setting, cls in queries:
        values = {"query": image["image_id"], "k": k, "class": cls}
        a, b = (
            query(index.connection, _RECOMMEND, values)["image_id"].to_pylist()
            for index in (before, after)
        )
        row = {"image_id": image["image_id"], "setting": setting, "class": cls or "", "k": k}
        yield {"name": "topk_overlap", "value": overlap(a, b), **row}
        yield {"name": "average_overlap", "value": average_overlap(a, b), **row}
