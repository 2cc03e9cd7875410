"""The measures of retrieval, of each query and over all.

A query that has no relevant candidate has no part in any of them; what a method did not retrieve
counts as not found. With A relevant and B irrelevant images among the first k, C relevant ones that
are not, and R = A + C.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.evaluation.retrieval.conditions import NONE, Feedback, Setting
from segrec_batch.evaluation.retrieval.rankings import (
    Floats,
    Integers,
    Rankings,
    rankings,
    taking_part,
)
from segrec_batch.evaluation.statistics import Judged, Key, Measure

CUTOFFS = (1, 5, 10, 20, 100)
NDCG_CUTOFFS = (10, 100)
LEVELS = np.linspace(0, 1, 21)
"""Of recall, where precision is interpolated."""


def average_precision(r: Rankings) -> Floats:
    """(n,) AP = 1/R Σ i / rank_i over the relevant images i = 1, 2, … that were retrieved, as
    trec_eval has it.
    """
    return _share(_sums(r, r.order / r.ranks), r.relevant)


def average_precision_by_trapezoids(r: Rankings) -> Floats:
    """(n,) The area under the precision-recall curve: 1/R Σ (p_i + q_i) / 2, where p_i = i / rank_i
    and q_i = (i − 1) / (rank_i − 1), or 1 for rank 1, is the precision just before; as `compute_ap`
    of the revisited Oxford and Paris benchmark has it (Radenović et al. 2018).
    """
    before = _share(r.order - 1, r.ranks - 1)
    before[r.ranks == 1] = 1
    return _share(_sums(r, (before + r.order / r.ranks) / 2), r.relevant)


def precision(r: Rankings, k: int) -> Floats:
    """(n,) A / k, also where fewer than k were retrieved."""
    return _share(r.hits(k), np.full(len(r.queries), k))


def new_precision(r: Rankings, feedback: Feedback) -> Floats:
    """(n,) The precision of the images that are shown next after feedback: of the last `shown` of
    the first `page`, those before them being marked.
    """
    last = feedback.page
    hits = r.hits(last) - r.hits(last - feedback.shown)
    return _share(hits, np.full(len(r.queries), feedback.shown))


def recall(r: Rankings, k: int) -> Floats:
    """(n,) A / R."""
    return _share(r.hits(k), r.relevant)


def false_acceptance(r: Rankings, k: int) -> Floats:
    """(n,) FIAR = B / (A + B), of what was really retrieved; NaN if that is nothing."""
    shown = np.minimum(r.retrieved, k)
    return _share(shown - r.hits(k), shown)


def false_rejection(r: Rankings, k: int) -> Floats:
    """(n,) FIRR = C / (A + C)."""
    return _share(r.relevant - r.hits(k), r.relevant)


def r_precision(r: Rankings) -> Floats:
    """(n,) Precision at k = R."""
    return _share(r.hits(r.relevant), r.relevant)


def ndcg(r: Rankings, k: int) -> Floats:
    """(n,) DCG of the ranking / DCG of the ideal one, DCG = Σ gain_i / log2(1 + i) over i = 1 … k
    (Järvelin and Kekäläinen 2002); NaN without gains, or if none is above 0.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    reached, ideal = (np.nan_to_num(gains[:, :k]) @ discounts for gains in (r.gains, r.ideal))
    return _share(reached, ideal)


def relevant_lost(r: Rankings) -> Floats:
    """(n,) The share of the relevant candidates that were not retrieved at all."""
    return _share(r.relevant - _sums(r, np.ones(len(r.ranks))), r.relevant)


def average_retrieval_rate(r: Rankings, part: NDArray[np.bool_], k: int) -> Measure:
    """ARR = Σ A / Σ R, sums over the queries: the mean recall where all classes are of one size
    (Guo and Prasetyo 2015, as the paper on semantic features cites it).
    """
    return _pooled(r.hits(k), r.relevant, part)


def candidates_left(r: Rankings, part: NDArray[np.bool_]) -> Measure:
    """Σ retrieved / Σ candidates, sums over the queries."""
    return _pooled(r.retrieved, r.candidates, part)


def interpolated_precision(r: Rankings, levels: Floats = LEVELS) -> Floats:
    """(n, levels) The greatest precision at any recall of at least the level, 0 where that is not
    reached; NaN for queries without relevant candidates.
    """
    curves = np.zeros((len(r.queries), len(levels)))
    bounds = np.searchsorted(r.owner, np.arange(len(r.queries) + 1))
    at_hits = r.order / r.ranks
    for i, (start, stop) in enumerate(pairwise(bounds)):
        best = np.maximum.accumulate(at_hits[start:stop][::-1])[::-1]
        needed = np.maximum(np.ceil(levels * r.relevant[i] - 1e-9).astype(int), 1)
        reached = needed <= len(best)
        curves[i, reached] = best[needed[reached] - 1]
    curves[r.relevant == 0] = np.nan
    return curves


def judge(counts: pa.Table) -> list[Judged]:
    """The measures of each method under each setting, by class as well where there is no filter;
    the units are the queries, sorted. Raises InputError as `rankings` does.
    """
    return [judged(rankings(counts))]


def judged(found: Sequence[Rankings]) -> Judged:
    """The same of all rankings of a counts table."""
    part = taking_part(found)
    measures: dict[Key, Measure] = {}
    for r in found:
        measures |= _measures(r, part)
        if r.setting == NONE:
            measures |= _by_class(r, part)
        measures |= _of_pages(r, found, part)
    return Judged(found[0].queries, measures)


_WHOLE: Mapping[str, Callable[[Rankings], Floats]] = {
    "map": average_precision,
    "map_trapezoid": average_precision_by_trapezoids,
    "r_precision": r_precision,
    "relevant_lost": relevant_lost,
}
_AT: Mapping[str, tuple[Callable[[Rankings, int], Floats], Sequence[int]]] = {
    "precision": (precision, CUTOFFS),
    "recall": (recall, CUTOFFS),
    "fiar": (false_acceptance, CUTOFFS),
    "firr": (false_rejection, CUTOFFS),
    "ndcg": (ndcg, NDCG_CUTOFFS),
}
_BY_CLASS = {("map", 0), ("r_precision", 0), ("precision", 10), ("recall", 10), ("recall", 100)}


def _values(r: Rankings) -> Iterator[tuple[str, int, Floats]]:
    """Name, k and (n,) values of all that is a mean over queries."""
    for name, whole in _WHOLE.items():
        yield name, 0, whole(r)
    for name, (at, cutoffs) in _AT.items():
        for k in cutoffs:
            yield name, k, at(r, k)


def _measures(r: Rankings, part: NDArray[np.bool_]) -> dict[Key, Measure]:
    def key(name: str, k: int = 0) -> Key:
        return Key(name, r.method, setting=r.setting, k=k)

    return {
        **{key(name, k): Measure.of(values, part) for name, k, values in _values(r)},
        **{key("arr", k): average_retrieval_rate(r, part, k) for k in CUTOFFS},
        key("candidates_left"): candidates_left(r, part),
    }


def _of_pages(
    r: Rankings, found: Sequence[Rankings], part: NDArray[np.bool_]
) -> dict[Key, Measure]:
    """The precision of new images after feedback; without, of the same pages of the ranking."""
    mine = Setting.parse(r.setting).feedback
    others = (Setting.parse(o.setting).feedback for o in found if o.method == r.method)
    pages = {f.page: f for f in others if f}
    if mine:
        pages = {mine.page: mine}
    elif r.setting == NONE:
        pages |= {f.shown: replace(f, rounds=0) for f in pages.values()}
    else:
        pages = {}
    return {
        Key("new_precision", r.method, setting=r.setting, k=k): Measure.of(
            new_precision(r, feedback), part
        )
        for k, feedback in sorted(pages.items())
    }


def _by_class(r: Rankings, part: NDArray[np.bool_]) -> dict[Key, Measure]:
    chosen = [v for v in _values(r) if v[:2] in _BY_CLASS]
    return {
        Key(name, r.method, setting=r.setting, cls=cls, k=k): Measure.of(
            values, part & (r.classes == cls)
        )
        for cls in sorted(set(r.classes.tolist()) - {""})
        for name, k, values in chosen
    }


def _sums(r: Rankings, values: Floats) -> Floats:
    """(n,) of (m,) values at the relevant images, the sum of each query."""
    return np.bincount(r.owner, values, minlength=len(r.queries)).astype(np.float64)


def _share(part: Floats | Integers, whole: Floats | Integers) -> Floats:
    """The ratios, NaN where the whole is 0."""
    nothing = np.full(len(whole), np.nan)
    return np.asarray(np.divide(part, whole, out=nothing, where=whole > 0))


def _pooled(part: Integers, whole: Integers, counted: NDArray[np.bool_]) -> Measure:
    numerator, denominator = (np.where(counted, v, 0.0)[:, None] for v in (part, whole))
    return Measure(numerator, denominator)
