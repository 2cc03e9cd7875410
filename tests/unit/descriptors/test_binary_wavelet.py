"""Tests of the binary wavelet transform."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from segrec_batch.descriptors.operators.binary_wavelet import (
    PLANES,
    SubBands,
    inverse,
    plane_states,
    transform,
    wavelet_histograms,
)
from tests.support.builders import quick
from tests.support.texture_formulas import slow_histograms

Bits = NDArray[np.uint8]

images = arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9))
few = settings(quick, max_examples=60)


@few
@given(images)
def test_inverse_restores_image(bits: Bits) -> None:
    assert (inverse(transform(bits)) == bits).all()


@few
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_any_sub_bands_have_an_inverse(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    given_bands = rng.integers(0, 256, (4, 2, height, width)).astype(np.uint8)
    result = transform(inverse(SubBands(*given_bands)))
    assert all((ours == theirs).all() for ours, theirs in zip(result, given_bands, strict=True))


@few
@given(images)
def test_transform_treats_planes_independently(bits: Bits) -> None:
    whole = transform(bits)
    for plane in PLANES:
        for ours, theirs in zip(whole, transform(bits & plane), strict=True):
            assert (ours & plane == theirs).all()


@pytest.mark.parametrize("shape", [(8, 8), (9, 14), (16, 11)])
def test_wavelet_histograms_equal_formula(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, *shape)).astype(np.uint8)
    image &= np.random.default_rng(1).choice([7, 56, 192, 255], image.shape).astype(np.uint8)
    result = wavelet_histograms(image)
    assert result.shape == (1, 3, 4, 8)
    assert result.size == 96
    assert result[0].reshape(12, 8) == pytest.approx(np.array(slow_histograms(image[0].tolist())))


def test_high_pass_of_constant_image_is_empty() -> None:
    result = wavelet_histograms(np.full((1, 16, 16), 200, np.uint8))  # 0b11_001_000
    assert (result[0, :, 0, 0b110] == 1).all()
    assert (result[0, :, 1:, 0] == 1).all()


def test_stripes_appear_along_one_axis() -> None:
    rows = np.broadcast_to(np.arange(16)[:, None] % 2 * 255, (1, 16, 16)).astype(np.uint8)
    bands = transform(rows)
    assert (plane_states(bands.hl) == 7).all()
    assert not bands.lh.any()
    assert not bands.hh.any()
