"""The measures of retrieval against other implementations, literal ones and their invariants."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval import measures
from segrec_batch.evaluation.retrieval.counts import COUNTS, Rankings, read_rankings
from segrec_batch.evaluation.retrieval.measures import CUTOFFS, judge
from segrec_batch.evaluation.retrieval.settings import KEPT
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key
from tests.support.builders import quick
from tests.support.retrieval_counts import counts_table, ranked

Lists = list[list[bool]]  # of each query, best first: is this result relevant?


def table(rows: list[dict[str, object]]) -> pa.Table:
    about = {"uri": "", "class": "", "method": "m", "setting": ""}
    return pa.Table.from_pylist(
        [{**about, "query": f"{i:04}", **row} for i, row in enumerate(rows)], COUNTS
    )


def of_lists(lists: Lists, missed: int = 0) -> Rankings:
    """`missed` more relevant candidates were not retrieved."""
    (found,) = read_rankings(
        table(
            [
                {
                    "candidates": len(hits) + missed,
                    "retrieved": len(hits),
                    "relevant": sum(hits) + missed,
                    "ranks": [i for i, hit in enumerate(hits, start=1) if hit],
                    "gains": None,
                    "ideal": None,
                }
                for hits in lists
            ]
        )
    )
    return found


def random_runs(n: int = 15, images: int = 120) -> tuple[list[dict[str, np.ndarray]], Rankings]:
    """Scores, whole-numbered gains and filters of n queries, and their rankings."""
    rng = np.random.default_rng(5)
    runs = []
    for _ in range(n):
        gains = rng.integers(1, 4, images) * (rng.random(images) < rng.uniform(0.02, 0.6))
        gains[0] = 1
        kept = rng.random(images) < rng.choice([0.05, 0.6, 1.0])
        runs.append({"gains": gains, "kept": kept, "score": rng.permutation(images) / 1.0})
    everyone = np.ones(images, bool)
    rows = [ranked(r["gains"] > 0, r["score"], everyone, r["kept"], 1.0 * r["gains"]) for r in runs]
    (found,) = read_rankings(table(rows))
    return runs, found


# Compiled, ranx takes 45 s to start; as plain Python 3 s.
RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
qrels, run, metrics = json.load(sys.stdin)
found = evaluate(Qrels(qrels), Run(run), metrics, return_mean=False)
print(json.dumps({name: list(values) for name, values in found.items()}))
"""


def test_ranx_agrees() -> None:
    runs, found = random_runs()
    assert all(r["kept"].any() for r in runs)
    qrels = {
        f"{q:03}": {str(i): int(r["gains"][i]) for i in np.flatnonzero(r["gains"])}
        for q, r in enumerate(runs)
    }
    run = {
        f"{q:03}": {str(i): float(r["score"][i]) for i in np.flatnonzero(r["kept"])}
        for q, r in enumerate(runs)
    }
    ours = {
        "map": measures.average_precision(found),
        "r-precision": measures.r_precision(found),
        **{f"precision@{k}": measures.precision(found, k) for k in CUTOFFS},
        **{f"recall@{k}": measures.recall(found, k) for k in CUTOFFS},
        **{f"ndcg@{k}": measures.ndcg(found, k) for k in (10, 100)},
    }
    theirs = subprocess.run(
        [sys.executable, "-c", RANX],
        input=json.dumps([qrels, run, list(ours)]),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    for name, values in json.loads(theirs.stdout).items():
        assert ours[name] == pytest.approx(np.array(values)), name


def test_scikit_learn_agrees_where_nothing_is_filtered() -> None:
    rng = np.random.default_rng(2)
    gains, scores = rng.random((30, 120)), rng.random((30, 120))
    relevant, everyone = gains > 0.8, np.ones(120, bool)
    rows = [
        ranked(r, s, everyone, everyone, g) for r, s, g in zip(relevant, scores, gains, strict=True)
    ]
    (found,) = read_rankings(table(rows))
    ap = [average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    assert measures.average_precision(found) == pytest.approx(ap)
    for k in (10, 100):
        one = [ndcg_score([g], [s], k=k) for g, s in zip(gains, scores, strict=True)]
        assert measures.ndcg(found, k) == pytest.approx(one, rel=1e-6)


def compute_ap(ranks: list[int], nres: int) -> float:
    """As revisitop has it; ranks from 0."""
    ap = 0.0
    recall_step = 1.0 / nres
    for j, rank in enumerate(ranks):
        precision_0 = 1.0 if rank == 0 else float(j) / rank
        precision_1 = float(j + 1) / (rank + 1)
        ap += (precision_0 + precision_1) * recall_step / 2.0
    return ap


def test_the_trapezoids_are_those_of_revisitop() -> None:
    runs, found = random_runs()
    for i, value in enumerate(measures.average_precision_by_trapezoids(found)):
        ranks = (found.ranks[found.owner == i] - 1).tolist()
        assert value == pytest.approx(compute_ap(ranks, int((runs[i]["gains"] > 0).sum())))


hit_lists = st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=6)


@quick
@given(hit_lists, st.integers(0, 5), st.sampled_from(CUTOFFS))
def test_rates_are_their_definitions(lists: Lists, missed: int, k: int) -> None:
    found = of_lists(lists, missed)
    recall, precision = measures.recall(found, k), measures.precision(found, k)
    fiar, firr = measures.false_acceptance(found, k), measures.false_rejection(found, k)
    for i, hits in enumerate(lists):
        a, b = sum(hits[:k]), hits[:k].count(False)
        c = sum(hits) + missed - a
        assert precision[i] == a / k
        assert fiar[i] == b / (a + b)
        if a + c:
            assert recall[i] == a / (a + c)
            assert firr[i] == pytest.approx(1 - recall[i])
        else:
            assert math.isnan(recall[i])
            assert math.isnan(firr[i])
        if len(hits) >= k:
            assert fiar[i] == pytest.approx(1 - precision[i])


WHOLE = [
    measures.average_precision,
    measures.average_precision_by_trapezoids,
    measures.r_precision,
]


@pytest.mark.parametrize("measure", WHOLE)
@quick
@given(hits=st.lists(st.booleans(), min_size=1, max_size=30), missed=st.integers(0, 5))
def test_order_decides(measure, hits: list[bool], missed: int) -> None:  # type: ignore[no-untyped-def]
    hits[0] = True
    best, worst = sorted(hits, reverse=True), sorted(hits)
    lists = [hits, best, worst, [*hits, False, False]]
    value, perfect, reverse, with_tail = measure(of_lists(lists, missed))
    assert 0 <= reverse <= value <= perfect <= 1
    assert with_tail == value  # what is irrelevant at the end changes nothing
    if not missed:
        assert perfect == 1


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 5))
def test_interpolated_precision_is_the_best_at_no_less_recall(
    hits: list[bool], missed: int
) -> None:
    hits[-1] = True
    r = sum(hits) + missed
    points = [(sum(hits[:k]) / r, sum(hits[:k]) / k) for k in range(1, len(hits) + 1)]
    (curve,) = measures.interpolated_precision(of_lists([hits], missed))
    for level, value in zip(measures.LEVELS, curve, strict=True):
        reached = [p for recall, p in points if recall >= level - 1e-9]
        assert value == pytest.approx(max(reached, default=0))


def test_a_perfect_ranking_has_the_greatest_gain() -> None:
    worth = np.random.default_rng(0).random(40)
    everyone = np.ones(40, bool)
    rows = [ranked(everyone, s, everyone, everyone, worth) for s in (worth, -worth)]
    perfect, reverse = measures.ndcg(read_rankings(table(rows))[0], 10)
    assert perfect == 1
    assert reverse < 0.5


def test_without_gains_there_is_no_ndcg() -> None:
    (judged,) = judge(counts_table(20, gains=False))
    ndcg = {key: m.value for key, m in judged.measures.items() if key.name == "ndcg"}
    assert ndcg
    assert set(ndcg.values()) == {None}


def value(judged: Evaluation, name: str, k: int = 0, **key: str) -> float | None:
    return judged.measures[Key(name, "m", k=k, **key)].value


def test_the_average_retrieval_rate_is_pooled() -> None:
    lists = [[True, False], [True] + [False] * 8 + [True] * 9]
    found = of_lists(lists)
    judged = measures.measure([found])
    assert value(judged, "arr", 1) == 2 / 11
    assert value(judged, "recall", 1) == pytest.approx((1 + 1 / 10) / 2)
    same_size = measures.measure([of_lists([[True, False, True], [False, True, True]])])
    for k in CUTOFFS:
        assert value(same_size, "arr", k) == pytest.approx(value(same_size, "recall", k))


def test_a_query_that_has_nothing_to_find_has_no_part_in_any_figure() -> None:
    with_it = measures.measure([of_lists([[True, False], [False, False], [False, True]])])
    without = measures.measure([of_lists([[True, False], [False, True]])])
    figures = {e.key: e for e in with_it.estimates(draws=5)}
    assert len(with_it.units) == 3
    for expected in without.estimates(draws=5):
        found: Estimate = figures[expected.key]
        assert (found.value, found.units) == (expected.value, expected.units), expected.key


def test_nothing_retrieved_is_nothing_found_and_nothing_falsely_accepted() -> None:
    sizes = {"candidates": 9, "retrieved": 0, "relevant": 3}
    (judged,) = judge(table([{**sizes, "ranks": [], "gains": [], "ideal": []}]))
    for name, k in (("map", 0), ("r_precision", 0), ("precision", 10), ("candidates_left", 0)):
        assert value(judged, name, k) == 0
    assert (value(judged, "firr", 10), value(judged, "relevant_lost")) == (1, 1)
    assert value(judged, "fiar", 10) is None


def test_a_kept_query_does_not_bring_others_into_the_figures() -> None:
    """Alone in its class, it is relevant to itself only."""
    counts = counts_table(8, settings=("", KEPT.name))
    (judged,) = judge(counts)
    alone = {row["query"] for row in counts.to_pylist() if not row["relevant"]}
    assert alone
    units = {_taking_part(judged, Key("map", "image Pearson", setting=s)) for s in ("", KEPT.name)}
    assert units == {8 - len(alone)}


def _taking_part(judged: Evaluation, key: Key) -> int:
    return int(judged.measures[key].denominator.sum())


def test_classes_divide_the_queries() -> None:
    counts = counts_table(40)
    (judged,) = judge(counts)
    everything = judged.measures[Key("map", "image Pearson")]
    parts = [
        m
        for key, m in judged.measures.items()
        if key.cls and key == Key("map", "image Pearson", cls=key.cls)
    ]
    assert len(parts) == len(set(counts["class"].to_pylist()))
    assert sum(m.numerator for m in parts) == pytest.approx(everything.numerator)
    assert sum(m.denominator for m in parts) == pytest.approx(everything.denominator)


def test_rows_in_any_order_give_the_same_figures() -> None:
    counts = counts_table(20)
    (expected,) = judge(counts)
    order = np.random.default_rng(0).permutation(len(counts))
    (found,) = judge(counts.take(order))
    assert found.units == expected.units == tuple(sorted(found.units))
    assert {k: m.value for k, m in found.measures.items()} == {
        k: m.value for k, m in expected.measures.items()
    }


def test_what_is_not_a_counts_table_is_refused() -> None:
    counts = counts_table(10)
    with pytest.raises(InputError, match="ranks"):
        judge(counts.drop_columns("ranks"))
    gone = ("image Pearson", "ε 0.9", "3.jpg")
    rows = [r for r in counts.to_pylist() if (r["method"], r["setting"], r["uri"]) != gone]
    with pytest.raises(InputError, match=r"image Pearson · ε 0\.9: not one row"):
        judge(pa.Table.from_pylist(rows, COUNTS))
    with pytest.raises(InputError, match="not one row for each query"):
        judge(pa.concat_tables([counts, counts]))
    with pytest.raises(InputError, match="no query"):
        judge(counts.slice(0, 0))
