"""Candidates and queries of a snapshot in blocks, and the unanswered queries.

DuckDB selects and sorts, on disk if memory is short, and returns vectors one block at a time.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from segrec_batch.common.errors import InputError, SegrecError
from segrec_batch.index.parquet import read_parquet
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.search.batch.search import Block
from segrec_batch.search.database import open_files
from segrec_batch.search.filters import Filters
from segrec_batch.search.sql.connection import Settings, query, read_batches, run
from segrec_batch.search.sql.guard import QueryGuard
from segrec_batch.search.sql.views import quoted
from segrec_batch.sources import storage

NOTHING_LEFT = "no candidate is left"
UNANSWERED = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
_MEMORY = "2GB"  # of DuckDB
_COLUMNS = "image_id, uri, coverage, feature, total, norm, place, content"

# `total` and `norm` are parts of the macro `pearson`; norm is NULL or NaN where it is undefined.
_VECTORS = """
CREATE TEMP VIEW vectors AS
SELECT
    image_id, uri, coverage, feature,
    list_sum(feature::DOUBLE[]) AS total,
    sqrt(greatest(len(feature) * list_inner_product(feature::DOUBLE[], feature::DOUBLE[])
                  - list_sum(feature::DOUBLE[]) ** 2, 0))
        + 0 * nullif(list_max(feature) - list_min(feature), 0) AS norm,
    coalesce(norm > 0 AND isfinite(norm), false) AS is_defined
FROM {source}
"""
_IMAGES = "(SELECT image_id, uri, NULL::FLOAT AS coverage, feature FROM images)"
_REGIONS = "(FROM regions WHERE class = {cls})"

_INDEXED = """
CREATE TEMP TABLE indexed AS
SELECT
    image_id,
    row_number() OVER (ORDER BY image_id) AS place,
    dense_rank() OVER (ORDER BY content_hash) AS content
FROM images
"""
_QUERIES = """
CREATE TEMP TABLE queries AS
WITH checked AS (
    SELECT
        query_images.image_id,
        CASE
            WHEN indexed.image_id IS NULL THEN 'not in the index'
            WHEN vectors.image_id IS NULL THEN 'no region of the class'
            WHEN NOT is_defined THEN 'Pearson is undefined (a constant vector)'
        END AS reason
    FROM query_images LEFT JOIN indexed USING (image_id) LEFT JOIN vectors USING (image_id)
)
SELECT *, row_number() OVER (PARTITION BY reason ORDER BY image_id) - 1 AS number FROM checked
"""


@dataclass(frozen=True)
class Request:
    """Filters and query images: those that SQL or a Parquet file names; None for all images."""

    filters: Filters
    queries: str | None = None


class Selection:
    """Rows selected from a snapshot, as a context manager; DuckDB spills to `folder`."""

    def __init__(self, snapshot: Snapshot, request: Request, folder: Path) -> None:
        self.request = request
        settings: Settings = {
            "memory_limit": _MEMORY,
            "temp_directory": str(folder / "spill"),
            "preserve_insertion_order": False,  # the order would cost memory
        }
        self._database = open_files(snapshot, settings=settings)
        self._connection = self._database.connection
        self._select_queries(request.queries)

    def _select_queries(self, queries: str | None) -> None:
        source = "images"
        if queries is not None and queries.endswith(".parquet"):
            self._connection.register("query_file", _read_ids(queries))
            source = "query_file"
        elif queries is not None:
            with QueryGuard(self._database) as guard:
                guard.check(queries)
            source = f"({queries.strip().rstrip(';')}\n)"
        sql = f"SELECT DISTINCT image_id::VARCHAR AS image_id FROM {source}"  # noqa: S608
        run(self._connection, f"CREATE TEMP TABLE query_images AS {sql} WHERE image_id IS NOT NULL")

    def fingerprint(self) -> dict[str, Any]:
        """Return the number of queries, and a hash of their ids that ignores their order."""
        ids = "bit_xor(md5_number(image_id))::VARCHAR"
        sql = f"SELECT count(*) AS count, {ids} AS ids FROM query_images"  # noqa: S608
        result: dict[str, Any] = query(self._connection, sql).to_pylist()[0]
        if not result["count"]:
            raise InputError("the queries name no image_id: there is nothing to do")
        return result

    def prepare(self) -> dict[str, int]:
        """Look up the queries; return their counts by reason for being unusable, '' if usable."""
        cls = self.request.filters.cls
        source = _IMAGES if cls is None else _REGIONS.format(cls=quoted(cls))
        for sql in (_VECTORS.format(source=source), _INDEXED, _QUERIES):
            run(self._connection, sql)
        sql = "SELECT coalesce(reason, '') AS reason, count(*) AS n FROM queries GROUP BY ALL"
        counts = {row["reason"]: row["n"] for row in query(self._connection, sql).to_pylist()}
        return {"": 0, **counts}

    @property
    def width(self) -> int:
        """Number of values of a vector; 0 if there are no vectors."""
        rows = query(self._connection, "SELECT len(feature) AS n FROM vectors LIMIT 1").to_pylist()
        return rows[0]["n"] if rows else 0

    def candidates(self, rows: int) -> Iterator[Block]:
        """Yield the images that can be recommended, in blocks of `rows`, in any order."""
        sql = f"SELECT {_COLUMNS} FROM vectors JOIN indexed USING (image_id) WHERE is_defined"  # noqa: S608
        if self.request.filters.cls is not None:
            sql += " AND coverage BETWEEN $low AND $high"
        low, high = self.request.filters.coverage
        window = {"low": low, "high": high} if self.request.filters.cls is not None else {}
        for table in _regroup(read_batches(self._connection, sql, window, rows), rows):
            yield _block(table)

    def queries(self, parts: Collection[int], size: int) -> Iterator[tuple[int, Block]]:
        """Yield number and block of each of `parts`: `size` queries with a vector, by image_id."""
        if not parts:
            return
        self._connection.register("parts", pa.table({"part": sorted(parts)}))
        sql = (
            f"SELECT {_COLUMNS}, number FROM queries "  # noqa: S608
            "JOIN vectors USING (image_id) JOIN indexed USING (image_id) "
            "WHERE reason IS NULL AND number // $size IN (SELECT part FROM parts) ORDER BY number"
        )
        for table in _regroup(read_batches(self._connection, sql, {"size": size}, size), size):
            yield table["number"][0].as_py() // size, _block(table)

    def unanswered(self, nothing_left: Collection[str]) -> pa.Table:
        """Return the UNANSWERED queries: without a defined vector, or without candidates."""
        self._connection.register(
            "without_candidates", pa.table({"image_id": list(nothing_left)}, _ID)
        )
        sql = (
            "SELECT image_id AS query_id, reason FROM queries WHERE reason IS NOT NULL "  # noqa: S608
            f"UNION ALL SELECT image_id, {quoted(NOTHING_LEFT)} FROM without_candidates "
            "ORDER BY query_id"
        )
        return query(self._connection, sql).cast(UNANSWERED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


_ID = pa.schema([("image_id", pa.string())])


def _read_ids(uri: str) -> pa.Table:
    """Read the column image_id of a Parquet file. Raises InputError."""
    try:
        with storage.opened(uri) as file:
            return read_parquet(file, ["image_id"])
    except SegrecError:
        raise
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(f"{uri}: not a Parquet file with a column image_id: {error}") from error


def _regroup(source: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Yield batches as tables of `size` rows; the last may be shorter."""
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in source:
        while rows + batch.num_rows >= size:
            yield pa.Table.from_batches([*pending, batch.slice(0, size - rows)])
            batch = batch.slice(size - rows)
            pending, rows = [], 0
        pending.append(batch)
        rows += batch.num_rows
    if rows:
        yield pa.Table.from_batches(pending)


def _block(rows: pa.Table) -> Block:
    features = rows["feature"].combine_chunks()
    values = features.flatten().to_numpy().reshape(len(rows), -1)
    totals, norms, places, contents = (
        np.ascontiguousarray(rows[name].to_numpy())
        for name in ("total", "norm", "place", "content")
    )
    identities = rows.select(["image_id", "uri", "coverage"]).combine_chunks()
    return Block(np.array(values), totals, norms, places, contents, identities)
