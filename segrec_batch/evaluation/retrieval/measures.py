"""Metrics of retrieval for each query and over all queries.

Queries without a relevant candidate are left out; relevant images that a method does not retrieve
count as missed. Among the first k results, A are relevant and B are not, C relevant ones are
missing, and R = A + C.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa

from segrec_batch.evaluation.retrieval.counts import (
    Floats,
    Ints,
    Rankings,
    evaluated_queries,
    read_rankings,
)
from segrec_batch.evaluation.retrieval.settings import PLAIN, Bools
from segrec_batch.evaluation.statistics import Evaluation, Key, Measure

CUTOFFS = (1, 5, 10, 20, 100)
NDCG_CUTOFFS = (10, 100)
LEVELS = np.linspace(0, 1, 21)
"""Levels of recall at which precision is interpolated."""


def average_precision(r: Rankings) -> Floats:
    """Return AP = 1/R Σ i / rank_i over the retrieved relevant images i, as trec_eval: (n,)."""
    return _ratio(_sums(r, r.order / r.ranks), r.relevant)


def average_precision_by_trapezoids(r: Rankings) -> Floats:
    """Return the area under the precision-recall curve: (n,).

    It is 1/R Σ (p_i + q_i) / 2 with the precision at a relevant image, p_i = i / rank_i, and just
    before it, q_i = (i − 1) / (rank_i − 1), or 1 at rank 1, as `compute_ap` of the revisited Oxford
    and Paris benchmark (Radenović et al. 2018).
    """
    before = _ratio(r.order - 1, r.ranks - 1)
    before[r.ranks == 1] = 1
    return _ratio(_sums(r, (before + r.order / r.ranks) / 2), r.relevant)


def precision(r: Rankings, k: int) -> Floats:
    """Return A / k, also where fewer than k images were retrieved: (n,)."""
    return _ratio(r.hits(k), np.full(len(r.queries), k))


def new_precision(r: Rankings, last: int, shown: int) -> Floats:
    """Return the precision of the `shown` images up to rank `last`: (n,)."""
    return _ratio(r.hits(last) - r.hits(last - shown), np.full(len(r.queries), shown))


def recall(r: Rankings, k: int) -> Floats:
    """Return A / R: (n,)."""
    return _ratio(r.hits(k), r.relevant)


def false_acceptance(r: Rankings, k: int) -> Floats:
    """Return FIAR = B / (A + B) of the retrieved images, NaN without any: (n,)."""
    retrieved = np.minimum(r.retrieved, k)
    return _ratio(retrieved - r.hits(k), retrieved)


def false_rejection(r: Rankings, k: int) -> Floats:
    """Return FIRR = C / (A + C): (n,)."""
    return _ratio(r.relevant - r.hits(k), r.relevant)


def r_precision(r: Rankings) -> Floats:
    """Return the precision at k = R: (n,)."""
    return _ratio(r.hits(r.relevant), r.relevant)


def ndcg(r: Rankings, k: int) -> Floats:
    """Return DCG of the ranking / DCG of the ideal one: (n,).

    DCG = Σ gain_i / log2(1 + i) over i = 1 … k (Järvelin and Kekäläinen 2002); NaN without gains,
    or if none is above 0.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    dcg, ideal = (np.nan_to_num(gains[:, :k]) @ discounts for gains in (r.gains, r.ideal))
    return _ratio(dcg, ideal)


def relevant_lost(r: Rankings) -> Floats:
    """Return the share of the relevant candidates that were not retrieved: (n,)."""
    return _ratio(r.relevant - np.bincount(r.owner, minlength=len(r.queries)), r.relevant)


def interpolated_precision(r: Rankings) -> Floats:
    """Return the greatest precision at any recall of at least each of LEVELS: (n, levels).

    It is 0 where the level is not reached, NaN for queries without relevant candidates.
    """
    curves = np.zeros((len(r.queries), len(LEVELS)))
    bounds = np.searchsorted(r.owner, np.arange(len(r.queries) + 1))
    at_hits = r.order / r.ranks
    for i, (start, stop) in enumerate(pairwise(bounds)):
        best = np.maximum.accumulate(at_hits[start:stop][::-1])[::-1]
        needed = np.maximum(np.ceil(LEVELS * r.relevant[i] - 1e-9).astype(int), 1)
        reached = needed <= len(best)
        curves[i, reached] = best[needed[reached] - 1]
    curves[r.relevant == 0] = np.nan
    return curves


_METRICS: Mapping[str, Callable[[Rankings], Floats]] = {
    "map": average_precision,
    "map_trapezoid": average_precision_by_trapezoids,
    "r_precision": r_precision,
    "relevant_lost": relevant_lost,
}
_METRICS_AT: Mapping[str, tuple[Callable[[Rankings, int], Floats], Sequence[int]]] = {
    "precision": (precision, CUTOFFS),
    "recall": (recall, CUTOFFS),
    "fiar": (false_acceptance, CUTOFFS),
    "firr": (false_rejection, CUTOFFS),
    "ndcg": (ndcg, NDCG_CUTOFFS),
}
_BY_CLASS = {("map", 0), ("r_precision", 0), ("precision", 10), ("recall", 10), ("recall", 100)}


def evaluate(counts: pa.Table) -> list[Evaluation]:
    """Return the measures of a counts table. Raises InputError as `read_rankings`."""
    return [evaluate_rankings(read_rankings(counts))]


def evaluate_rankings(rankings: Sequence[Rankings]) -> Evaluation:
    """Return the measures of all methods under all settings, over the queries, sorted by name.

    Under the plain setting there are measures of each class as well.
    """
    part = evaluated_queries(rankings)
    measures: dict[Key, Measure] = {}
    for r in rankings:
        measures |= _measures(r, part)
        for last, shown in _pages(r, rankings):
            key = Key("new_precision", r.method, setting=r.setting.name, k=last)
            measures[key] = Measure.of(new_precision(r, last, shown), part)
    return Evaluation(rankings[0].queries, measures)


def _measures(r: Rankings, part: Bools) -> dict[Key, Measure]:
    """Return means over the evaluated queries, means of classes, and two ratios of sums.

    ARR = Σ A / Σ R is the mean recall where all classes have one size (Guo and Prasetyo 2015, as
    cited by the paper on semantic features).
    """
    values = {(name, 0): metric(r) for name, metric in _METRICS.items()}
    for name, (metric_at, cutoffs) in _METRICS_AT.items():
        values |= {(name, k): metric_at(r, k) for k in cutoffs}
    classes = sorted(set(r.classes.tolist()) - {""}) if r.setting == PLAIN else []
    key = partial(Key, method=r.method, setting=r.setting.name)
    return {
        **{key(name, k=k): Measure.of(value, part) for (name, k), value in values.items()},
        **{key("arr", k=k): _pooled(r.hits(k), r.relevant, part) for k in CUTOFFS},
        key("candidates_left"): _pooled(r.retrieved, r.candidates, part),
        **{
            key(name, cls=cls, k=k): Measure.of(value, part & (r.classes == cls))
            for cls in classes
            for (name, k), value in values.items()
            if (name, k) in _BY_CLASS
        },
    }


def _pages(r: Rankings, rankings: Sequence[Rankings]) -> list[tuple[int, int]]:
    """Return the last rank and the size of each page of new images that a ranking shows, sorted.

    A ranking after feedback has one; that without has the same pages as those after feedback.
    """
    if r.setting.feedback:
        return [(r.setting.feedback.page, r.setting.feedback.shown)]
    if r.setting != PLAIN:
        return []
    same_method = (o.setting.feedback for o in rankings if o.method == r.method)
    return sorted({(last, f.shown) for f in same_method if f for last in (f.shown, f.page)})


def _sums(r: Rankings, values: Floats) -> Floats:
    """Return the sum of values at the relevant results (m,) for each query: (n,)."""
    return np.bincount(r.owner, values, minlength=len(r.queries)).astype(np.float64)


def _ratio(part: Floats | Ints, whole: Floats | Ints) -> Floats:
    """Return part / whole, NaN where the whole is 0."""
    nothing = np.full(len(whole), np.nan)
    return np.asarray(np.divide(part, whole, out=nothing, where=whole > 0))


def _pooled(part: Ints, whole: Ints, counted: Bools) -> Measure:
    """Return Σ part / Σ whole over the queries that are counted."""
    numerator, denominator = (np.where(counted, v, 0.0)[:, None] for v in (part, whole))
    return Measure(numerator, denominator)
