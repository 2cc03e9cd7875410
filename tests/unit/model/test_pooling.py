"""Tests of pooling by class and of sign bits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from segrec_batch.model.pooling import (
    centred_unit,
    class_means,
    global_mean,
    random_rotation,
    sign_bits,
)
from tests.support.builders import quick

ROTATION = random_rotation(512)
NO_CENTRE = torch.zeros(512)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _hamming(a: Tensor, b: Tensor) -> NDArray[np.int64]:
    differing = (a ^ b).numpy().view(np.uint8)
    return np.unpackbits(differing, axis=1).sum(axis=1).astype(np.int64)


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4), n_classes=st.integers(1, 5), seed=st.integers(0, 99)
)
@quick
def test_means_per_class_are_those_of_plain_loops(
    shape: tuple[int, int, int, int], n_classes: int, seed: int
) -> None:
    b, _, h, w = shape
    rng = np.random.default_rng(seed)
    maps, labels = _random(*shape, seed=seed), rng.integers(0, n_classes, (b, h, w))
    counts, means = class_means(maps, torch.from_numpy(labels), n_classes)
    for i in range(b):
        for k in range(n_classes):
            cells = [maps[i, :, y, x].numpy() for y, x in np.argwhere(labels[i] == k)]
            expected = np.mean(cells, axis=0) if cells else np.zeros(shape[1])
            assert counts[i, k] == len(cells)
            np.testing.assert_allclose(means[i, k].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (counts.sum(dim=1) == h * w).all()
    whole = (counts[..., None] * means).sum(dim=1) / (h * w)
    torch.testing.assert_close(whole, global_mean(maps), rtol=1e-5, atol=1e-6)


def test_a_class_that_is_absent_has_no_cells_and_a_zero_mean() -> None:
    counts, means = class_means(_random(1, 8, 4, 6), torch.full((1, 4, 6), 2), 4)
    assert counts.tolist() == [[0, 0, 24, 0]]
    assert (means[0, [0, 1, 3]] == 0).all()


def test_bfloat16_maps_are_pooled_in_float32() -> None:
    maps = _random(1, 4, 40, 40).bfloat16()
    counts, means = class_means(maps, torch.zeros(1, 40, 40, dtype=torch.uint8), 1)
    expected = maps.double().mean(dim=(2, 3)).float()
    assert (counts.dtype, means.dtype, global_mean(maps).dtype) == (
        torch.int64, torch.float32, torch.float32,
    )  # fmt: skip
    torch.testing.assert_close(means[:, 0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(global_mean(maps), expected, rtol=1e-5, atol=1e-6)


def test_pearson_is_a_dot_product_of_centred_unit_rows() -> None:
    x = _random(6, 512) + 3
    unit = centred_unit(x)
    np.testing.assert_allclose((unit @ unit.T).numpy(), np.corrcoef(x.numpy()), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1.9108851, 1e-3, 700.7])
def test_a_constant_row_is_centred_to_zero(value: float) -> None:
    assert (centred_unit(torch.full((1, 512), value)) == 0).all()


def test_equal_features_have_equal_sign_bits() -> None:
    x = _random(4, 512)
    alone = [sign_bits(x[i : i + 1], NO_CENTRE, ROTATION) for i in range(4)]
    together = sign_bits(x, NO_CENTRE, ROTATION)
    assert _hamming(torch.cat(alone), together).max() <= 2  # other order of sums
    assert _hamming(together, together.clone()).max() == 0
    assert _hamming(together[:1], together[1:]).min() > 150


@pytest.mark.parametrize(("scale", "shift"), [(4.0, 0.0), (0.3, 0.0), (1.0, 2.0), (7.0, -1.0)])
def test_sign_bits_share_pearsons_invariances(scale: float, shift: float) -> None:
    x = _random(20, 512)
    bits = sign_bits(x, NO_CENTRE, ROTATION)
    distance = _hamming(bits, sign_bits(scale * x + shift, NO_CENTRE, ROTATION))
    assert distance.max() <= 1, "more than rounding at the threshold"


def test_hamming_distance_falls_as_pearson_rises() -> None:
    rng = np.random.default_rng(0)
    share = rng.uniform(0, 1, (300, 1))
    a, b = rng.random((300, 512)), rng.random((300, 512))
    x, y = a, share * a + (1 - share) * b
    centre = torch.from_numpy(rng.normal(0, 0.002, 512)).float()
    pearson = np.array([np.corrcoef(p, q)[0, 1] for p, q in zip(x, y, strict=True)])
    bits = [sign_bits(torch.from_numpy(v).float(), centre, ROTATION) for v in (x, y)]
    distance = _hamming(*bits)
    ranks = [np.argsort(np.argsort(v)) for v in (pearson, distance)]
    assert np.corrcoef(*ranks)[0, 1] < -0.98
    expected = 512 * np.arccos(pearson) / np.pi  # random hyperplanes: the angle's share of bits
    assert np.abs(distance - expected).mean() < 15


def test_bits_are_packed_lowest_first() -> None:
    features, centre = _random(9, 512), _random(512, seed=1) * 0.01
    signs = ((centred_unit(features) - centre) @ ROTATION > 0).numpy()
    assert 0.3 < signs.mean() < 0.7
    assert signs[:, 63::64].any(), "the sign bit of a word is used"
    expected = np.packbits(signs, axis=1, bitorder="little").view("<i8")
    actual = sign_bits(features, centre, ROTATION)
    assert (actual.shape, actual.dtype) == ((9, 8), torch.int64)
    np.testing.assert_array_equal(actual.numpy(), expected)


def test_random_rotation_is_orthogonal_and_repeatable() -> None:
    torch.testing.assert_close(ROTATION @ ROTATION.T, torch.eye(512), rtol=0, atol=1e-5)
    before = torch.get_rng_state()
    assert torch.equal(random_rotation(512), ROTATION)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(random_rotation(512, seed=1), ROTATION, atol=0.1)
    assert ROTATION.abs().max() < 0.5
    assert (ROTATION.dtype, ROTATION.is_contiguous()) == (torch.float32, True)
