"""Scored pairs of a query and a candidate, and the best of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from segrec_batch.search.batch.scores import Floats, Ints


@dataclass(frozen=True)
class Pairs:
    """query: (P,) index of the query in its block. row: (P,) number of the candidate among all.
    pearson: (P,) float64. place: (P,) rank of the candidate's image_id in the index, by which ties
    break. content: (P,) the same number for images of equal content.
    """

    query: Ints
    row: Ints
    pearson: Floats
    place: Ints
    content: Ints

    def __len__(self) -> int:
        return len(self.query)

    def take(self, which: np.ndarray) -> "Pairs":
        """Some of them, by a mask or by index."""
        return Pairs(*(getattr(self, f.name)[which] for f in fields(self)))


def no_pairs() -> Pairs:
    """None at all."""
    none = np.empty(0, np.int64)
    return Pairs(none, none, np.empty(0), none, none)


def join(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of several."""
    columns = ([getattr(p, f.name) for p in parts] for f in fields(Pairs))
    return Pairs(*(np.concatenate(column) for column in columns))


def best(pairs: Pairs, count: int, distinct: bool) -> Pairs:
    """The `count` best pairs of each query, in order: by Pearson, ties by place.

    With `distinct` only the first of a query's candidates of equal content counts. `best` of the
    best of two sets of pairs is the best of all of them.
    """
    pairs = pairs.take(np.lexsort((pairs.place, -pairs.pearson, pairs.query)))
    if distinct:
        pairs = pairs.take(_first_of_content(pairs))
    return pairs.take(ranks(pairs) < count)


def ranks(pairs: Pairs) -> Ints:
    """The position of each pair among those of its query, from 0; pairs are sorted by query."""
    return np.arange(len(pairs)) - np.searchsorted(pairs.query, pairs.query)


def _first_of_content(pairs: Pairs) -> np.ndarray:
    order = np.lexsort((pairs.content, pairs.query))  # stable: equal ones stay in order
    query, content = pairs.query[order], pairs.content[order]
    first = np.ones(len(pairs), bool)
    first[1:] = (query[1:] != query[:-1]) | (content[1:] != content[:-1])
    kept = np.empty(len(pairs), bool)
    kept[order] = first
    return kept
