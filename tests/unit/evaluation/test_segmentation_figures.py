"""Tests of segmentation metrics: against scikit-learn and by their arithmetic."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from segrec_batch.evaluation.segmentation.counts import (
    SEGREC,
    count_pixels,
    counts_by_method,
    counts_table,
    shares,
)
from segrec_batch.evaluation.segmentation.figures import (
    BRIGHTNESS,
    DOMINANT,
    GROUPED,
    PIXELS,
    RANDOM,
    SIZES,
    calibration,
    conditions,
    dominant,
    estimates,
    evaluate,
    overlap,
)
from segrec_batch.evaluation.segmentation.gallery import image_iou
from segrec_batch.evaluation.statistics import Key
from segrec_batch.labels.labelled import VOID
from tests.support.builders import quick

NAMES = ("car", "person", "tree")
ALL = ("background", *NAMES)
seeds = st.integers(0, 10_000)
few = settings(quick, max_examples=12)  # scikit-learn checks its arguments for long


def maps(seed: int, n: int = 6, classes: Sequence[int] = range(4)) -> list[tuple[NDArray, NDArray]]:
    """Return pairs of labels with void and class maps that often agree with them."""
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(n):
        truth = rng.choice([VOID, *classes], (9, 7)).astype(np.int16)
        agrees = rng.random((9, 7)) < 0.6
        predicted = np.where(agrees, np.maximum(truth, 0), rng.choice(classes, (9, 7)))
        results.append((truth, predicted.astype(np.uint8)))
    return results


def rows(
    images: Sequence[tuple[NDArray, NDArray]], split: str = GROUPED, method: str = SEGREC
) -> list[dict[str, object]]:
    return [
        {
            "split": split,
            "method": method,
            "image": f"{i:03}.jpg",
            "group": "g",
            "luminance": i / len(images),
            "confusion": count_pixels(truth, predicted, 4).ravel().tolist(),
            "cells": np.bincount(predicted[::2, ::2].ravel(), minlength=4).tolist(),
        }
        for i, (truth, predicted) in enumerate(images)
    ]


def table(images: Sequence[tuple[NDArray, NDArray]]) -> pa.Table:
    return counts_table(rows(images), NAMES)


def values(counts: pa.Table) -> dict[Key, float | None]:
    return {key: m.value for part in evaluate(counts) for key, m in part.measures.items()}


def of(name: str, cls: str = "", setting: str = PIXELS, split: str = GROUPED) -> Key:
    return Key(name, SEGREC, split, setting, cls)


def check_against_sklearn(
    results: dict[Key, float | None], truth: NDArray, predicted: NDArray, setting: str
) -> None:
    for k, cls in enumerate(ALL):
        ours = {
            name: results[of(name, cls, setting)]
            for name in ("iou", "precision", "recall", "f1", "accuracy")
        }
        mine, theirs = truth == k, predicted == k
        if not mine.any():
            assert set(ours.values()) == {None}
            continue
        oracle = {
            "iou": jaccard_score(mine, theirs),
            "recall": recall_score(mine, theirs),
            "f1": f1_score(mine, theirs),
            "accuracy": accuracy_score(mine, theirs),
            "precision": precision_score(mine, theirs) if theirs.any() else None,
        }
        for name, value in oracle.items():
            assert ours[name] == (value if value is None else pytest.approx(value)), name
    whole = results[of("pixel_accuracy", "", setting)]
    assert whole == pytest.approx(accuracy_score(truth, predicted))


@few
@given(seed=seeds)
def test_ratios_match_scikit_learn(seed: int) -> None:
    images = maps(seed, classes=[0, 1, 3] if seed % 2 else range(4))
    truth = np.concatenate([t.ravel() for t, _ in images])
    predicted = np.concatenate([p.ravel() for _, p in images])
    known = truth != VOID
    results = values(table(images))
    check_against_sklearn(results, truth[known], predicted[known], PIXELS)
    for name in ("iou", "precision", "recall", "f1", "accuracy"):
        each = [v for c in NAMES if (v := results[of(name, c)]) is not None]
        assert results[of(name, "mean")] == pytest.approx(np.mean(each))


def most(labels: NDArray) -> int:
    counts = [int((labels == k).sum()) for k in (1, 2, 3)]
    return 1 + counts.index(max(counts)) if max(counts) else 0


@few
@given(seed=seeds)
def test_dominant_setting_counts_one_class_per_image(seed: int) -> None:
    images = maps(seed, n=12)
    images[0][0][:] = 0  # nothing but background
    truth = np.array([most(t) for t, _ in images])
    predicted = np.array([most(p[t != VOID]) for t, p in images])
    check_against_sklearn(values(table(images)), truth, predicted, DOMINANT)


def test_dominant_takes_first_of_equal_classes_and_no_void() -> None:
    confusion = np.zeros((3, 4, 4), np.int64)
    confusion[0, 3, 2] = confusion[0, 2, 1] = 5  # labels: 2 and 3 alike; predicted: 1 and 2
    confusion[1, 0, 0] = 9
    results = dominant(confusion)
    assert np.argwhere(results).tolist() == [[0, 2, 1], [1, 0, 0]]
    assert results.sum() == 2


def test_ratios_of_class_without_labels_are_absent() -> None:
    truth = np.array([[0, 1, 3, VOID]], np.int16)
    results = values(table([(truth, np.array([[2, 1, 3, 2]], np.uint8))]))
    for name in ("iou", "precision", "recall", "f1", "accuracy"):
        assert results[of(name, "person")] is None
    assert results[of("iou", "mean")] == 1
    assert results[of("coverage_error", "person", "")] is None
    assert results[of("pixel_accuracy")] == pytest.approx(2 / 3)


def test_ratios_of_missed_class_are_0_without_precision() -> None:
    truth = np.array([[0, 1, 3, 2]], np.int16)
    results = values(table([(truth, np.array([[0, 1, 3, 0]], np.uint8))]))
    assert (results[of("iou", "person")], results[of("precision", "person")]) == (0, None)
    assert results[of("iou", "mean")] == pytest.approx(2 / 3)


@quick
@given(seed=seeds)
def test_coverage_measures_compare_each_image(seed: int) -> None:
    images = maps(seed)
    results = values(table(images))
    for k, cls in enumerate(ALL):
        off = [
            float(np.mean(p[::2, ::2] == k)) - float(np.mean(t[t != VOID] == k)) for t, p in images
        ]
        assert results[of("coverage_error", cls, "")] == pytest.approx(np.mean(np.abs(off)))
        assert results[of("coverage_bias", cls, "")] == pytest.approx(np.mean(off))


def test_counts_without_cells_use_predicted_pixels() -> None:
    images = maps(3)
    without = counts_table([{**row, "cells": None} for row in rows(images)], NAMES)
    (one,) = counts_by_method(without)
    expected = [np.bincount(p[t != VOID], minlength=4) for t, p in images]
    np.testing.assert_array_equal(one.cells, expected)


def test_evaluate_adds_the_majority_class() -> None:
    truth = np.array([[0, 0, 0, 1, 2]], np.int16)
    results = values(table([(truth, truth.astype(np.uint8))]))
    key = replace(of("pixel_accuracy"), method="all background")
    assert results[key] == pytest.approx(0.6)
    assert results[replace(key, name="iou", cls="mean")] == 0


def test_estimates_leak_is_difference_on_same_images() -> None:
    images = maps(1, n=20)
    better = [(t, np.maximum(t, 0).astype(np.uint8)) for t, _ in images]
    counts = counts_table([*rows(images), *rows(better, RANDOM)], NAMES)
    (evaluation,) = evaluate(counts)
    results = {e.key: e for e in estimates(counts, seed=3, draws=100)}
    leak = results[of("leak_iou", "mean", split="random − grouped")]
    honest = evaluation.measures[of("iou", "mean")].value
    assert honest is not None
    assert leak.value == pytest.approx(1 - honest)
    assert leak.low is not None
    assert 0 < leak.low <= 1 - honest
    leak_keys = {(k.name, k.setting, k.method) for k in results if k.name.startswith("leak_")}
    measures = ("leak_iou", "leak_f1", "leak_pixel_accuracy")
    assert leak_keys == {(m, s, SEGREC) for m in measures for s in (PIXELS, DOMINANT)}


def test_estimates_of_other_images_have_no_leak() -> None:
    other = [{**row, "image": f"x{row['image']}"} for row in rows(maps(2), RANDOM)]
    counts = counts_table([*rows(maps(1)), *other], NAMES)
    assert len(evaluate(counts)) == 2
    assert not [e for e in estimates(counts, 0, 10) if e.key.name.startswith("leak_")]


@quick
@given(seed=seeds)
def test_conditions_partition_images(seed: int) -> None:
    (one,) = counts_by_method(table(maps(seed, n=10, classes=[0, 1, 3])))
    results = conditions(one, ALL)
    has = one.labelled > 0
    np.testing.assert_array_equal(sum(results[s].astype(int) for s in SIZES), has)
    np.testing.assert_array_equal(sum(results[b].astype(int) for b in BRIGHTNESS), np.ones((10, 1)))
    share = shares(one.labelled)
    for k in (1, 3):
        small, large = (share[results[s][:, k], k] for s in (SIZES[0], SIZES[2]))
        assert not (len(small) and len(large)) or small.max() < large.min()
    (two,) = results[overlap(2)].T
    assert set((one.labelled[two, 1:] > 0).sum(axis=1)) <= {2}


def test_recall_by_size_and_brightness() -> None:
    images = []
    for size in (1, 2, 3, 20, 21, 22):
        truth = np.zeros((1, 40), np.int16)
        truth[0, :size] = 1
        images.append((truth, (truth * (size > 10)).astype(np.uint8)))
    results = values(table(images))
    assert results[of("recall", "car", "small σ")] == 0
    assert results[of("recall", "car", "large σ")] == 1
    assert results[of("iou", "car", "dark")] == 0
    assert results[of("iou", "car", "bright")] == 1
    assert results[of("iou", "tree", "1 class")] is None


def test_calibration_bins_hold_each_image_once() -> None:
    (one,) = counts_by_method(table(maps(5, n=40)))
    bins = calibration(one, 1)
    ours, labels = shares(one.cells)[:, 1], shares(one.labelled)[:, 1]
    known = (ours > 0) | (labels > 0)
    assert sum(n for *_, n in bins) == known.sum()
    assert [x for x, *_ in bins] == sorted(x for x, *_ in bins)
    assert sum(y * n for _, y, n in bins) == pytest.approx(labels[known].sum())


def test_image_iou_is_mean_over_present_classes() -> None:
    truth = np.array([[1, 1, 0, 0]], np.int16)
    none = np.zeros((1, 4), np.int16)
    (one,) = counts_by_method(table([(truth, np.array([[1, 0, 2, 0]], np.uint8)), (none, none)]))
    np.testing.assert_array_equal(image_iou(one), [0.5, np.nan])
