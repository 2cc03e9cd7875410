"""Tests of metric values as means of ratios of sums, and of their intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from segrec_batch.evaluation.statistics import Evaluation, Key, Measure, contrast, difference, holm
from tests.support.builders import quick

IOU, OTHER = Key("iou"), Key("other")


def column(*values: float) -> np.ndarray:
    return np.array(values, float)[:, None]


def names(n: int) -> tuple[str, ...]:
    return tuple(f"{i}.jpg" for i in range(n))


def test_measure_is_ratio_of_sums() -> None:
    assert Measure(column(1, 9), column(2, 90)).value == pytest.approx(10 / 92)


def test_measure_without_units_is_absent() -> None:
    absent = Measure(column(0, 0), column(0, 0))
    assert absent.value is None
    (estimate,) = Evaluation(names(2), {IOU: absent}).estimates()
    assert (estimate.value, estimate.low, estimate.high, estimate.units) == (None, None, None, 0)


def test_measure_mean_leaves_absent_parts_out() -> None:
    mean = Measure.mean([Measure(column(1), column(2)), Measure(column(0), column(0))])
    assert mean.value == 0.5


def test_measure_of_absent_class_is_absent() -> None:
    assert Measure(column(0), column(7), present=column(0)).value is None


def test_measure_of_values_ignores_nan() -> None:
    assert Measure.of(np.array([1.0, np.nan, 3.0])).value == 2
    assert Measure.of(np.array([1.0, 5.0]), np.array([True, False])).value == 1


def test_interval_matches_scipy() -> None:
    values = np.random.default_rng(3).normal(10, 2, 80)
    (estimate,) = Evaluation(names(80), {IOU: Measure.of(values)}).estimates(draws=4000)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1)
    assert estimate.low == pytest.approx(theirs.confidence_interval.low, abs=0.05)
    assert estimate.high == pytest.approx(theirs.confidence_interval.high, abs=0.05)


@quick
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_interval_of_share_stays_in_range(pairs: list[tuple[int, int]]) -> None:
    hit = column(*(min(a, b) for a, b in pairs))
    everything = column(*(max(a, b) for a, b in pairs))
    evaluation = Evaluation(names(len(pairs)), {IOU: Measure(hit, everything)})
    (estimate,) = evaluation.estimates(draws=200)
    if estimate.value is None:
        assert not everything.any()
        return
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 <= estimate.low <= estimate.high <= 1
    assert 0 <= estimate.value <= 1


def test_difference_of_same_units_is_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0.5, 0.2, 60)
    ours = Evaluation(names(60), {IOU: Measure.of(hard)})
    theirs = Evaluation(names(60), {IOU: Measure.of(hard + 0.05)})
    (paired,) = difference(ours, theirs)
    assert (paired.value, paired.low, paired.high) == pytest.approx((0.05, 0.05, 0.05))
    other_units = Evaluation(tuple(f"b{i}" for i in range(60)), theirs.measures)
    (loose,) = difference(ours, other_units)
    assert loose.value == pytest.approx(0.05)
    assert loose.low is not None
    assert loose.low < 0 < 0.1 < (loose.high or 0)


def test_contrast_uses_same_resamples() -> None:
    values = np.random.default_rng(1).normal(size=40)
    both = Evaluation(names(40), {IOU: Measure.of(values), OTHER: Measure.of(values - 1)})
    (leak,) = contrast(both, {Key("leak"): (IOU, OTHER)})
    assert (leak.value, leak.low, leak.high) == pytest.approx((1, 1, 1))
    assert leak.key == Key("leak")


def test_difference_with_absent_value_is_absent() -> None:
    here = Evaluation(names(2), {IOU: Measure.of(np.array([1.0, 2.0]))})
    gone = Evaluation(names(2), {IOU: Measure(column(0, 0), column(0, 0))})
    (result,) = difference(here, gone)
    assert (result.value, result.low, result.high) == (None, None, None)


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_matches_its_definition(p: list[float]) -> None:
    corrected = holm(np.array(p))
    m = len(p)
    smallest_first = sorted(range(m), key=lambda i: p[i])
    for place, i in enumerate(smallest_first):
        before = [(m - j) * p[smallest_first[j]] for j in range(place + 1)]
        assert corrected[i] == pytest.approx(min(1, max(before)))
    assert (corrected >= np.array(p)).all()
    assert (corrected <= 1).all()
    assert (np.diff(corrected[smallest_first]) >= 0).all()


def test_holm_ignores_nan() -> None:
    corrected = holm(np.array([0.04, np.nan, 0.01]))
    assert corrected == pytest.approx([0.04, np.nan, 0.02], nan_ok=True)
