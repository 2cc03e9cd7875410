"""Latency of SQL, compared with the matrix–vector product that every answer needs."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segrec_batch.evaluation.items import Section, Table, Text
from segrec_batch.evaluation.retrieval.collection import Collection, Features, Ints
from segrec_batch.evaluation.retrieval.methods import parse_method
from segrec_batch.evaluation.retrieval.settings import PAPER_EPSILON, PAPER_WINDOW, PLAIN, Setting
from segrec_batch.search.database import Database
from segrec_batch.search.sql.connection import query

LATENCY_QUERIES = 20
_LATENCY = (
    "The ten best by SQL in DuckDB, one query at a time. The ratio is to NumPy's product of all "
    "vectors that the method compares, in memory, with that of the query. With few vectors a "
    "query is mostly planning, and the ratio means little."
)
_RECOMMEND = "FROM recommend($id, k := 10{})"
_WINDOW = "min_coverage := {:g}, max_coverage := {:g}".format(*PAPER_WINDOW)
_SIGMA, _EPSILON = Setting(window=PAPER_WINDOW).name, Setting(epsilon=PAPER_EPSILON).name


@dataclass(frozen=True)
class Latency:
    """Time of the 10 best by SQL in DuckDB over some queries, one at a time, after one to warm up.

    Attributes:
        median_ms, p95_ms: median and 95th percentile, in milliseconds.
        ratio: the median to that of NumPy's product of all vectors that the method compares,
            float32 in memory, with the query's, in the same run.
        queries: number of queries.
    """

    method: str
    setting: str
    median_ms: float
    p95_ms: float
    ratio: float
    queries: int


@dataclass(frozen=True)
class _Statement:
    """SQL of a method in a setting; `of_class` if it compares the query's dominant class."""

    method: str
    setting: str
    sql: str
    of_class: bool = False

    def vectors(self, images: Collection, row: int) -> Features:
        """Return the vectors that are compared with a query; none if the query is unsuitable."""
        nothing = np.empty((0, 0), np.float32)
        if descriptor := parse_method(self.method).descriptor:
            vectors = images.vectors[descriptor]
            return vectors if np.isfinite(vectors[row]).all() else nothing
        cls = int(images.dominant[row])
        if self.of_class and not cls:
            return nothing
        return images.regions[cls].features if self.method == "region" else images.features


_STATEMENTS = (
    _Statement("pearson", "", _RECOMMEND.format("")),
    _Statement("pearson", _EPSILON, _RECOMMEND.format(f", epsilon := {PAPER_EPSILON:g}")),
    _Statement(
        "pearson",
        _SIGMA,
        _RECOMMEND.format(f", class := $class, scope := 'image', {_WINDOW}"),
        of_class=True,
    ),
    _Statement("region", "", _RECOMMEND.format(", class := $class"), of_class=True),
    _Statement("region", _SIGMA, _RECOMMEND.format(f", class := $class, {_WINDOW}"), of_class=True),
    _Statement("sign-bits", "", "FROM recommend_by_sign_bits($id, k := 10)"),
    _Statement("pearson+iou", "", _RECOMMEND.format(", rerank := 'mask_iou'")),
)


def measure_latencies(
    database: Database, images: Collection, methods: Sequence[str], rows: Ints, seed: int
) -> list[Latency]:
    """Return the latency of the methods that SQL has, for up to 20 queries, drawn from `rows`."""
    drawn = [int(row) for row in np.random.default_rng(seed).permutation(rows)]
    parsed = {m: parse_method(m) for m in methods if m != "pearson"}
    others = [m for m, p in parsed.items() if p.metric or p.descriptor]
    statements = [
        *_STATEMENTS,
        *(_Statement(m, "", _RECOMMEND.format(f", method := '{m}'")) for m in others),
    ]
    return [
        latency
        for statement in statements
        if statement.method in methods
        for latency in _latency(database, images, statement, drawn)
    ]


def _latency(
    database: Database, images: Collection, statement: _Statement, drawn: Sequence[int]
) -> Iterator[Latency]:
    """Yield one latency, or none without suitable queries."""

    def recommend(row: int) -> None:
        parameters = {"id": images.ids[row].as_py()}
        if statement.of_class:
            parameters["class"] = images.classes[images.dominant[row] - 1]
        query(database.connection, statement.sql, parameters)

    vectors = {row: v for row in drawn if len(v := statement.vectors(images, row))}
    rows = list(vectors)[:LATENCY_QUERIES]
    if not rows:
        return
    times = _seconds(recommend, rows)
    product = _seconds(lambda row: vectors[row] @ vectors[row][0], rows)
    median, last = np.percentile(times, (50, 95))
    ratio = float(median / np.median(product))
    yield Latency(
        statement.method,
        statement.setting,
        1000 * float(median),
        1000 * float(last),
        ratio,
        len(rows),
    )


def _seconds(function: Callable[[int], object], rows: Sequence[int]) -> NDArray[np.float64]:
    """Return the time of each call, after one to warm up."""
    function(rows[0])
    times = []
    for row in rows:
        start = time.perf_counter()
        function(row)
        times.append(time.perf_counter() - start)
    return np.array(times)


def latency_section(times: Sequence[Latency]) -> Section | None:
    """Return the time of a query by SQL."""
    if not times:
        return None
    rows = [
        [t.method, t.setting or PLAIN.label, f"{t.median_ms:.1f}", f"{t.p95_ms:.1f}",
         f"{t.ratio:.1f}", str(t.queries)] for t in times
    ]  # fmt: skip
    header = ["method", "setting", "median, ms", "95th percentile, ms", "ratio", "queries"]
    table = Table("Time of one query, in this run", header, rows)
    return Section("Latency", [Text(_LATENCY), table])
