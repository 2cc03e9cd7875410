"""The counts table, from which every metric value of a retrieval report follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.settings import PLAIN, Bools, Setting

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DEPTH = 100
"""Number of first results, and of greatest gains, whose gains are stored."""

CONDITION = pa.struct(
    {
        "keeps_query": pa.bool_(),
        "window": pa.list_(pa.float64()),
        "epsilon": pa.float64(),
        "neighbours": pa.string(),
        "feedback": pa.struct({"way": pa.string(), "rounds": pa.int32(), "shown": pa.int32()}),
    }
)
COUNTS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),
        pa.field("condition", CONDITION),
        pa.field("candidates", pa.int32(), nullable=False),
        pa.field("retrieved", pa.int32(), nullable=False),
        pa.field("relevant", pa.int32(), nullable=False),
        pa.field("ranks", pa.list_(pa.int32()), nullable=False),
        pa.field("gains", pa.list_(pa.float32())),
        pa.field("ideal", pa.list_(pa.float32())),
    ]
)
"""One row for each method, setting and query.

query: image_id. class: label of the query, empty where the ground truth has none. setting: name of
the setting. condition: its fields, null for the plain one. candidates: images that could be
retrieved before any filter; the query is not among them unless the setting keeps it. retrieved:
number of ranked images; a method leaves out those for which it is undefined. relevant: number of
relevant candidates. ranks: 1-based ranks of the relevant images that were retrieved, ascending.
gains: of the first 100 results, in order. ideal: the 100 greatest gains among all candidates,
descending. Both are null where the ground truth has no masks.
"""


@dataclass(frozen=True)
class Rankings:
    """The results of one method under one setting for n queries, sorted by name.

    classes: (n,) labels of the queries. candidates, retrieved, relevant: (n,) as in `COUNTS`.
    ranks: (m,) 1-based ranks of all relevant results, ascending within a query. owner: (m,) the
    query of each. gains, ideal: (n, 100), NaN where there is none.
    """

    method: str
    setting: Setting
    queries: tuple[str, ...]
    classes: NDArray[np.str_]
    candidates: Ints
    retrieved: Ints
    relevant: Ints
    ranks: Ints
    owner: Ints
    gains: Floats
    ideal: Floats

    @cached_property
    def order(self) -> Ints:
        """The number of each relevant result within its query, from 1: (m,)."""
        return _places(self.owner, len(self.queries)) + 1

    def hits(self, k: int | Ints) -> Ints:
        """Return the number of relevant images among the first k, an int or (n,): (n,)."""
        limit = np.broadcast_to(k, len(self.queries))[self.owner]
        return np.bincount(self.owner[self.ranks <= limit], minlength=len(self.queries))


def read_rankings(counts: pa.Table) -> list[Rankings]:
    """Return the rankings of a counts table, methods in their order, settings sorted.

    Raises:
        InputError: for other columns or settings, without rows, and unless there is one row for
            each query under each method and setting.
    """
    try:
        table = counts.select(COUNTS.names).cast(COUNTS)
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"not the counts of a retrieval report: {error}") from error
    rows: dict[tuple[str, str], list[int]] = {}
    pairs = zip(table["method"].to_pylist(), table["setting"].to_pylist(), strict=True)
    for i, pair in enumerate(pairs):
        rows.setdefault(pair, []).append(i)
    if not rows:
        raise InputError("the counts hold no query")
    methods = list(dict.fromkeys(method for method, _ in rows))
    rankings = [_rankings(*pair, table.take(rows[pair]).sort_by("query")) for pair in rows]
    rankings.sort(key=lambda r: (methods.index(r.method), r.setting.sort_key))
    for r in rankings:
        if r.queries != rankings[0].queries or len(set(r.queries)) < len(r.queries):
            name = " · ".join(filter(None, (r.method, r.setting.name)))
            raise InputError(f"{name}: not one row for each query")
    return rankings


def evaluated_queries(rankings: Sequence[Rankings]) -> Bools:
    """Return which queries have a relevant candidate under every setting but neighbours: (n,).

    A kept query is always relevant to itself; without this rule the metric values with and without
    it would be of different queries.
    """
    by_truth = [r.relevant for r in rankings if not r.setting.neighbours]
    return np.asarray(np.min(by_truth, axis=0) > 0)


def _rankings(method: str, setting: str, table: pa.Table) -> Rankings:
    """Return the rankings of the rows of one method and setting, sorted by query."""
    ranks, owner = _flat(table["ranks"])
    candidates, retrieved, relevant = (
        table[name].to_numpy().astype(np.int64) for name in ("candidates", "retrieved", "relevant")
    )
    return Rankings(
        method,
        _setting(setting, table["condition"][0]),
        tuple(table["query"].to_pylist()),
        np.array(table["class"].to_pylist(), str),
        candidates,
        retrieved,
        relevant,
        ranks=ranks.astype(np.int64),
        owner=owner,
        gains=_padded(table["gains"]),
        ideal=_padded(table["ideal"]),
    )


def _setting(name: str, condition: pa.StructScalar) -> Setting:
    """Return the setting of a condition. Raises InputError unless it has this name."""
    try:
        setting = Setting.from_row(condition.as_py()) if condition.is_valid else PLAIN
        is_known = setting.name == name
    except (TypeError, ValueError, IndexError):
        is_known = False
    if not is_known:
        raise InputError(f"{name!r} is not a setting of a retrieval report")
    return setting


def _flat(lists: pa.ChunkedArray) -> tuple[NDArray[np.generic], Ints]:
    """Return the values of all lists one after the other, and the row of each."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return pc.list_flatten(lists).to_numpy(), np.repeat(np.arange(len(lengths)), lengths)


def _places(owner: Ints, n: int) -> Ints:
    """Return the place of each value in its list, from 0."""
    starts = np.searchsorted(owner, np.arange(n))
    return np.asarray(np.arange(len(owner)) - starts[owner])


def _padded(lists: pa.ChunkedArray) -> Floats:
    """Return lists of at most DEPTH values as (n, DEPTH), NaN after their ends."""
    values, owner = _flat(lists)
    places = _places(owner, len(lists))
    if places.max(initial=-1) >= DEPTH:
        raise InputError(f"the counts hold more than {DEPTH} gains of a query")
    padded = np.full((len(lists), DEPTH), np.nan)
    padded[owner, places] = values
    return padded
