"""The counts table as arrays, one object for each method under each setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.conditions import Setting, in_order
from segrec_batch.evaluation.retrieval.counts import COUNTS

DEPTH = 100  # how many gains of a ranking are known
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rankings:
    """Where one method found what is relevant to n queries, in the order of their names.

    classes: (n,) labels of the queries. candidates, retrieved, relevant: (n,) as in `COUNTS`.
    ranks: (m,) 1-based places of all relevant images that were retrieved, ascending within a query.
    owner: (m,) the row of the query of each. gains, ideal: (n, 100), NaN where there is none.
    """

    method: str
    setting: str
    queries: tuple[str, ...]
    classes: NDArray[np.str_]
    candidates: Integers
    retrieved: Integers
    relevant: Integers
    ranks: Integers
    owner: Integers
    gains: Floats
    ideal: Floats

    @cached_property
    def order(self) -> Integers:
        """(m,) the how-manieth relevant image of its query each is, from 1."""
        return _places(self.owner, len(self.queries)) + 1

    def hits(self, k: int | Integers) -> Integers:
        """(n,) how many relevant images are among the first k, one number or one a query."""
        limit = np.broadcast_to(k, len(self.queries))[self.owner]
        return np.bincount(self.owner[self.ranks <= limit], minlength=len(self.queries))


def rankings(counts: pa.Table) -> list[Rankings]:
    """Methods as they come, settings in order. Raises InputError for what is not a counts table:
    other columns, or not one row for each query under each method and setting.
    """
    table = _checked(counts)
    pairs = list(zip(*(table[name].to_pylist() for name in ("method", "setting")), strict=True))
    rows: dict[tuple[str, str], list[int]] = {}
    for i, pair in enumerate(pairs):
        rows.setdefault(pair, []).append(i)
    methods = dict.fromkeys(method for method, _ in pairs)
    settings = in_order(setting for _, setting in pairs)
    wanted = [(m, s) for m in methods for s in settings if (m, s) in rows]
    found = [_rankings(*pair, table.take(rows[pair]).sort_by("query")) for pair in wanted]
    _same_queries(found)
    return found


def taking_part(found: Sequence[Rankings]) -> NDArray[np.bool_]:
    """(n,) which queries have a relevant candidate under every setting, neighbours aside.

    A query that is kept is always relevant to itself; without this rule the figures with and
    without it would be of different queries.
    """
    by_truth = [r.relevant for r in found if not Setting.parse(r.setting).neighbours]
    return np.asarray(np.min(by_truth, axis=0) > 0)


def _checked(counts: pa.Table) -> pa.Table:
    try:
        return counts.select(COUNTS.names).cast(COUNTS)
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"not the counts of a retrieval report: {error}") from error


def _same_queries(found: Sequence[Rankings]) -> None:
    if not found:
        raise InputError("the counts hold no query")
    for r in found:
        if r.queries != found[0].queries or len(set(r.queries)) < len(r.queries):
            name = " · ".join(filter(None, (r.method, r.setting)))
            raise InputError(f"{name}: not one row for each query")


def _rankings(method: str, setting: str, table: pa.Table) -> Rankings:
    ranks, owner = _flat(table["ranks"])
    candidates, retrieved, relevant = (
        table[name].to_numpy().astype(np.int64) for name in ("candidates", "retrieved", "relevant")
    )
    return Rankings(
        method,
        setting,
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


def _flat(lists: pa.ChunkedArray) -> tuple[NDArray[np.generic], Integers]:
    """The values of all lists one behind the other, and the row that each is of."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    values = pc.list_flatten(lists).to_numpy()
    return values, np.repeat(np.arange(len(lengths)), lengths)


def _places(owner: Integers, n: int) -> Integers:
    """The place of each value in its list, from 0."""
    starts = np.searchsorted(owner, np.arange(n))
    return np.asarray(np.arange(len(owner)) - starts[owner])


def _padded(lists: pa.ChunkedArray) -> Floats:
    """Lists of at most 100 as (n, 100), NaN behind their ends."""
    values, owner = _flat(lists)
    padded = np.full((len(lists), DEPTH), np.nan)
    places = _places(owner, len(lists))
    if places.max(initial=-1) >= DEPTH:
        raise InputError(f"the counts hold more than {DEPTH} gains of a query")
    padded[owner, places] = values
    return padded
