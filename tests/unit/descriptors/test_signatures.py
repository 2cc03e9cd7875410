"""Tests of semantic signatures."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from segrec_batch import descriptors
from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Described, Descriptor, ImageBatch, Parameters
from segrec_batch.descriptors.operators import keypoints
from segrec_batch.descriptors.operators.keypoints import Local
from segrec_batch.descriptors.operators.signature import centres, signatures
from segrec_batch.sample_data import render_scene
from tests.support.builders import Pixels, quick

LOCAL = ("sift", "kaze", "orb", "hog")
LENGTHS = {"sift": 128, "kaze": 64, "orb": 256, "hog": 36, "signature": 512}
SIZE = 128
SCENES = [render_scene(place, 0, seed=0, size=(SIZE, SIZE)) for place in (1, 2, 3)]
PIXELS = np.stack([scene.image for scene in SCENES])
LABELS = np.stack([scene.mask for scene in SCENES])


class NoSamples:
    """Of descriptors that have nothing to learn."""

    feature_length = LENGTHS["signature"]

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"samples.{name} is not needed")


def images(pixels: Pixels, labels: Pixels, seed: int = 0) -> ImageBatch:
    n, k = len(pixels), 4
    counts = np.array([np.bincount(map_.ravel(), minlength=k) for map_ in labels])
    features = np.random.default_rng(seed).random((n, k, 512), dtype=np.float32)
    features[counts == 0] = 0
    return ImageBatch(pixels, labels, features.mean(axis=1), features, counts)


def descriptor(name: str, **arguments: str) -> Descriptor:
    module = descriptors.module(name)
    made: Descriptor = module.Descriptor(module.fit(arguments, NoSamples()), 4, "cpu")
    return made


def algorithm_1(local: Local, segmented: Pixels, classes: int) -> NDArray[np.float64]:
    """Ouni 2020, line by line."""
    signature = []
    for i in range(classes):
        if i in segmented:
            sg = [
                local.vectors[j]
                for j in range(len(local.vectors))
                if segmented[local.rows[j], local.columns[j]] == i
            ]
            svw = k_means_of_one(np.array(sg)) if sg else np.zeros(local.vectors.shape[1])
        else:
            svw = np.zeros(local.vectors.shape[1])
        signature.append(svw)
    return np.array(signature)


def k_means_of_one(points: NDArray[np.float32]) -> NDArray[np.float64]:
    fitted = KMeans(1, n_init=1, random_state=0).fit(points.astype(np.float64))
    return np.asarray(fitted.cluster_centers_[0])


@pytest.mark.parametrize("name", LOCAL)
def test_signatures_equal_algorithm_1(name: str) -> None:
    extract = descriptor(name)._extract  # type: ignore[attr-defined]
    actual = descriptor(name)(images(PIXELS, LABELS)).vectors
    assert actual.dtype == np.float32
    for i in range(len(PIXELS)):
        expected = algorithm_1(extract(PIXELS[i]), LABELS[i], 4)
        np.testing.assert_allclose(actual[i], expected.ravel(), rtol=1e-5, atol=1e-5)
    assert (actual != 0).any(axis=1).all()


def test_centres_equal_opencv_kmeans() -> None:
    points = np.random.default_rng(0).integers(0, 256, (40, 128)).astype(np.float32)
    place = np.zeros(40, np.int64)
    (actual,) = centres(Local(place, place, points), np.zeros((1, 1), np.uint8), 1)
    until = (cv2.TERM_CRITERIA_MAX_ITER, 10, 0.0)
    labels = np.zeros((0, 1), np.int32)
    _, _, expected = cv2.kmeans(points, 1, labels, until, 1, cv2.KMEANS_RANDOM_CENTERS)
    np.testing.assert_allclose(actual, expected[0], rtol=1e-5)


@given(
    n=st.integers(0, 30), dim=st.integers(1, 9), classes=st.integers(1, 6), seed=st.integers(0, 99)
)
@quick
def test_centres_are_means_by_class(n: int, dim: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (5, 7), dtype=np.uint8)
    local = Local(
        rng.integers(0, 5, n), rng.integers(0, 7, n), rng.normal(size=(n, dim)).astype(np.float32)
    )
    actual = centres(local, labels, classes)
    assert (actual.shape, actual.dtype) == ((classes, dim), np.float32)
    of = labels[local.rows, local.columns]
    for k in range(classes):
        members = local.vectors[of == k]
        expected = members.mean(axis=0) if len(members) else np.zeros(dim)
        np.testing.assert_allclose(actual[k], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOCAL)
def test_class_order_permutes_blocks(name: str) -> None:
    describe, order = descriptor(name), np.array([2, 3, 1, 0], np.uint8)
    result = describe(images(PIXELS, LABELS)).vectors.reshape(3, 4, -1)
    renamed = describe(images(PIXELS, order[LABELS])).vectors.reshape(3, 4, -1)
    np.testing.assert_array_equal(renamed[:, order], result)
    assert not np.array_equal(renamed, result)


def far(a: Described, b: Described) -> Iterator[float]:
    """Of each image the distance of two vectors, over the length of the first."""
    for x, y in zip(a.vectors, b.vectors, strict=True):
        yield float(np.linalg.norm(x - y) / np.linalg.norm(x))


def turned(quarters: int) -> ImageBatch:
    return images(*(np.rot90(a, quarters, axes=(1, 2)).copy() for a in (PIXELS, LABELS)))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_signatures_under_rotation(
    quarters: int,
) -> None:
    limits = {"sift": 0.15, "kaze": 0.3, "orb": 0.1}
    for name, limit in limits.items():
        describe = descriptor(name)
        before = describe(turned(0))
        others = Described(np.roll(before.vectors, 1, axis=0))
        assert max(far(before, describe(turned(quarters)))) < limit < min(far(before, others)) / 2
    if quarters != 2:  # half a turn leaves unsigned orientations as they are
        sift, hog = (
            sum(far(describe(turned(0)), describe(turned(quarters))))
            for describe in (descriptor("sift"), descriptor("hog"))
        )
        assert hog > 3 * sift


@pytest.mark.parametrize("name", LOCAL)
def test_signatures_under_brightness(name: str) -> None:
    describe, dim = descriptor(name), PIXELS // 2 + 20
    distance = far(*(describe(images(p.astype(np.uint8), LABELS)) for p in (dim, dim + 60)))
    assert max(distance) < 0.05


@pytest.mark.parametrize("name", LENGTHS)
def test_signatures_are_independent_of_batch(name: str) -> None:
    describe, batch = descriptor(name), images(PIXELS, LABELS)
    result = describe(batch)
    assert result.categories is None
    assert result.vectors.shape == (3, describe.length)
    assert describe.length == 4 * LENGTHS[name]
    for i in (2, 0):
        alone = ImageBatch(*(getattr(batch, f)[i : i + 1] for f in ImageBatch.__dataclass_fields__))
        np.testing.assert_array_equal(describe(alone).vectors[0], result.vectors[i])


@pytest.mark.parametrize("name", LENGTHS)
def test_signature_without_keypoints_is_zero(name: str) -> None:
    describe = descriptor(name)
    plain = images(np.full_like(PIXELS, 200), np.full_like(LABELS, 2))
    result = describe(plain).vectors.reshape(3, 4, -1)
    assert (result[:, [0, 1, 3]] == 0).all()
    assert (result[:, 2] == 0).all() == (name != "signature")


def test_deep_signature_is_region_features() -> None:
    batch = images(PIXELS, LABELS)
    empty = np.zeros((3, 0, 0), np.uint8)
    blind = ImageBatch(empty[..., None], empty, batch.feature, batch.region_features, batch.counts)
    describe = descriptor("signature")
    assert not describe.reads_pixels
    result = describe(blind).vectors
    for k in range(4):
        np.testing.assert_array_equal(
            result[:, k * 512 : (k + 1) * 512], batch.region_features[:, k]
        )


def test_settings_are_applied() -> None:
    few, many = (descriptor("sift", keypoints=n)(images(PIXELS, LABELS)) for n in ("5", "500"))
    assert (few.vectors != 0).sum() < (many.vectors != 0).sum()
    assert descriptor("hog", cell="16", block="1", bins="12").length == 4 * 12
    fitted = descriptors.module("hog").fit({"bins": "12"}, NoSamples())
    assert fitted == Parameters({"cell": 8, "block": 2, "bins": 12})


@pytest.mark.parametrize("name", [*LENGTHS, "bovw", "vlad"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", ""])
def test_fit_rejects_bad_settings(name: str, value: str) -> None:
    fit = descriptors.module(name).fit
    with pytest.raises(InputError, match="unknown argument 'colour'"):
        fit({"colour": value}, NoSamples())
    if name != "signature":
        setting = "cell" if name == "hog" else "keypoints"
        with pytest.raises(
            InputError, match=f"{setting}={value} is not a whole number of 1 or more"
        ):
            fit({setting: value}, NoSamples())


def test_empty_batch_has_no_vectors() -> None:
    result = signatures(keypoints.orb(10), PIXELS[:0], LABELS[:0], 4)
    assert result.shape == (0, 4 * 256)
