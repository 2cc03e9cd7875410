"""Latency of SQL, compared with the matrix–vector product that every answer needs."""

import time
from collections.abc import Callable, Sequence
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
_WINDOW = "class := $class, min_coverage := {:g}, max_coverage := {:g}".format(*PAPER_WINDOW)
_SIGMA, _EPSILON = Setting(window=PAPER_WINDOW).name, Setting(epsilon=PAPER_EPSILON).name
_STATEMENTS = (
    ("pearson", "", _RECOMMEND.format("")),
    ("pearson", _EPSILON, _RECOMMEND.format(f", epsilon := {PAPER_EPSILON:g}")),
    ("pearson", _SIGMA, _RECOMMEND.format(f", {_WINDOW}, scope := 'image'")),
    ("region", "", _RECOMMEND.format(", class := $class")),
    ("region", _SIGMA, _RECOMMEND.format(f", {_WINDOW}")),
    ("sign-bits", "", "FROM recommend_by_sign_bits($id, k := 10)"),
    ("pearson+iou", "", _RECOMMEND.format(", rerank := 'mask_iou'")),
)
"""Method, setting and SQL; $class is the dominant class of the query."""


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


def measure_latencies(
    database: Database, images: Collection, methods: Sequence[str], rows: Ints, seed: int
) -> list[Latency]:
    """Return the latency of the methods that SQL has, for up to 20 queries, drawn from `rows`."""
    drawn = np.random.default_rng(seed).permutation(rows).tolist()
    parsed = {m: parse_method(m) for m in methods if m != "pearson"}
    others = [m for m, p in parsed.items() if p.metric or p.descriptor]
    statements = [
        *(statement for statement in _STATEMENTS if statement[0] in methods),
        *((m, "", _RECOMMEND.format(_arguments(m))) for m in others),
    ]
    latencies = (_measure(database, images, drawn, *statement) for statement in statements)
    return [latency for latency in latencies if latency]


def _arguments(method: str) -> str:
    name, _, expand = method.partition("+expand")
    return f", method := '{name}'" + (f", expand := {expand}" if expand else "")


def _measure(
    database: Database,
    images: Collection,
    drawn: Sequence[int],
    method: str,
    setting: str,
    sql: str,
) -> Latency | None:
    """Return the latency of a statement, None without suitable queries."""

    def recommend(row: int) -> None:
        parameters = {"id": images.ids[row].as_py()}
        if "$class" in sql:
            parameters["class"] = images.classes[images.dominant[row] - 1]
        query(database.connection, sql, parameters)

    suitable = (row for row in drawn if images.dominant[row] or "$class" not in sql)
    vectors = {row: v for row in suitable if len(v := _vectors(method, images, row))}
    rows = list(vectors)[:LATENCY_QUERIES]
    if not rows:
        return None
    times = _milliseconds(recommend, rows)
    product = _milliseconds(lambda row: vectors[row] @ vectors[row][0], rows)
    median, p95 = np.percentile(times, (50, 95)).tolist()
    ratio = median / float(np.median(product))
    return Latency(method, setting, median, p95, ratio, len(rows))


def _vectors(method: str, images: Collection, row: int) -> Features:
    """Return the vectors that are compared with a query; none if the query has no vector."""
    if method == "region":
        return images.regions[int(images.dominant[row])].features
    if descriptor := parse_method(method).descriptor:
        vectors = images.vectors[descriptor]
        return vectors if np.isfinite(vectors[row]).all() else vectors[:0]
    return images.features


def _milliseconds(function: Callable[[int], object], rows: Sequence[int]) -> NDArray[np.float64]:
    """Return the time of each call, after one to warm up."""
    function(rows[0])
    times = []
    for row in rows:
        start = time.perf_counter()
        function(row)
        times.append(1000 * (time.perf_counter() - start))
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
