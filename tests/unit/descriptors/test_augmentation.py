"""Tests of augmentation against a loop over images, and of its reference set."""

import numpy as np
import pytest
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError, ModelError
from segrec_batch.descriptors import Parameters, root_pca
from segrec_batch.descriptors.operators import augmentation
from tests.support.described import Learned
from tests.support.rooted import Rows, augmented, described, features, fitted, projections


def plain(parameters: Parameters, x: NDArray[np.float32]) -> Rows:
    """Return the vectors of the same projection without augmentation."""
    settings = {k: v for k, v in parameters.settings.items() if k != "augment"}
    return described(Parameters(settings, parameters.tensors), x).astype(np.float64)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("n", [5, 60])  # fewer images than neighbours, and more
def test_vectors_equal_a_loop_over_images(rounds: int, n: int) -> None:
    x, new = features(n), features(9, seed=1)
    parameters = fitted(x, dimension=4, augment=rounds)
    reference = parameters.tensors["reference.0"].astype(np.float64)
    np.testing.assert_allclose(reference, plain(parameters, x), atol=1e-3)  # it is float16
    for images in (x, new):
        vectors = described(parameters, images)
        loop = augmented(reference, plain(parameters, images), rounds)
        np.testing.assert_allclose(vectors, loop, atol=2e-3)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.abs(described(parameters, x) - reference).max() > 0.05


def test_projection_is_that_without_augmentation() -> None:
    x, new = features(), features(9, seed=1)
    vectors = plain(fitted(x, dimension=4, augment=1), new)
    np.testing.assert_array_equal(vectors, described(fitted(x, dimension=4), new))
    np.testing.assert_allclose(np.abs(vectors), np.abs(projections(x, new, 4)), atol=1e-5)


def test_vector_depends_on_image_and_bundle_alone() -> None:
    x = features(300)
    parameters = fitted(x, dimension=6, augment=2)
    whole = described(parameters, x)
    alone = np.concatenate([described(parameters, row[None]) for row in x[:20]])
    np.testing.assert_allclose(alone, whole[:20], atol=1e-6)
    back = described(parameters, x[::-1])[::-1]
    np.testing.assert_allclose(back, whole, atol=1e-6)


def test_copies_in_the_reference_set_do_not_count() -> None:
    x = features(40)
    parameters = fitted(x, dimension=4, augment=2)
    first = parameters.tensors["reference.0"][:1]
    doubled = dict(parameters.tensors)
    for name in ("reference.0", "reference.1"):
        rows = parameters.tensors[name]
        doubled[name] = np.concatenate([rows[:1], rows[:1], rows])
    again = described(Parameters(parameters.settings, doubled), x[:1])
    np.testing.assert_allclose(again, described(parameters, x[:1]), atol=1e-6)
    assert (first @ plain(parameters, x[:1]).T).item() >= augmentation.COPY


def test_tiles_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(50)
    parameters = fitted(x, dimension=4, augment=2)
    whole = described(parameters, x)
    monkeypatch.setattr(augmentation, "_TILE", 7)
    monkeypatch.setattr(augmentation, "_BATCH", 3)
    np.testing.assert_allclose(described(parameters, x), whole, atol=1e-6)


def test_dissimilar_vectors_have_no_part() -> None:
    x = np.array([[1.0, 0]])
    reference = np.array([[-1, 0], [0, 1], [-0.6, 0.8]], np.float16)
    np.testing.assert_array_equal(augmentation.augment(x, [reference, reference]), x)


def test_undefined_vector_stays_undefined() -> None:
    rows = np.array([[np.nan, np.nan], [1, 0]])
    result = augmentation.augment(rows, [np.array([[0.6, 0.8]], np.float16)])
    assert np.isnan(result[0]).all()
    loop = np.array([1, 0]) + 0.6**3 * np.array([0.6, 0.8])
    np.testing.assert_allclose(result[1], loop / np.linalg.norm(loop), atol=1e-3)


def test_reference_is_bounded_and_float16() -> None:
    x = features(60)
    parameters = fitted(x, dimension=4, augment=2, reference=16)
    for name in ("reference.0", "reference.1"):
        assert parameters.tensors[name].shape == (16, 4)
        assert parameters.tensors[name].dtype == np.float16
    assert parameters.tensors["reference.hashes"].shape == (16, 16)
    vectors = described(parameters, x)
    reference = parameters.tensors["reference.0"].astype(np.float64)
    np.testing.assert_allclose(reference, plain(parameters, x[:16]), atol=1e-3)
    loop = augmented(reference, plain(parameters, x), 2)
    np.testing.assert_allclose(vectors, loop, atol=2e-3)


@pytest.mark.parametrize("damage", ["shape", "dtype", "rows"])
def test_damaged_reference_set_is_an_error(damage: str) -> None:
    parameters = fitted(features(), dimension=4, augment=2)
    whole = parameters.tensors["reference.1"]
    broken = {"shape": whole[:, :3], "dtype": whole.astype(np.float32), "rows": whole[:-1]}
    tensors = {**parameters.tensors, "reference.1": broken[damage]}
    with pytest.raises(ModelError, match="damaged reference set: add it again"):
        root_pca.Descriptor(Parameters(parameters.settings, tensors), 4, "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augment": "3"}, "augment=3; the rounds are 0, 1 or 2"),
        ({"augment": "yes"}, "augment=yes; the rounds are 0, 1 or 2"),
        ({"augment": "1", "reference": "0"}, "reference=0 is not a whole number of 1 or more"),
        ({"reference": "10"}, "reference=… is for augment=1 or augment=2"),
    ],
)
def test_fit_rejects_bad_arguments(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        root_pca.fit({"dimension": "4", **arguments}, Learned(features()))
