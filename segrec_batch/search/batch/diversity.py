"""Choosing among the best candidates of one query: no near-duplicates, and not all alike.

A pool is the features of candidates in order of rank. Similarity is `pearson`, exact.
"""

import numpy as np

from segrec_batch.search.batch.scores import Floats, Ints, Vectors, pearson


def without_near_duplicates(pool: Vectors, limit: float, count: int) -> Ints:
    """The first `count` of a pool whose Pearson with each one kept before is below `limit`."""
    left = np.ones(len(pool), bool)
    kept: list[int] = []
    for i in range(len(pool)):
        if not left[i]:
            continue
        kept.append(i)
        if len(kept) == count:
            break
        rest = np.flatnonzero(left[i + 1 :]) + i + 1
        left[rest] = _similarity(pool, i, rest) < limit
    return np.array(kept, np.int64)


def maximal_marginal_relevance(pool: Vectors, relevance: Floats, weight: float, count: int) -> Ints:
    """The `count` of a pool, in order, that are each the best beside those chosen before it.

    The next is argmax of λ·relevance − (1 − λ)·(largest similarity with one chosen), λ = `weight`
    in (0, 1]; the first has nothing to be similar to; ties go by rank (Carbonell & Goldstein 1998).
    """
    left = np.arange(len(pool))
    nearest = np.full(len(pool), -np.inf)
    chosen: list[int] = []
    while len(left) and len(chosen) < count:
        gain = weight * relevance[left]
        if chosen:
            gain -= (1 - weight) * nearest[left]
        best = int(left[np.argmax(gain)])  # the first of equal ones
        chosen.append(best)
        left = left[left != best]
        nearest[left] = np.maximum(nearest[left], _similarity(pool, best, left))
    return np.array(chosen, np.int64)


def _similarity(pool: Vectors, one: int, others: Ints) -> Floats:
    return pearson(pool, np.full(len(others), one), pool, others)
