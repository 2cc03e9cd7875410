"""Tests of the SVM, logistic regression, random forest and k-NN on shared features."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.segmentation.counts import count_pixels
from segrec_batch.images.decode import shapes_of_size
from segrec_batch.labels.labelled import Classes, LabelledImage, load_classes, pair_images
from segrec_batch.model.backbones import Tap
from segrec_batch.model.spec import Scaling
from segrec_batch.model.torch_engine import FeatureMaps, Normalise
from segrec_batch.training.rivals import classical as scorers
from segrec_batch.training.rivals.classical import (
    ClassicalMethods,
    ClassicalSettings,
    fit_classical,
)
from segrec_batch.training.sampling import Sampling, sample_images
from segrec_batch.training.validation import Components
from tests.support.builders import quality, random_weights, smooth_pixels, void_variants

TAPS = (Tap("conv4_3"), Tap("conv5_3"))
SHAPES = shapes_of_size(128, 16)
SMALL = ClassicalSettings(
    linear_positions=900, trees=10, forest_positions=500, neighbour_positions=500
)
NAMES = ["svm", "logistic regression", "random forest", "k-NN"]


def labelled(scenes: Path) -> tuple[list[LabelledImage], Classes]:
    images = pair_images(str(scenes / "images"), str(scenes / "masks"))
    return images, load_classes(str(scenes / "classes.json"))


def _fit(images: list[LabelledImage], classes: Classes) -> ClassicalMethods:
    weights = random_weights()
    normalise = Normalise(Scaling(True, weights.mean, weights.std))
    maps = FeatureMaps(weights.state, [tap.layer for tap in TAPS], normalise, "cpu")
    samples = sample_images(images, classes, TAPS, SHAPES, maps, Sampling(80), iter)
    return fit_classical(samples, TAPS, maps, SHAPES, classes, SMALL)


@pytest.fixture(scope="module")
def fitted(scenes: Path) -> ClassicalMethods:
    images, classes = labelled(scenes)
    return _fit(images, classes)


def test_classical_methods_beat_majority_class(scenes: Path, fitted: ClassicalMethods) -> None:
    images, classes = labelled(scenes)
    confusion = {name: np.zeros((4, 4), np.int64) for name in NAMES}
    for item in images[::4]:
        image, labels = item.load(classes)
        result = fitted(image)
        assert list(result) == NAMES
        for name, (predicted, cells) in result.items():
            assert predicted.shape == labels.shape
            assert cells is not None
            assert cells.shape == (4,)
            assert cells.sum() == (112 // 16) * (144 // 16), "cells of the stride-16 grid"
            confusion[name] += count_pixels(classes.to_classes(labels), predicted, 4)
    for name, counts in confusion.items():
        accuracy, majority, iou = quality(counts)
        assert accuracy > majority, name
        assert iou > 0.2, name


def test_classical_cells_equal_map_on_grid(fitted: ClassicalMethods) -> None:
    result = fitted(Image.fromarray(smooth_pixels(7, 9)))  # nothing to resize
    for name, (labels, cells) in result.items():
        np.testing.assert_array_equal(np.bincount(labels.ravel(), minlength=4), cells, name)
    assert len({labels.tobytes() for labels, _ in result.values()}) > 1


@pytest.mark.slow
def test_classical_fit_is_reproducible_and_ignores_void(
    scenes: Path, fitted: ClassicalMethods, tmp_path: Path
) -> None:
    images, classes = labelled(scenes)
    variants, classes = void_variants(images[::3], classes, tmp_path)
    first, again = (_fit(variant, classes) for variant in variants)
    image, _ = images[5].load(classes)
    for (name, one), other, before in zip(
        first(image).items(), again(image).values(), fitted(image).values(), strict=True
    ):
        np.testing.assert_array_equal(one.labels, other.labels, name)
        np.testing.assert_array_equal(one.cells, other.cells, name)
        assert (one.labels != before.labels).any(), "another set of known pixels, another method"
    assert first.settings == again.settings
    assert first.settings["k-NN"]["positions"] == SMALL.neighbour_positions


def test_classical_offsets_need_two_groups(scenes: Path) -> None:
    images, classes = labelled(scenes)
    with pytest.raises(InputError, match="at least two groups"):
        _fit([LabelledImage(i.image, i.mask, "one") for i in images[:2]], classes)


CLASSES = Classes({"car": (8, 9), "tree": (2,)})


def _problem() -> tuple[NDArray[np.float16], NDArray[np.int16], Components]:
    rng = np.random.default_rng(0)
    values = rng.choice([0, 2, 5, 8, 9], 1000).astype(np.int16)
    features = (rng.normal(size=(1000, 24)) * rng.uniform(0.1, 9, 24)).astype(np.float16)
    features[np.arange(1000), values] += np.float16(4)
    return features, values, Components.of(values, CLASSES)


def _sums(probabilities: NDArray[np.float64], values: NDArray[np.int16]) -> NDArray[np.float64]:
    sums = np.zeros((len(probabilities), 3))
    for p, value in zip(probabilities.T, values, strict=True):
        sums[:, {8: 1, 9: 1, 2: 2}.get(int(value), 0)] += p
    return sums


def test_forest_scores_sum_component_probabilities() -> None:
    x, values, components = _problem()
    score = scorers.fit_forest(x[:400], components.targets(values[:400]), components, 20, 3, 1)
    oracle = RandomForestClassifier(20, min_samples_leaf=3, random_state=1)
    oracle.fit(x[:400].astype(np.float32), values[:400])
    expected = _sums(oracle.predict_proba(x[400:].astype(np.float32)), oracle.classes_)
    np.testing.assert_allclose(np.exp(score(x[400:])), np.maximum(expected, 1e-3), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 15])
def test_neighbour_scores_sum_component_shares(k: int) -> None:
    x, values, components = _problem()
    score = scorers.fit_neighbours(x[:400], components.targets(values[:400]), components, k)
    oracle = make_pipeline(StandardScaler(), KNeighborsClassifier(k, algorithm="brute"))
    oracle.fit(x[:400].astype(np.float64), values[:400])
    shares = oracle.predict_proba(x[400:].astype(np.float64))
    expected = _sums(shares, oracle.classes_)
    np.testing.assert_allclose(np.exp(score(x[400:])), np.maximum(expected, 1e-3), rtol=1e-5)


def test_scores_of_class_without_positions_are_lowest() -> None:
    x, values, components = _problem()
    x, values = x[values != 2], values[values != 2]
    targets = components.targets(values)
    for score in (
        scorers.fit_linear(x, targets, components, "log_loss", 1.0),
        scorers.fit_forest(x, targets, components, 5, 5, 0),
        scorers.fit_neighbours(x, targets, components, 5),
    ):
        result = score(x)
        assert result.shape == (len(x), 3)
        assert (result.argmax(axis=1) != 2).all()
