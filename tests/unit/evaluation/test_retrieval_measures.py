"""Tests of retrieval metrics against other implementations, definitions and invariants."""

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
from segrec_batch.evaluation.retrieval.measures import CUTOFFS, evaluate
from segrec_batch.evaluation.retrieval.settings import KEPT
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key
from tests.support.builders import quick
from tests.support.retrieval_counts import counts_table, ranked

Lists = list[list[bool]]  # relevance of the results of each query, best first


def table(rows: list[dict[str, object]]) -> pa.Table:
    about = {"uri": "", "class": "", "method": "m", "setting": ""}
    return pa.Table.from_pylist(
        [{**about, "query": f"{i:04}", **row} for i, row in enumerate(rows)], COUNTS
    )


def of_lists(lists: Lists, missed: int = 0) -> Rankings:
    """Return rankings of which `missed` more relevant candidates were not retrieved."""
    (result,) = read_rankings(
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
    return result


def random_runs(n: int = 15, images: int = 120) -> tuple[list[dict[str, np.ndarray]], Rankings]:
    """Return scores, whole-numbered gains and filters of n queries, and their rankings."""
    rng = np.random.default_rng(5)
    runs = []
    for _ in range(n):
        gains = rng.integers(1, 4, images) * (rng.random(images) < rng.uniform(0.02, 0.6))
        gains[0] = 1
        kept = rng.random(images) < rng.choice([0.05, 0.6, 1.0])
        runs.append({"gains": gains, "kept": kept, "score": rng.permutation(images) / 1.0})
    everyone = np.ones(images, bool)
    rows = [ranked(r["gains"] > 0, r["score"], everyone, r["kept"], 1.0 * r["gains"]) for r in runs]
    (result,) = read_rankings(table(rows))
    return runs, result


# Compiled, ranx takes 45 s to start; as plain Python 3 s.
RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
qrels, run, metrics = json.load(sys.stdin)
result = evaluate(Qrels(qrels), Run(run), metrics, return_mean=False)
print(json.dumps({name: list(values) for name, values in result.items()}))
"""


def test_metrics_equal_ranx() -> None:
    runs, result = random_runs()
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
        "map": measures.average_precision(result),
        "r-precision": measures.r_precision(result),
        **{f"precision@{k}": measures.precision(result, k) for k in CUTOFFS},
        **{f"recall@{k}": measures.recall(result, k) for k in CUTOFFS},
        **{f"ndcg@{k}": measures.ndcg(result, k) for k in (10, 100)},
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


def test_metrics_equal_scikit_learn_without_filters() -> None:
    rng = np.random.default_rng(2)
    gains, scores = rng.random((30, 120)), rng.random((30, 120))
    relevant, everyone = gains > 0.8, np.ones(120, bool)
    rows = [
        ranked(r, s, everyone, everyone, g) for r, s, g in zip(relevant, scores, gains, strict=True)
    ]
    (result,) = read_rankings(table(rows))
    ap = [average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    assert measures.average_precision(result) == pytest.approx(ap)
    for k in (10, 100):
        one = [ndcg_score([g], [s], k=k) for g, s in zip(gains, scores, strict=True)]
        assert measures.ndcg(result, k) == pytest.approx(one, rel=1e-6)


def compute_ap(ranks: list[int], nres: int) -> float:
    """Return AP as revisitop computes it; ranks are from 0."""
    ap = 0.0
    recall_step = 1.0 / nres
    for j, rank in enumerate(ranks):
        precision_0 = 1.0 if rank == 0 else float(j) / rank
        precision_1 = float(j + 1) / (rank + 1)
        ap += (precision_0 + precision_1) * recall_step / 2.0
    return ap


def test_trapezoid_ap_equals_revisitop() -> None:
    runs, result = random_runs()
    for i, value in enumerate(measures.average_precision_by_trapezoids(result)):
        ranks = (result.ranks[result.owner == i] - 1).tolist()
        assert value == pytest.approx(compute_ap(ranks, int((runs[i]["gains"] > 0).sum())))


hit_lists = st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=6)


@quick
@given(hit_lists, st.integers(0, 5), st.sampled_from(CUTOFFS))
def test_rates_equal_their_definitions(lists: Lists, missed: int, k: int) -> None:
    result = of_lists(lists, missed)
    recall, precision = measures.recall(result, k), measures.precision(result, k)
    fiar, firr = measures.false_acceptance(result, k), measures.false_rejection(result, k)
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
def test_metrics_depend_on_order_only(measure, hits: list[bool], missed: int) -> None:  # type: ignore[no-untyped-def]
    hits[0] = True
    best, worst = sorted(hits, reverse=True), sorted(hits)
    lists = [hits, best, worst, [*hits, False, False]]
    value, perfect, reverse, with_tail = measure(of_lists(lists, missed))
    assert 0 <= reverse <= value <= perfect <= 1
    assert with_tail == value  # irrelevant images at the end change nothing
    if not missed:
        assert perfect == 1


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 5))
def test_interpolated_precision_is_the_best_at_higher_recall(hits: list[bool], missed: int) -> None:
    hits[-1] = True
    r = sum(hits) + missed
    points = [(sum(hits[:k]) / r, sum(hits[:k]) / k) for k in range(1, len(hits) + 1)]
    (curve,) = measures.interpolated_precision(of_lists([hits], missed))
    for level, value in zip(measures.LEVELS, curve, strict=True):
        reached = [p for recall, p in points if recall >= level - 1e-9]
        assert value == pytest.approx(max(reached, default=0))


def test_ndcg_of_a_perfect_ranking_is_one() -> None:
    worth = np.random.default_rng(0).random(40)
    everyone = np.ones(40, bool)
    rows = [ranked(everyone, s, everyone, everyone, worth) for s in (worth, -worth)]
    perfect, reverse = measures.ndcg(read_rankings(table(rows))[0], 10)
    assert perfect == 1
    assert reverse < 0.5


def test_ndcg_without_gains_is_absent() -> None:
    (evaluation,) = evaluate(counts_table(20, gains=False))
    ndcg = {key: m.value for key, m in evaluation.measures.items() if key.name == "ndcg"}
    assert ndcg
    assert set(ndcg.values()) == {None}


def value(evaluation: Evaluation, name: str, k: int = 0, **key: str) -> float | None:
    return evaluation.measures[Key(name, "m", k=k, **key)].value


def test_average_retrieval_rate_is_pooled() -> None:
    lists = [[True, False], [True] + [False] * 8 + [True] * 9]
    result = of_lists(lists)
    evaluation = measures.evaluate_rankings([result])
    assert value(evaluation, "arr", 1) == 2 / 11
    assert value(evaluation, "recall", 1) == pytest.approx((1 + 1 / 10) / 2)
    same_size = measures.evaluate_rankings([of_lists([[True, False, True], [False, True, True]])])
    for k in CUTOFFS:
        assert value(same_size, "arr", k) == pytest.approx(value(same_size, "recall", k))


def test_query_without_relevant_images_is_left_out() -> None:
    with_it = measures.evaluate_rankings([of_lists([[True, False], [False, False], [False, True]])])
    without = measures.evaluate_rankings([of_lists([[True, False], [False, True]])])
    figures = {e.key: e for e in with_it.estimates(draws=5)}
    assert len(with_it.units) == 3
    for expected in without.estimates(draws=5):
        result: Estimate = figures[expected.key]
        assert (result.value, result.units) == (expected.value, expected.units), expected.key


def test_empty_results_have_no_false_acceptance() -> None:
    sizes = {"candidates": 9, "retrieved": 0, "relevant": 3}
    (evaluation,) = evaluate(table([{**sizes, "ranks": [], "gains": [], "ideal": []}]))
    for name, k in (("map", 0), ("r_precision", 0), ("precision", 10), ("candidates_left", 0)):
        assert value(evaluation, name, k) == 0
    assert (value(evaluation, "firr", 10), value(evaluation, "relevant_lost")) == (1, 1)
    assert value(evaluation, "fiar", 10) is None


def test_query_kept_evaluates_the_same_queries() -> None:
    """A query that is alone in its class is relevant to itself only."""
    counts = counts_table(8, settings=("", KEPT.name))
    (evaluation,) = evaluate(counts)
    alone = {row["query"] for row in counts.to_pylist() if not row["relevant"]}
    assert alone
    units = {_queries(evaluation, Key("map", "image Pearson", setting=s)) for s in ("", KEPT.name)}
    assert units == {8 - len(alone)}


def _queries(evaluation: Evaluation, key: Key) -> int:
    return int(evaluation.measures[key].denominator.sum())


def test_class_metrics_add_up_to_all_queries() -> None:
    counts = counts_table(40)
    (evaluation,) = evaluate(counts)
    everything = evaluation.measures[Key("map", "image Pearson")]
    parts = [
        m
        for key, m in evaluation.measures.items()
        if key.cls and key == Key("map", "image Pearson", cls=key.cls)
    ]
    assert len(parts) == len(set(counts["class"].to_pylist()))
    assert sum(m.numerator for m in parts) == pytest.approx(everything.numerator)
    assert sum(m.denominator for m in parts) == pytest.approx(everything.denominator)


def test_counts_in_any_order_give_the_same_metrics() -> None:
    counts = counts_table(20)
    (expected,) = evaluate(counts)
    order = np.random.default_rng(0).permutation(len(counts))
    (result,) = evaluate(counts.take(order))
    assert result.units == expected.units == tuple(sorted(result.units))
    assert {k: m.value for k, m in result.measures.items()} == {
        k: m.value for k, m in expected.measures.items()
    }


def test_read_rankings_refuses_other_tables() -> None:
    counts = counts_table(10)
    with pytest.raises(InputError, match="ranks"):
        evaluate(counts.drop_columns("ranks"))
    gone = ("image Pearson", "ε 0.9", "3.jpg")
    rows = [r for r in counts.to_pylist() if (r["method"], r["setting"], r["uri"]) != gone]
    with pytest.raises(InputError, match=r"image Pearson · ε 0\.9: not one row"):
        evaluate(pa.Table.from_pylist(rows, COUNTS))
    with pytest.raises(InputError, match="not one row for each query"):
        evaluate(pa.concat_tables([counts, counts]))
    with pytest.raises(InputError, match="no query"):
        evaluate(counts.slice(0, 0))


@pytest.mark.parametrize(
    "fields",
    [
        {"epsilon": 0.8},
        {"epsilon": None},
        {"window": [0.1]},
        {"window": [0.1, None]},
        {"feedback": {"way": "svm", "rounds": None, "shown": 10}},
    ],
)
def test_read_rankings_refuses_other_settings(fields: dict[str, object]) -> None:
    rows = counts_table(4, settings=("", "ε 0.9")).to_pylist()
    for row in rows:
        row["condition"].update(fields if row["setting"] else {})
    with pytest.raises(InputError, match=r"'ε 0\.9' is not a setting"):
        evaluate(pa.Table.from_pylist(rows, COUNTS))
