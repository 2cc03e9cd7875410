"""Tests of cross-validation and offsets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segrec_batch.labels.labelled import Classes
from segrec_batch.model.backbones import Tap
from segrec_batch.training.sampling import Samples
from segrec_batch.training.validation import (
    Components,
    HeadCandidate,
    Validation,
    choose_offsets,
    cross_validate,
    iou,
    split_groups,
    weighted_confusion,
)
from tests.support.builders import quick

CLASSES = Classes({"car": (8, 9), "tree": (2,)}, ignore=(11,))
seeds = st.integers(0, 1000)


def _values(**counts: int) -> NDArray[np.int16]:
    """`v8=3` means three of value 8; shuffled."""
    values = np.repeat([int(k[1:]) for k in counts], list(counts.values())).astype(np.int16)
    return np.random.default_rng(0).permutation(values)


def test_components_merge_rare_background_values() -> None:
    values = _values(v0=60, v5=50, v3=10, v4=7, v6=49, v8=5, v9=100, v2=1)
    components = Components.of(values, CLASSES)
    of = components.of_value
    assert of[3] == of[4] == of[6]
    assert len({of[v] for v in (0, 5, 3, 8, 9, 2)}) == 6 == len(components.classes)
    assert [components.classes[of[v]] for v in (0, 5, 3, 8, 9, 2)] == [0, 0, 0, 1, 1, 2]


@given(values=st.lists(st.sampled_from([0, 2, 3, 4, 8, 9, 300]), min_size=1, max_size=200))
@quick
def test_components_map_values_to_their_class(values: list[int]) -> None:
    array = np.array(values, np.int16)
    components = Components.of(array, CLASSES)
    targets = components.targets(array)
    present = set(range(len(components.classes)))
    if min(CLASSES.to_classes(array)) > 0:
        assert components.classes[-1] == 0, "one SVM stands for a background without a pixel"
        present.remove(len(components.classes) - 1)
    assert set(targets) == present
    owners = np.array(components.classes)[targets]
    np.testing.assert_array_equal(owners, CLASSES.to_classes(array))


def test_class_scores_take_best_component() -> None:
    components = Components({}, (1, 0, 2, 0, 1))
    decision = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    expected = [[max(row[[1, 3]]), max(row[[0, 4]]), row[2]] for row in decision]
    np.testing.assert_array_equal(components.class_scores(decision), expected)


def _case(seed: int, n: int = 60, k: int = 4) -> tuple[NDArray, NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    scores = rng.normal(size=(n, k)).astype(np.float32)
    scores[np.arange(n), labels] += 0.7
    return scores, labels, rng.uniform(0.1, 5, n)


@given(seed=seeds)
@quick
def test_confusion_and_iou_equal_plain_loops(seed: int) -> None:
    scores, labels, weights = _case(seed)
    expected = np.zeros((4, 4))
    for row, label, weight in zip(scores, labels, weights, strict=True):
        expected[label, row.argmax()] += weight
    actual = weighted_confusion(scores, labels, weights)
    np.testing.assert_allclose(actual, expected)
    predicted = scores.argmax(axis=1)
    for k in range(4):
        both, either = (
            weights[f(labels == k, predicted == k)].sum() for f in (np.logical_and, np.logical_or)
        )
        assert iou(actual)[k] == pytest.approx(both / either)


def test_iou_of_absent_and_missed_classes() -> None:
    confusion = np.array([[5.0, 0, 1, 0], [0, 0, 0, 0], [2, 0, 4, 0], [3, 0, 0, 0]])
    np.testing.assert_allclose(iou(confusion), [5 / 11, np.nan, 4 / 7, 0])


def test_mean_iou_covers_present_foreground() -> None:
    result = Validation(
        HeadCandidate((Tap("conv5_3"),), 1.0), np.array([0.9, 0.2, np.nan, 0.4]), np.zeros(4), 0.5
    )
    assert result.mean_iou == pytest.approx(0.3)
    assert str(result.candidate) == "conv5_3 C=1"


def _mean_iou(scores: NDArray, labels: NDArray, weights: NDArray) -> float:
    return float(np.nanmean(iou(weighted_confusion(scores, labels, weights))[1:]))


@given(seed=seeds)
@quick
def test_choose_offsets_never_lowers_iou(seed: int) -> None:
    scores, labels, weights = _case(seed)
    offsets = choose_offsets(scores, labels, weights)
    assert (offsets.shape, offsets.dtype, offsets[0]) == ((4,), np.float32, 0)
    assert _mean_iou(scores + offsets, labels, weights) >= _mean_iou(scores, labels, weights)


@pytest.mark.parametrize("planted", [(0, 1.8, 0), (0, 0, -1.8), (-1.2, 1.8, 1)])
def test_choose_offsets_finds_planted_offset(planted: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2000)
    fair = rng.normal(0, 0.3, (2000, 4)).astype(np.float32)
    fair[np.arange(2000), labels] += 2
    weights = np.ones(2000)
    best = _mean_iou(fair, labels, weights)
    spoiled = fair + np.array([0, *planted], np.float32)
    offsets = choose_offsets(spoiled, labels, weights)
    assert best > 0.99
    assert _mean_iou(spoiled, labels, weights) < 0.9
    assert _mean_iou(spoiled + offsets, labels, weights) > 0.97


@given(groups=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60))
@quick
def test_split_groups_keeps_groups_together(groups: list[str]) -> None:
    array = np.array(groups, object)
    if len(set(groups)) < 2:
        return
    folds = split_groups(array)
    assert len(folds) == min(5, len(set(groups)))
    for train, test in folds:
        assert not set(array[train]) & set(array[test])
        assert len(train) > 0
        assert len(test) > 0
        assert sorted([*train, *test]) == list(range(len(groups)))
    tested = np.concatenate([test for _, test in folds])
    assert sorted(tested) == list(range(len(groups)))


def _samples(n: int = 120) -> Samples:
    """Two taps of 64 channels: the first tells the values apart, the second is noise."""
    rng = np.random.default_rng(0)
    values = rng.choice([0, 2, 8], n).astype(np.int16)
    features = rng.normal(size=(n, 128)).astype(np.float16)
    for i, value in enumerate((0, 2, 8)):
        features[values == value, 10 * i : 10 * i + 10] += np.float16(3)
    groups = np.array([f"g{i}" for i in rng.integers(0, 7, n)], object)
    numbers = np.arange(n)
    return Samples(features, values, np.ones(n), groups, torch.zeros(512), numbers, 0 * numbers)


def test_cross_validate_prefers_informative_tap() -> None:
    samples, taps = _samples(), (Tap("conv1_1"), Tap("conv1_2"))
    candidates = [HeadCandidate((tap,), 1.0) for tap in taps]
    components = Components.of(samples.values, CLASSES)
    result = list(cross_validate(samples, taps, candidates, components, CLASSES, 0))
    assert [v.candidate for v in result] == candidates
    assert result[0].mean_iou > 0.95
    assert result[0].accuracy > 0.97
    assert result[1].mean_iou < 0.5, "noise would look good only to an SVM that saw the answers"
    again = list(cross_validate(samples, taps, candidates, components, CLASSES, 0))
    np.testing.assert_array_equal(result[1].iou, again[1].iou)
