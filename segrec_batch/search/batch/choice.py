"""What is chosen for each query of a block: the best, thinned and mixed as the choice says."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.search.batch.diversity import maximal_marginal_relevance, without_near_duplicates
from segrec_batch.search.batch.pairs import Pairs, join, no_pairs, ranks
from segrec_batch.search.batch.scores import Vectors
from segrec_batch.search.batch.search import Rule, Search

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
    """k: recommendations for a query. distinct: none has the content of the query or of one before.
    near_duplicates: none has this Pearson or more with the query or one before. diversity: λ of
    maximal marginal relevance, which chooses among the `pool` best.
    """

    k: int = 10
    distinct: bool = True
    near_duplicates: float | None = None
    diversity: float | None = None
    pool: int | None = None

    def check(self) -> None:
        """Raises InputError for values out of range."""
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise InputError(f"--near-duplicates {self.near_duplicates:g}: give 0 < P <= 1")
        if self.diversity is not None and not 0 < self.diversity <= 1:
            raise InputError(f"--diversity {self.diversity:g}: give 0 < LAMBDA <= 1")
        if self.pool is not None and self.diversity is None:
            raise InputError("--pool is what --diversity chooses among; give that too")
        if self.pool is not None and self.pool < self.k:
            raise InputError(f"--pool {self.pool} is less than k, {self.k}")

    @property
    def candidates(self) -> int:
        """How many of the best the last step chooses among."""
        return self.k if self.diversity is None else self.pool or 5 * self.k

    @property
    def rule(self) -> Rule:
        """Who is left out of the ranking."""
        limit = np.inf if self.near_duplicates is None else self.near_duplicates
        return Rule(self.distinct, limit)


def choose(search: Search, choice: Choice) -> Pairs:
    """The recommendations for all queries of a search, in order."""
    if choice.near_duplicates is None:
        pairs = search.best(np.arange(len(search.queries)), choice.candidates)
    else:
        pairs = _thinned(search, choice, choice.near_duplicates)
    return pairs if choice.diversity is None else _mixed(search, choice, choice.diversity, pairs)


def _thinned(search: Search, choice: Choice, limit: float) -> Pairs:
    """The best less near-duplicates; for queries that have too many, among twice as many again."""
    done = {}
    asked, count = np.arange(len(search.queries)), 2 * choice.candidates
    while len(asked):
        again = []
        for query, best, vectors in _pools(search, search.best(asked, count)):
            kept = without_near_duplicates(vectors, limit, choice.candidates)
            if len(kept) < choice.candidates and len(best) == count:
                again.append(query)
            else:
                done[query] = best.take(kept)
        asked, count = np.array(again, np.int64), 2 * count
    return join([no_pairs(), *(done[query] for query in sorted(done))])


def _mixed(search: Search, choice: Choice, weight: float, pairs: Pairs) -> Pairs:
    mixed = [
        best.take(maximal_marginal_relevance(vectors, best.pearson, weight, choice.k))
        for _, best, vectors in _pools(search, pairs)
    ]
    return join([no_pairs(), *mixed])


def _pools(search: Search, pairs: Pairs) -> Iterator[tuple[int, Pairs, Vectors]]:
    """Each query with its pairs and their vectors; those of some queries are read together."""
    starts = np.flatnonzero(ranks(pairs) == 0)
    ends = np.append(starts[1:], len(pairs))
    groups = np.flatnonzero(np.diff(starts // search.at_once.pool)) + 1
    for members in np.split(np.arange(len(starts)), groups) if len(pairs) else ():
        first, last = starts[members[0]], ends[members[-1]]
        vectors = search.candidates.vectors(pairs.row[first:last])
        for start, end in zip(starts[members], ends[members], strict=True):
            which = slice(start - first, end - first)
            columns = vectors.features[which], vectors.totals[which], vectors.norms[which]
            yield int(pairs.query[start]), pairs.take(np.arange(start, end)), Vectors(*columns)


def as_table(search: Search, pairs: Pairs) -> pa.Table:
    """RECOMMENDATIONS rows of pairs."""
    if not len(pairs):
        return RECOMMENDATIONS.empty_table()
    query = search.queries.rows.take(pa.array(pairs.query))
    told = search.candidates.told(pairs.row)
    columns = {
        "query_id": query["image_id"],
        "query_uri": query["uri"],
        "rank": pa.array(ranks(pairs) + 1, pa.int32()),
        "image_id": told["image_id"],
        "uri": told["uri"],
        "coverage": told["coverage"],
        "pearson": pa.array(pairs.pearson),
    }
    return pa.table(columns).cast(RECOMMENDATIONS)
