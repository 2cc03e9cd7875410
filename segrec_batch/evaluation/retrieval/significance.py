"""Are two methods different, or is it these queries? A paired randomisation test on their average
precisions (Smucker, Allan and Carterette 2007), corrected for the number of pairs (Holm 1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from segrec_batch.evaluation.retrieval.rankings import Floats
from segrec_batch.evaluation.statistics import Estimate, Judged, Key, contrast, holm

DRAWS = 9999
_BATCH = 1000  # draws at a time: they take 8 bytes a query each


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same queries, without a filter.

    difference: mAP of a minus mAP of b, with its paired bootstrap interval. p: of the randomisation
    test, two-sided. p_holm: the same, corrected for all pairs.
    """

    a: str
    b: str
    difference: Estimate
    p: float
    p_holm: float


def compare(judged: Judged, methods: Sequence[str], seed: int = 0) -> list[Comparison]:
    """All pairs of methods, as `judge` judged them."""
    pairs = {
        Key("map_difference", f"{a} − {b}"): (Key("map", a), Key("map", b))
        for a, b in combinations(methods, 2)
    }
    if not pairs:
        return []
    differences = np.hstack([_ap(judged, a) - _ap(judged, b) for a, b in pairs.values()])
    p = randomisation_test(differences, seed=seed)
    estimates = contrast(judged, pairs, seed=seed)
    return [
        Comparison(a.method, b.method, estimate, float(raw), float(corrected))
        for (a, b), estimate, raw, corrected in zip(
            pairs.values(), estimates, p, holm(p), strict=True
        )
    ]


def randomisation_test(differences: Floats, draws: int = DRAWS, seed: int = 0) -> Floats:
    """(c,) two-sided p of each column of differences (n, c) of n units: how often their sum is at
    least as far from 0 when each sign is drawn anew.

    Exact, over all 2ⁿ signs, if there are no more of them than draws; otherwise
    (1 + count) / (1 + draws). The same signs serve all columns.
    """
    n = len(differences)
    observed = np.abs(differences.sum(axis=0)) - 1e-12 * np.abs(differences).sum(axis=0)
    if 2**n <= draws:
        signs = np.array(list(product((-1.0, 1.0), repeat=n))).reshape(2**n, n)
        return np.asarray((np.abs(signs @ differences) >= observed).mean(axis=0))
    rng = np.random.default_rng(seed)
    count = np.zeros(differences.shape[1])
    for start in range(0, draws, _BATCH):
        signs = 2.0 * rng.integers(0, 2, (min(_BATCH, draws - start), n)) - 1
        count += (np.abs(signs @ differences) >= observed).sum(axis=0)
    return (1 + count) / (1 + draws)


def _ap(judged: Judged, key: Key) -> Floats:
    """(n, 1) average precisions of the queries that take part."""
    measure = judged.measures[key]
    return measure.numerator[measure.denominator[:, 0] > 0]
