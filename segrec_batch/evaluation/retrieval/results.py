"""Results of a retrieval evaluation: metric values by key, and comparisons of methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np
import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.figures import Figures, Names, by
from segrec_batch.evaluation.plots import SERIES
from segrec_batch.evaluation.retrieval.counts import (
    Floats,
    Rankings,
    evaluated_queries,
    read_rankings,
)
from segrec_batch.evaluation.retrieval.measures import evaluate_rankings, interpolated_precision
from segrec_batch.evaluation.retrieval.methods import parse_method
from segrec_batch.evaluation.retrieval.settings import PLAIN, Setting
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key, contrast, holm

DRAWS = 9999
_BATCH = 1000  # draws at a time: they take 8 bytes a query each


@dataclass(frozen=True)
class Results:
    """The metric values of a counts table.

    Attributes:
        evaluation: measures of all queries.
        estimates: all values with their intervals.
        rankings: those under the plain setting.
        settings: all settings, sorted.
        outside: number of queries without a relevant candidate.
        seed: of the intervals.
    """

    evaluation: Evaluation
    estimates: Sequence[Estimate]
    rankings: Sequence[Rankings]
    settings: Sequence[Setting]
    outside: int
    seed: int

    @classmethod
    def of(cls, counts: pa.Table, seed: int) -> "Results":
        """Return the results of a counts table.

        Raises:
            InputError: for another table, for a method without rankings under the plain setting,
                and if no query has a relevant candidate.
        """
        rankings = read_rankings(counts)
        plain = [r for r in rankings if r.setting == PLAIN]
        part = evaluated_queries(rankings)
        if not part.any():
            raise InputError("no query has a relevant candidate")
        if missing := {r.method for r in rankings} - {r.method for r in plain}:
            names = ", ".join(sorted(missing))
            raise InputError(f"without rankings under the plain setting: {names}")
        evaluation = evaluate_rankings(rankings)
        estimates = evaluation.estimates(seed=seed)
        settings = sorted({r.setting for r in rankings}, key=lambda s: s.sort_key)
        return cls(evaluation, estimates, plain, settings, int((~part).sum()), seed)

    @cached_property
    def figures(self) -> Figures:
        """The values by key."""
        return Figures(self.estimates)

    @cached_property
    def components(self) -> dict[int, str]:
        """The methods that compare the first values of vectors, by the number of these."""
        names = (r.method for r in self.rankings if "@" in r.method)
        return dict(sorted((parse_method(name).length, name) for name in names))

    @cached_property
    def methods(self) -> list[str]:
        """The methods in the order of the counts, without those of `components`."""
        return [r.method for r in self.rankings if r.method not in self.components.values()]

    @cached_property
    def rows(self) -> Names:
        """The methods as rows of a table."""
        return by("method", self.methods)

    @cached_property
    def ranked(self) -> list[str]:
        """The methods by mAP, the best first."""
        values = self.figures.values({"name": "map", **row} for row in self.rows.values())[0]
        return [self.methods[i] for i in np.argsort(-values, kind="stable")]

    @property
    def drawn(self) -> list[str]:
        """The best methods, as many as there are colours, in the order of `methods`."""
        return [m for m in self.methods if m in self.ranked[:SERIES]]

    @cached_property
    def curves(self) -> dict[str, Floats]:
        """The mean over queries of `interpolated_precision`, by method."""
        of_methods = (r for r in self.rankings if r.method in self.methods)
        return {r.method: np.nanmean(interpolated_precision(r), axis=0) for r in of_methods}

    @cached_property
    def comparisons(self) -> "list[Comparison]":
        """The comparisons of all pairs of methods."""
        return compare_methods(self.evaluation, self.methods, self.seed)


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods on the same queries under the plain setting.

    Attributes:
        difference: mAP of a minus mAP of b, with its paired bootstrap interval.
        p: of the two-sided randomisation test.
        p_holm: p corrected for the number of pairs.
    """

    a: str
    b: str
    difference: Estimate
    p: float
    p_holm: float


def compare_methods(
    evaluation: Evaluation, methods: Sequence[str], seed: int = 0
) -> list[Comparison]:
    """Compare all pairs of methods by the average precisions of the queries.

    Source: paired randomisation test (Smucker, Allan and Carterette 2007), corrected (Holm 1979).
    """
    pairs = {
        Key("map_difference", f"{a} − {b}"): (Key("map", a), Key("map", b))
        for a, b in combinations(methods, 2)
    }
    if not pairs:
        return []
    differences = np.hstack([_ap(evaluation, a) - _ap(evaluation, b) for a, b in pairs.values()])
    p = randomisation_test(differences, seed=seed)
    estimates = contrast(evaluation, pairs, seed=seed)
    return [
        Comparison(a.method, b.method, estimate, float(raw), float(corrected))
        for (a, b), estimate, raw, corrected in zip(
            pairs.values(), estimates, p, holm(p), strict=True
        )
    ]


def randomisation_test(differences: Floats, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Return the two-sided p of each column of differences (n, c) of n queries: (c,).

    p is the share of random signs for which the sum is at least as far from 0: exact over all 2ⁿ
    signs if there are no more than draws, otherwise (1 + count) / (1 + draws). The same signs serve
    all columns.
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


def _ap(evaluation: Evaluation, key: Key) -> Floats:
    """Return the average precisions of the evaluated queries: (n, 1)."""
    measure = evaluation.measures[key]
    return measure.numerator[measure.denominator[:, 0] > 0]
