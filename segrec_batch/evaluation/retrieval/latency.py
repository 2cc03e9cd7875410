"""How long SQL takes to answer, beside the matrix–vector product that no answer can do without."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.conditions import Setting
from segrec_batch.evaluation.retrieval.methods import method
from segrec_batch.evaluation.retrieval.settings import PAPER_EPSILON, PAPER_WINDOW
from segrec_batch.search.database import Database, query

QUERIES = 20
_RECOMMEND = "FROM recommend($id, k := 10{})"
_WINDOW = "min_coverage := {:g}, max_coverage := {:g}".format(*PAPER_WINDOW)
_SIGMA, _EPSILON = Setting(window=PAPER_WINDOW).name, Setting(epsilon=PAPER_EPSILON).name


@dataclass(frozen=True)
class _Way:
    """SQL for a method in a setting; `of_class` if it is about the query's dominant class."""

    method: str
    setting: str
    sql: str
    of_class: bool = False


_WAYS = (
    _Way("pearson", "", _RECOMMEND.format("")),
    _Way("pearson", _EPSILON, _RECOMMEND.format(f", epsilon := {PAPER_EPSILON:g}")),
    _Way(
        "pearson",
        _SIGMA,
        _RECOMMEND.format(f", class := $class, scope := 'image', {_WINDOW}"),
        of_class=True,
    ),
    _Way("region", "", _RECOMMEND.format(", class := $class"), of_class=True),
    _Way("region", _SIGMA, _RECOMMEND.format(f", class := $class, {_WINDOW}"), of_class=True),
    _Way("sign-bits", "", "FROM recommend_by_sign_bits($id, k := 10)"),
    _Way("pearson+iou", "", _RECOMMEND.format(", rerank := 'mask_iou'")),
)


@dataclass(frozen=True)
class Latency:
    """Of the 10 best by SQL in DuckDB: median and 95th percentile over `queries` queries, in ms,
    after one to warm up. ratio: the median to that of NumPy's product of all vectors that the
    method compares, float32 in memory, with the query's, in the same run.
    """

    method: str
    setting: str
    median_ms: float
    p95_ms: float
    ratio: float
    queries: int


def latencies(
    database: Database, images: Collection, methods: Sequence[str], rows: Ints, seed: int
) -> list[Latency]:
    """For the methods that SQL has and whose vectors were read: up to 20 of the queries, drawn."""
    drawn = np.random.default_rng(seed).permutation(rows)
    others = [m for m in methods if m != "pearson" and (method(m).metric or method(m).descriptor)]
    ways = [*_WAYS, *(_Way(m, "", _RECOMMEND.format(f", method := '{m}'")) for m in others)]
    return [
        found
        for way in ways
        if way.method in methods
        for found in _latency(database, images, way, drawn)
    ]


def _latency(database: Database, images: Collection, way: _Way, drawn: Ints) -> Iterator[Latency]:
    """One, or none if there are no queries, or no vectors, of its kind."""
    able = [row for row in drawn if _able(images, way, row)][:QUERIES]
    vectors = {int(row): _vectors(images, way, int(row)) for row in able}
    if not able or not all(len(v) for v in vectors.values()):
        return
    asked = _seconds(
        lambda row: query(database.connection, way.sql, _parameters(images, way, row)), able
    )
    product = _seconds(lambda row: vectors[row] @ vectors[row][0], able)
    median, last = np.percentile(asked, (50, 95))
    ratio = median / np.median(product)
    yield Latency(
        way.method, way.setting, 1000 * float(median), 1000 * float(last), float(ratio), len(able)
    )


def _able(images: Collection, way: _Way, row: int) -> bool:
    """Whether an image can be the query."""
    if descriptor := method(way.method).descriptor:
        return bool(np.isfinite(images.vectors[descriptor][row]).all())
    return not way.of_class or bool(images.dominant[row])


def _vectors(images: Collection, way: _Way, row: int) -> NDArray[np.float32]:
    """What the method compares with a query; empty if it was not read."""
    if descriptor := method(way.method).descriptor:
        return images.vectors[descriptor]
    if way.method != "region":
        return images.features
    return images.regions[int(images.dominant[row])].features


def _parameters(images: Collection, way: _Way, row: int) -> Mapping[str, str]:
    found = {"id": images.ids[row].as_py()}
    if way.of_class:
        found["class"] = images.classes[images.dominant[row] - 1]
    return found


def _seconds(ask: Callable[[int], object], rows: Sequence[int]) -> NDArray[np.float64]:
    """How long each takes, after one to warm up."""
    ask(int(rows[0]))
    found = []
    for row in rows:
        start = time.perf_counter()
        ask(int(row))
        found.append(time.perf_counter() - start)
    return np.array(found)
