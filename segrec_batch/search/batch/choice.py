"""Choice of recommendations for each query of a block: near-duplicates and diversity.

A pool holds the vectors of candidates in order of rank. Similarity is exact `pearson`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.search.batch.scores import Pairs, Vectors, empty_pairs, join, pearson, ranks
from segrec_batch.search.batch.search import Exclusions, Search
from segrec_batch.search.similarity import METRICS, Floats, Ints

RECOMMENDATIONS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("query_uri", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("coverage", pa.float32()),
        pa.field("pearson", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Choice:
    """Number and diversity of recommendations.

    Attributes:
        k: recommendations for a query.
        distinct: no recommendation is a copy of the query or of a better row.
        near_duplicates: exclude images whose Pearson with the query or with a better
            recommendation is not below this limit.
        diversity: λ of maximal marginal relevance, which chooses among the best candidates.
        pool: number of these candidates, at least k; by default 5 k.
    """

    k: int = 10
    distinct: bool = True
    near_duplicates: float | None = None
    diversity: float | None = None
    pool: int | None = None

    def check(self) -> None:
        """Raise InputError for values out of range."""
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise InputError(f"--near-duplicates {self.near_duplicates:g}: give 0 < P <= 1")
        if self.diversity is not None and not 0 < self.diversity <= 1:
            raise InputError(f"--diversity {self.diversity:g}: give 0 < LAMBDA <= 1")
        if self.pool is not None and self.diversity is None:
            raise InputError(
                "--pool needs --diversity: it is the number of candidates among which that chooses"
            )
        if self.pool is not None and self.pool < self.k:
            raise InputError(f"--pool {self.pool} is less than k, {self.k}")

    @property
    def candidates(self) -> int:
        """Number of best candidates from which the last step chooses."""
        return self.k if self.diversity is None else self.pool or 5 * self.k

    @property
    def exclusions(self) -> Exclusions:
        """Conditions that exclude candidates from the ranking."""
        limit = np.inf if self.near_duplicates is None else self.near_duplicates
        return Exclusions(self.distinct, limit)


def choose(search: Search, choice: Choice) -> Pairs:
    """Return the recommendations for all queries of a search, in order."""
    if choice.near_duplicates is None:
        pairs = search.find_best(np.arange(len(search.queries)), choice.candidates)
    else:
        pairs = _drop_near_duplicates(search, choice, choice.near_duplicates)
    return (
        pairs if choice.diversity is None else _diversify(search, choice, choice.diversity, pairs)
    )


def expand_queries(search: Search, count: int) -> Search:
    """Return a search whose queries are the means of themselves and their `count` best results.

    See `Metric.expanded`. Sums are those of DuckDB, one value after the other.
    """
    features = search.queries.features.copy()
    for query, best, vectors in _read_pools(
        search, search.find_best(np.arange(len(features)), count)
    ):
        features[query] = METRICS["pearson"].expanded(
            features[query], vectors.features, best.pearson
        )
    x = features.astype(np.float64)
    totals, squares = x.cumsum(axis=1)[:, -1], (x * x).cumsum(axis=1)[:, -1]
    norms = np.sqrt(x.shape[1] * squares - totals**2)
    queries = replace(search.queries, features=features, totals=totals, norms=norms)
    return Search(queries, search.candidates, search.exclusions, search.sizes, search.device)


def _drop_near_duplicates(search: Search, choice: Choice, limit: float) -> Pairs:
    """Return the best without near-duplicates; search more candidates until there are enough."""
    finished = {}
    queries, count = np.arange(len(search.queries)), 2 * choice.candidates
    while len(queries):
        unfinished = []
        for query, best, vectors in _read_pools(search, search.find_best(queries, count)):
            chosen = drop_near_duplicates(vectors, limit, choice.candidates)
            if len(chosen) < choice.candidates and len(best) == count:
                unfinished.append(query)
            else:
                finished[query] = best.take(chosen)
        queries, count = np.array(unfinished, np.int64), 2 * count
    return join([empty_pairs(), *(finished[query] for query in sorted(finished))])


def _diversify(search: Search, choice: Choice, weight: float, pairs: Pairs) -> Pairs:
    chosen = [
        best.take(select_by_marginal_relevance(vectors, best.pearson, weight, choice.k))
        for _, best, vectors in _read_pools(search, pairs)
    ]
    return join([empty_pairs(), *chosen])


def _read_pools(search: Search, pairs: Pairs) -> Iterator[tuple[int, Pairs, Vectors]]:
    """Yield each query, its pairs and their vectors, read for several queries at once."""
    starts = np.flatnonzero(ranks(pairs) == 0)
    ends = np.append(starts[1:], len(pairs))
    groups = np.flatnonzero(np.diff(starts // search.sizes.pool)) + 1
    for group in np.split(np.arange(len(starts)), groups) if len(pairs) else ():
        first, last = starts[group[0]], ends[group[-1]]
        vectors = search.candidates.vectors(pairs.row[first:last])
        for start, end in zip(starts[group], ends[group], strict=True):
            rows = slice(start - first, end - first)
            columns = vectors.features[rows], vectors.totals[rows], vectors.norms[rows]
            yield int(pairs.query[start]), pairs.take(np.arange(start, end)), Vectors(*columns)


def to_table(search: Search, pairs: Pairs) -> pa.Table:
    """Return pairs as RECOMMENDATIONS rows."""
    if not len(pairs):
        return RECOMMENDATIONS.empty_table()
    query = search.queries.rows.take(pa.array(pairs.query))
    rows = search.candidates.table(pairs.row)
    columns = {
        "query_id": query["image_id"],
        "query_uri": query["uri"],
        "rank": pa.array(ranks(pairs) + 1, pa.int32()),
        "image_id": rows["image_id"],
        "uri": rows["uri"],
        "coverage": rows["coverage"],
        "pearson": pa.array(pairs.pearson),
    }
    return pa.table(columns).cast(RECOMMENDATIONS)


def drop_near_duplicates(pool: Vectors, limit: float, count: int) -> Ints:
    """Return the first `count` rows of a pool whose Pearson with earlier ones is below `limit`."""
    is_left = np.ones(len(pool), bool)
    chosen: list[int] = []
    for i in range(len(pool)):
        if not is_left[i]:
            continue
        chosen.append(i)
        if len(chosen) == count:
            break
        rest = np.flatnonzero(is_left[i + 1 :]) + i + 1
        is_left[rest] = _similarity(pool, i, rest) < limit
    return np.array(chosen, np.int64)


def select_by_marginal_relevance(
    pool: Vectors, relevance: Floats, weight: float, count: int
) -> Ints:
    """Return `count` rows of a pool, in the order chosen by maximal marginal relevance.

    The next row maximises λ·relevance − (1 − λ)·(largest similarity with a chosen row),
    λ = `weight` in (0, 1]; ties go by rank (Carbonell & Goldstein 1998).
    """
    left = np.arange(len(pool))
    nearest = np.full(len(pool), -np.inf)
    chosen: list[int] = []
    while len(left) and len(chosen) < count:
        gain = weight * relevance[left]
        if chosen:
            gain -= (1 - weight) * nearest[left]
        best = int(left[np.argmax(gain)])  # the first of equal gains
        chosen.append(best)
        left = left[left != best]
        nearest[left] = np.maximum(nearest[left], _similarity(pool, best, left))
    return np.array(chosen, np.int64)


def _similarity(pool: Vectors, row: int, rows: Ints) -> Floats:
    return pearson(pool, np.full(len(rows), row), pool, rows)
