"""Tests of the localised descriptor."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Parameters, localised, resnet50
from segrec_batch.descriptors.operators.networks import as_images
from segrec_batch.training.categories import fit_categories
from tests.support.builders import noise_pixels, quick, smooth_batch
from tests.support.described import CLASSES, Learned, images_of, random_network, some_images

LABELS = arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 0, 1, 3]))


@cache
def by_class(grey: bool = True) -> localised.Descriptor:
    """On the random network that the tests share."""
    return descriptor(grey, "class", Learned())


def by_folder(features: NDArray[np.float32], folders: list[str]) -> localised.Descriptor:
    return descriptor(True, "folder", Learned(features, folders))


def descriptor(grey: bool, category: str, samples: Learned) -> localised.Descriptor:
    result, tensors = localised._fit_categories(category, samples)
    network = random_network("resnet50")
    settings = {**network.settings, "grey": grey, **result}
    return localised.Descriptor(
        Parameters(settings, {**network.tensors, **tensors}), len(CLASSES), "cpu"
    )


@given(labels=LABELS, seed=st.integers(0, 99))
@quick
def test_paint_background_white_keeps_foreground(labels: NDArray[np.uint8], seed: int) -> None:
    pixels = noise_pixels(8, 5, seed).reshape(2, 4, 5, 3)
    expected = pixels.copy()
    for i, y, x in np.ndindex(labels.shape):
        if labels[i].any() and not labels[i, y, x]:
            expected[i, y, x] = 255
    actual = localised.paint_background_white(as_images(pixels, "cpu"), torch.from_numpy(labels))
    torch.testing.assert_close(actual, as_images(expected, "cpu"), rtol=0, atol=0)


@given(labels=LABELS, seed=st.integers(0, 99))
@quick
def test_paint_ignores_background_content(labels: NDArray[np.uint8], seed: int) -> None:
    labels[:, 0, 0] = 1
    pixels, other = (noise_pixels(8, 5, s).reshape(2, 4, 5, 3) for s in (seed, seed + 100))
    changed = np.where(labels[..., None] == 0, other, pixels)
    one, two = (localised.paint_background_white(as_images(p, "cpu"), torch.from_numpy(labels))
                for p in (pixels, changed))  # fmt: skip
    assert torch.equal(one, two)


@pytest.mark.parametrize("grey", [True, False])
def test_vector_is_independent_of_background(grey: bool) -> None:
    described, images = by_class(grey), some_images(2)
    elsewhere = smooth_batch(2, 80, 112, seed=7)
    outside = images.labels[..., None] == 0
    background = replace(images, pixels=np.where(outside, elsewhere, images.pixels))
    foreground = replace(images, pixels=np.where(outside, images.pixels, elsewhere))
    vectors = described(images).vectors
    np.testing.assert_array_equal(described(background).vectors, vectors)
    apart = np.abs(described(foreground).vectors - vectors).max(axis=1)
    assert (apart > 1e-3 * vectors.max()).all(), "the foreground does matter"


def test_vector_equals_resnet50_of_painted_image() -> None:
    images = some_images(2)
    whole = resnet50.Descriptor(random_network("resnet50"), len(CLASSES), "cpu")
    white = np.where(images.labels[..., None] == 0, np.uint8(255), images.pixels)
    expected = whole(replace(images, pixels=white)).vectors
    actual = by_class(grey=False)(images)
    np.testing.assert_array_equal(actual.vectors, expected)
    assert (actual.vectors.shape, actual.categories) == ((2, 2048), ["car", "car"])


def test_image_without_foreground_is_used_whole() -> None:
    images = some_images(2)
    empty = images_of(images.pixels, np.zeros_like(images.labels))
    whole = resnet50.Descriptor(random_network("resnet50"), len(CLASSES), "cpu")
    result = by_class(grey=False)(empty)
    np.testing.assert_array_equal(result.vectors, whole(images).vectors)
    assert result.categories == ["background", "background"]


def test_to_grey_equals_pillow() -> None:
    pixels = smooth_batch(1, 30, 40)
    result = localised.to_grey(as_images(pixels, "cpu"))
    pillow = np.asarray(Image.fromarray(pixels[0]).convert("L")) / 255
    for channel in result[0]:
        np.testing.assert_allclose(channel, pillow, atol=0.5 / 255 + 1e-3)
    images = some_images(1)
    luma = localised.to_grey(as_images(images.pixels, "cpu")).permute(0, 2, 3, 1) * 255
    without = replace(images, pixels=luma.round().to(torch.uint8).numpy())
    for grey, same in ((True, True), (False, False)):
        vectors = [by_class(grey)(p).vectors for p in (images, without)]
        apart = np.abs(vectors[0] - vectors[1]).max() / vectors[0].max()
        assert (apart < 2e-3) == same


@given(counts=arrays(np.int64, (3, 4), elements=st.integers(0, 3)))
@quick
def test_dominant_classes_breaks_ties(counts: NDArray[np.int64]) -> None:
    expected = [
        max(range(1, 4), key=lambda k: (row[k], -k)) if row[1:].any() else 0 for row in counts
    ]
    assert localised.dominant_classes(counts).tolist() == expected


def places(n: int, folders: int, seed: int = 0) -> tuple[NDArray[np.float32], list[str]]:
    """Features of images in folders that differ, and the folders."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, folders, n)
    centres = np.random.default_rng(9).normal(size=(folders, 16)) * np.linspace(0.1, 30, 16)
    spread = rng.normal(size=(n, 16)) * np.linspace(0.1, 30, 16)
    features = (centres[group] + 0.5 * spread + 100).astype(np.float32)
    features[:, 3] = 7  # a channel that says nothing
    return features, [f"place {k}" for k in group]


@pytest.mark.parametrize("folders", [2, 5])
def test_fit_categories_predicts_folders(folders: int) -> None:
    features, names = places(200, folders)
    new, expected = places(60, folders, seed=1)
    described = by_folder(features, names)
    actual = described._names(images_of(*_blank(len(new)), new))
    assert np.mean(np.array(actual) == expected) > 0.9
    fitted = fit_categories(features, names)
    assert fitted.names == tuple(f"place {k}" for k in range(folders))
    assert fitted.accuracy is not None
    assert 0.9 < fitted.accuracy <= 1
    unrelated = fit_categories(features, list(np.random.default_rng(0).permutation(names)))
    assert unrelated.accuracy is not None
    assert unrelated.accuracy < 0.7, "cross-validation does not believe what was learned by heart"


def _blank(n: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return np.zeros((n, 1, 1, 3), np.uint8), np.zeros((n, 1, 1), np.uint8)


def test_category_folder_is_part_of_description() -> None:
    features, names = places(80, 3)
    images = replace(some_images(2), feature=features[:2])
    result = by_folder(features, names)(images)
    assert result.categories == names[:2]
    np.testing.assert_array_equal(result.vectors, by_class()(images).vectors)


def test_fit_categories_with_few_images() -> None:
    features, _ = places(7, 2)
    one_each = fit_categories(features, list("abcdefg"))
    assert (len(one_each.names), one_each.accuracy) == (7, None)
    paired = fit_categories(features, list("aabbbcd"))
    assert paired.accuracy is not None
    with pytest.raises(InputError, match="all 7 images are in 'a'; use category=class"):
        fit_categories(features, ["a"] * 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grey": "maybe"}, "grey=maybe; known are yes and no"),
        ({"category": "place"}, "category=place; known are class and folder"),
        ({"gray": "no"}, "unknown argument 'gray'; known are weights, grey, category"),
    ],
)
def test_fit_rejects_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        localised.fit(arguments, Learned())


def test_settings_record_the_fit() -> None:
    features, names = places(40, 2)
    result = localised.fit(
        {"weights": "random:0", "grey": "no", "category": "folder"}, Learned(features, names)
    )
    assert result.settings == {
        "weights": "random:0", "grey": False,
        "category": "folder", "categories": ["place 0", "place 1"], "accuracy": 1.0,
    }  # fmt: skip
    assert result.tensors["categories.weights"].shape == (2, 16)
    assert result.tensors.keys() - {"categories.weights", "categories.bias"} == (
        random_network("resnet50").tensors.keys()
    )
