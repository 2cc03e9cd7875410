"""Golden images: the file that lists them, and the overlap of their recommendations."""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
from pyarrow import csv

from segrec_batch.common.console import track
from segrec_batch.common.errors import InputError
from segrec_batch.index.column_values import image_id
from segrec_batch.index.parquet import read_parquet
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.search.database import open_files
from segrec_batch.search.sql.connection import query
from segrec_batch.sources import storage

WHOLE, REGION = "whole images", "regions of the dominant class"
OVERLAPS = pa.schema([
    ("name", pa.string()), ("image_id", pa.string()), ("setting", pa.string()),
    ("class", pa.string()), ("k", pa.int32()), ("value", pa.float64()),
])  # fmt: skip
"""Columns of `counts.parquet` that describe an overlap."""

_ID = re.compile(r"[0-9a-f]{32}")
_MULTILINE = csv.ParseOptions(newlines_in_values=True)
_TEXT = csv.ConvertOptions(column_types={"image_id": pa.string(), "uri": pa.string()})
_RECOMMEND = """
SELECT image_id FROM recommend($query::VARCHAR, k := $k, class := $class)
WHERE pearson IS NOT NULL ORDER BY rank
"""


def read_golden(uri: str) -> list[str]:
    """Return the distinct image_ids that a file lists as image_ids, URIs or paths.

    A .txt has one per line; a .csv or .parquet has a column image_id or uri. Raises InputError.
    """
    try:
        names = _read_names(uri)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{uri}: not a .txt with one name per line, nor a .csv or .parquet with a column "
            f"image_id or uri: {error}"
        ) from error
    ids = [n if _ID.fullmatch(n) else image_id(storage.absolute(n)) for n in names if n]
    if not ids:
        raise InputError(f"{uri}: lists no image")
    return list(dict.fromkeys(ids))


def _read_names(uri: str) -> list[str]:
    content, extension = storage.read_bytes(uri), uri.rpartition(".")[2]
    if extension == "txt":
        return [line.removesuffix("\r") for line in content.decode().split("\n")]
    if extension == "csv":
        table = csv.read_csv(io.BytesIO(content), parse_options=_MULTILINE, convert_options=_TEXT)
    else:
        table = read_parquet(content)
    for column in ("image_id", "uri"):
        if column in table.column_names:
            return [str(name) for name in table[column].drop_null().to_pylist()]
    raise ValueError(f"its columns are {', '.join(table.column_names)}")


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


def compare_recommendations(
    before: Snapshot, after: Snapshot, golden: pa.Table, classes: Sequence[str], k: int
) -> pa.Table:
    """Return the overlaps of the first k recommendations for each golden image, as OVERLAPS.

    Recommendations are by the whole image, and by the region of its dominant class if that is one
    of `classes`. golden: rows of `Pair.golden`.
    """
    rows: list[dict[str, Any]] = []
    with (
        closing(open_files(before).connection) as older,
        closing(open_files(after).connection) as newer,
    ):
        for image in track(golden.to_pylist(), "recommended for"):
            for setting, cls in ((WHOLE, ""), (REGION, image["class"])):
                if setting == REGION and cls not in classes:
                    continue
                values = {"query": image["image_id"], "k": k, "class": cls or None}
                a, b = (
                    query(connection, _RECOMMEND, values)["image_id"].to_pylist()
                    for connection in (older, newer)
                )
                row = {"image_id": image["image_id"], "setting": setting, "class": cls, "k": k}
                rows.append({**row, "name": "topk_overlap", "value": overlap(a, b)})
                rows.append({**row, "name": "average_overlap", "value": average_overlap(a, b)})
    return pa.Table.from_pylist(rows, OVERLAPS)
