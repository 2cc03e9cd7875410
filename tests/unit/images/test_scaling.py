"""Tests of the scaling of samples to 8 bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from segrec_batch.common.errors import ImageError
from segrec_batch.images.scaling import Samples, render_rgb
from tests.support.builders import quick

_TYPES = ("u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8")
_FLOATS = {"allow_nan": False, "allow_infinity": False, "width": 16}
grey = st.sampled_from(_TYPES).flatmap(
    lambda kind: hnp.arrays(
        kind, (4, 5, 1), elements=st.floats(**_FLOATS) if kind[0] == "f" else None
    )
)


def _render(samples: NDArray[np.generic], **options: object) -> NDArray[np.uint8]:
    nominal = (0.0, 1.0)
    if samples.dtype.kind != "f":
        nominal = (float(np.iinfo(samples.dtype).min), float(np.iinfo(samples.dtype).max))
    return np.asarray(render_rgb(Samples(samples, nominal, **options)))  # type: ignore[arg-type]


@given(samples=grey)
@quick
def test_scaling_keeps_order_and_spans_black_to_white(
    samples: NDArray[np.generic],
) -> None:
    result = _render(samples)[..., 0].ravel().astype(int)
    values = samples.ravel()
    assert (np.diff(result[np.argsort(values, kind="stable")]) >= 0).all()
    if float(values.min()) < float(values.max()):
        assert (result[values.argmin()], result[values.argmax()]) == (0, 255)
    inverted = _render(samples, white_is_zero=True)[..., 0].ravel().astype(int)
    assert np.abs(255 - inverted - result).max() <= 1


@given(samples=grey, seed=st.integers(0, 99))
@quick
def test_nodata_and_transparent_pixels_influence_no_other(
    samples: NDArray[np.generic], seed: int
) -> None:
    hidden = np.random.default_rng(seed).random((4, 5)) < 0.4
    hidden[0, 0] = False
    nodata = np.array(99, samples.dtype)
    samples = np.where(samples == nodata, np.array(98, samples.dtype), samples)
    seen = samples[~hidden].reshape(1, -1, 1)
    expected = _render(seen).reshape(-1, 3)
    marked = np.where(hidden[..., None], nodata, samples)
    actual = _render(marked, nodata=99)
    np.testing.assert_array_equal(actual[~hidden], expected)
    assert (actual[hidden] == 255).all()
    actual = _render(samples, alpha=~hidden)
    np.testing.assert_array_equal(actual[~hidden], expected)
    assert (actual[hidden] == 255).all()


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_nan_is_white_and_infinity_is_end_of_range(kind: str) -> None:
    samples = np.array([[1, 2, 3, np.nan, np.inf, -np.inf]], kind)[..., None]
    assert _render(samples)[0, :, 0].tolist() == [0, 128, 255, 255, 255, 0]
    inverted = _render(samples, white_is_zero=True)[0, :, 0].tolist()
    assert inverted == [255, 128, 0, 255, 0, 255]


@pytest.mark.parametrize("value", [np.finfo("f4").min, np.finfo("f4").max, -3.4e38])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_the_greatest_float_is_nodata_without_a_tag(kind: str, value: float) -> None:
    samples = np.array([[290, 300, 310, value]], kind)[..., None]
    assert _render(samples)[0, :, 0].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize("kind", ["f4", "u2"])
def test_colours_share_one_range(kind: str) -> None:
    samples = np.array([[[1000, 2000, 3000], [2000, 2000, 2000]]], kind)
    assert _render(samples).tolist() == [[[0, 128, 255], [128, 128, 128]]]


def test_a_sample_without_a_value_does_not_hide_its_pixel() -> None:
    samples = np.array([[[np.nan, 1, 0], [np.nan, np.nan, np.nan]]], "f4")
    assert _render(samples).tolist() == [[[0, 255, 0], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("kind", "value", "grey"),
    [
        ("u2", 65535, 255), ("u2", 0, 0), ("u2", 32896, 128), ("i2", 0, 128), ("f4", 1, 255),
        ("f4", 0.5, 128), ("f4", -7, 0), ("f8", 300, 255),
    ],
)  # fmt: skip
def test_constant_image_keeps_place_in_range_of_type(kind: str, value: float, grey: int) -> None:
    assert (_render(np.full((2, 3, 1), value, kind)) == grey).all()


def test_eight_bits_keep_their_values_also_beside_nodata() -> None:
    samples = np.arange(60, 120, dtype=np.uint8).reshape(6, 10, 1)
    result = _render(samples, stretched=False, nodata=70)
    np.testing.assert_array_equal(result[..., :1], samples)


def test_the_whole_range_of_sixteen_bits_is_divided_by_257() -> None:
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    assert np.abs(_render(samples)[..., :1] - samples / 257).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (np.full((2, 2, 1), np.nan, "f4"), {}),
        (np.full((2, 2, 1), np.inf, "f4"), {}),
        (np.full((2, 2, 1), 7, "u2"), {"nodata": 7}),
        (np.full((2, 2, 1), 7, "u2"), {"nodata": 7, "alpha": np.array([[0, 1], [0, 1]])}),
    ],
)
def test_an_image_without_a_value_is_refused(
    samples: NDArray[np.generic], options: dict[str, object]
) -> None:
    with pytest.raises(ImageError, match="no pixel has a value"):
        _render(samples, **options)


def test_an_image_that_is_all_transparent_is_white() -> None:
    samples = np.arange(4, dtype=np.uint16).reshape(2, 2, 1)
    assert (_render(samples, alpha=np.zeros((2, 2), np.uint8)) == 255).all()


def test_premultiplied_colours_are_divided_by_alpha() -> None:
    samples = np.array([[[1000], [2000], [0]]], np.uint16)
    alpha = np.array([[0.5, 1, 0]], "f4")
    # both visible colours are 2000, so that their place in 0 to 65535 decides; the first half white
    result = _render(samples, alpha=alpha, is_premultiplied=True)[0, :, 0]
    assert result.tolist() == [131, 8, 255]
