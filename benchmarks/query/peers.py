"""The compared systems, on the same rows.

All take a query as its number in `Questions`. All but `NumPy.product`, `NumPy.read` and
`recommend_by_sign_bits` are exact: they return the ten rows of the highest Pearson correlation
whose σ is in a window.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.query.synthetic import (
    WINDOWS,
    Case,
    Vectors,
    Window,
    blocks,
    draw_coverages,
    draw_features,
    row_of,
    standardise,
    uri,
)
from segrec_batch.index.column_values import image_id
from segrec_batch.model.backbones import DEFAULT_BACKBONE
from segrec_batch.search.database import open_index
from segrec_batch.search.sql.connection import PROFILED, Access, Work, read_last_work

K = 10
CORES = len(os.sched_getaffinity(0))
_FILTERS = "class := 'car', min_coverage := $low, max_coverage := $high"
_FROM_FILE = "FROM read_parquet($file) WHERE coverage BETWEEN $low AND $high"

Ask = Callable[[int, Window], list[int]]


@dataclass(frozen=True)
class Questions:
    """Queries: new features, and rows of the index."""

    case: Case
    count: int

    @cached_property
    def vectors(self) -> Vectors:
        """New features (count, 512), not in the index."""
        return draw_features(4, 0, self.count)

    @cached_property
    def units(self) -> Vectors:
        """The same, centred and at unit length."""
        return standardise(self.vectors)

    @cached_property
    def rows(self) -> list[int]:
        """Rows of indexed images."""
        rows = np.random.default_rng(5).integers(self.case.rows, size=self.count)
        return [int(row) for row in rows]


class NumPy:
    """All features in memory, and one matrix-vector product on all cores."""

    def __init__(self, questions: Questions) -> None:
        threadpool_limits(CORES, user_api="blas")
        case, self._questions = questions.case, questions
        self.matrix = np.empty((case.rows, DEFAULT_BACKBONE.feature_length), np.float32)
        for start, rows in blocks(case.rows):
            self.matrix[start : start + rows] = standardise(draw_features(0, start, rows))
        self.coverage = np.concatenate([draw_coverages(*block) for block in blocks(case.rows)])

    def product(self, query: int, _: Window) -> list[int]:
        """Compute only the product, the unit of all ratios."""
        self.matrix @ self._questions.units[query]
        return []

    def count_passing(self, window: Window) -> int:
        """Return the number of rows with σ in a window."""
        low, high = window
        return int(((self.coverage >= low) & (self.coverage <= high)).sum())

    def find_best(self, unit: Vectors, excluded: int | None) -> dict[Window, list[int]]:
        """Return the answers for all windows, without the row `excluded`."""
        scores = self.matrix @ unit
        if excluded is not None:
            scores[excluded] = -2
        return {window: self._first(scores, window) for window in WINDOWS.values()}

    def _first(self, scores: Vectors, window: Window) -> list[int]:
        low, high = window
        rows = np.flatnonzero((self.coverage >= low) & (self.coverage <= high))
        if len(rows) > K:
            rows = rows[np.argpartition(-scores[rows], K)[:K]]
        return rows.tolist()

    def read(self, _query: int, _window: Window) -> list[int]:
        """Sum the matrix as integers on all cores, at the speed of memory."""
        slices = np.array_split(self.matrix.reshape(-1).view(np.int64), CORES)
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(np.add.reduce, slices))
        return []


class Faiss:
    """A flat index for each core, since FAISS computes one query on one thread."""

    def __init__(self, questions: Questions, matrix: Vectors) -> None:
        import faiss

        faiss.omp_set_num_threads(CORES)
        self._questions = questions
        self._index = faiss.IndexShards(DEFAULT_BACKBONE.feature_length, True, True)
        self._flat = [faiss.IndexFlatIP(DEFAULT_BACKBONE.feature_length) for _ in range(CORES)]
        for flat, rows in zip(self._flat, np.array_split(matrix, CORES), strict=True):
            flat.add(rows)
            self._index.add_shard(flat)

    def ask(self, query: int, _: Window) -> list[int]:
        """Return the answer among all rows."""
        rows = self._index.search(self._questions.units[query][None], K)[1][0]
        return [int(row) for row in rows]


class Lance:
    """A LanceDB table without a vector index, which it scans."""

    def __init__(self, questions: Questions) -> None:
        os.environ["LANCE_CPU_THREADS"] = str(CORES)
        import lancedb

        self._questions = questions
        self._table = lancedb.connect(questions.case.lance).open_table("car")

    def ask(self, query: int, window: Window) -> list[int]:
        """Return the answer; the window is a filter before the scan."""
        low, high = window
        search = self._table.search(self._questions.units[query]).distance_type("dot")
        search = search.where(f"coverage BETWEEN {low} AND {high}", prefilter=True)
        rows: list[int] = search.limit(K).select(["row", "_distance"]).to_arrow()["row"].to_pylist()
        return rows


def _enable_profiling(connection: Any) -> None:
    for name, value in PROFILED.items():
        connection.execute(f"SET {name} = '{value}'")


class Parquet:
    """DuckDB over one unsorted Parquet file of regions, with the macro `pearson`."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        # the cache is opened for its macros only
        self._connection = open_index(questions.case.cache, access=Access.OPEN).connection
        self._connection.execute(f"SET threads = {CORES}")

    def ask(self, query: int, window: Window) -> list[int]:
        """Return the answer."""
        cursor = self._connection.execute(
            f"SELECT uri {_FROM_FILE} "
            "ORDER BY pearson(feature, $query::FLOAT[]) DESC, image_id LIMIT $k",
            {**self._values(query, window), "k": K},
        )
        return [row_of(uri) for (uri,) in cursor.fetchall()]

    def measure_work(self, query: int, window: Window) -> Work:
        """Return the work of a query over the same rows."""
        _enable_profiling(self._connection)
        self._connection.execute(  # ORDER BY … LIMIT would read the files twice
            f"SELECT sum(pearson(feature, $query::FLOAT[])) {_FROM_FILE}",
            self._values(query, window),
        ).fetchall()
        return read_last_work(self._connection)

    def _values(self, query: int, window: Window) -> dict[str, object]:
        file, vector = self._questions.case.unsorted, self._questions.vectors[query].tolist()
        return {"file": file, "query": vector, "low": window[0], "high": window[1]}


class Segrec:
    """`recommend` of this package, over the files of an index or over its query cache."""

    def __init__(self, questions: Questions, cache: bool) -> None:
        case, self._questions = questions.case, questions
        source, version = (case.cache, None) if cache else (case.index, 1)
        database = open_index(source, version, Access.OPEN)
        self._connection = database.connection
        self._connection.execute(f"SET threads = {CORES}")

    def by_vector(self, query: int, window: Window) -> list[int]:
        """Return the answer among the regions of class car."""
        return self._rows(
            f"recommend($query::FLOAT[], k := $k, {_FILTERS})",
            query=self._questions.vectors[query].tolist(),
            low=window[0],
            high=window[1],
        )

    def by_image(self, query: int, window: Window) -> list[int]:
        """Return the answer to an indexed image without that image."""
        return self._rows(
            f"recommend($query::VARCHAR, k := $k, {_FILTERS})",
            query=self._id(query),
            low=window[0],
            high=window[1],
        )

    def images_by_vector(self, query: int, _: Window) -> list[int]:
        """Return the answer among whole images."""
        vector = self._questions.vectors[query].tolist()
        return self._rows("recommend($query::FLOAT[], k := $k)", query=vector)

    def images_by_image(self, query: int, _: Window) -> list[int]:
        """Return the answer to an indexed image among whole images, without that image."""
        return self._rows("recommend($query::VARCHAR, k := $k)", query=self._id(query))

    def by_sign_bits(self, query: int, _: Window) -> list[int]:
        """Return an approximation of that answer."""
        return self._rows("recommend_by_sign_bits($query, k := $k)", query=self._id(query))

    def measure_work(self, query: int, window: Window) -> Work:
        """Return the work of `by_vector`."""
        _enable_profiling(self._connection)
        self.by_vector(query, window)
        return read_last_work(self._connection)

    def _id(self, query: int) -> str:
        return image_id(uri(self._questions.rows[query]))

    def _rows(self, source: str, **values: object) -> list[int]:
        sql = f"SELECT uri FROM {source} ORDER BY rank"  # noqa: S608
        cursor = self._connection.execute(sql, {**values, "k": K})
        return [row_of(uri) for (uri,) in cursor.fetchall()]
