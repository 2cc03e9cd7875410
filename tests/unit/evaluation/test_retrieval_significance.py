"""Tests of the comparison of methods: the randomisation test and its correction."""

import numpy as np
import pytest
from scipy.stats import permutation_test

from segrec_batch.evaluation.retrieval.measures import evaluate
from segrec_batch.evaluation.retrieval.results import compare_methods, randomisation_test
from segrec_batch.evaluation.statistics import Key
from tests.support.retrieval_counts import counts_table


def of_scipy(differences: np.ndarray, draws: int) -> float:
    zeros = np.zeros_like(differences)
    return permutation_test(
        (differences, zeros),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        rng=np.random.default_rng(1),
    ).pvalue


@pytest.mark.parametrize("n", [2, 3, 8])
def test_randomisation_test_of_few_queries_is_exact(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.3, 0.5, (n, 3))
    exact = [of_scipy(column, 9999) for column in differences.T]
    assert randomisation_test(differences) == pytest.approx(exact)


def test_randomisation_test_of_many_queries_draws_signs() -> None:
    differences = np.random.default_rng(0).normal((0.0, 0.04, 0.08, 1.0), 0.5, (200, 4))
    theirs = [of_scipy(column, 4999) for column in differences.T]
    result = randomisation_test(differences, draws=4999)
    assert result == pytest.approx(theirs, abs=0.03)
    assert result[-1] == 1 / 5000
    assert (randomisation_test(differences, draws=4999) == result).all()


def test_randomisation_test_of_equal_methods_is_one() -> None:
    assert randomisation_test(np.zeros((50, 1))) == [1]
    one_query = np.zeros((50, 1))
    one_query[0] = 0.9
    assert randomisation_test(one_query) == [1]
    assert randomisation_test(one_query[:1]) == [1]


def test_randomisation_test_is_uniform_without_difference() -> None:
    p = randomisation_test(np.random.default_rng(3).normal(size=(30, 400)), draws=999)
    assert np.quantile(p, [0.05, 0.5, 0.95]) == pytest.approx([0.05, 0.5, 0.95], abs=0.06)


def test_compare_methods_covers_all_pairs() -> None:
    (evaluation,) = evaluate(counts_table(60))
    methods = ["region Pearson", "image Pearson", "semantic histogram"]
    pairs = compare_methods(evaluation, methods)
    assert [(c.a, c.b) for c in pairs] == [
        (methods[0], methods[1]),
        (methods[0], methods[2]),
        (methods[1], methods[2]),
    ]
    for c in pairs:
        a, b = (evaluation.measures[Key("map", m)].value for m in (c.a, c.b))
        assert c.difference.value == pytest.approx((a or 0) - (b or 0))
        assert c.difference.low is not None
        assert c.difference.low > 0  # they were made of different strengths
        assert c.p <= c.p_holm < 0.05
    assert compare_methods(evaluation, methods[:1]) == []
