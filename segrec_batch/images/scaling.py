"""Conversion of samples of any type to 8-bit RGB, by one rule for every format.

Samples of up to 8 bits keep their values. Samples of more bits are *stretched* linearly: the
smallest becomes 0 and the largest 255, among samples that are finite, not nodata and not fully
transparent. All channels share one range, so hues do not change. An image that uses the whole range
of its type keeps its values (16 bits: x / 257). The model stretches every image in the same way, so
the rule only determines the number of grey levels. If all values are equal, the nominal range of
the type applies: white remains white.

Pixels that are transparent, NaN or nodata become white; ±inf become the ends of the range.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.common.errors import ImageError

NODATA_MAGNITUDE = 3.39e38
"""Magnitude from which floats are nodata without a tag: programs write float32's maximum."""

_BAND = 2**19  # samples converted at once, to save memory: float64


@dataclass(frozen=True)
class Samples:
    """The samples of an image as stored in its file.

    Attributes:
        colours: Grey (h, w, 1) or RGB (h, w, 3), of any real dtype.
        nominal: The values of black and white that the file defines.
        stretched: Scale the range in use, not the nominal one, to 0 to 255.
        alpha: (h, w), or None if every pixel is opaque.
        opaque: The value of `alpha` for opaque pixels.
        is_premultiplied: `colours` are multiplied by alpha.
        white_is_zero: Small values are bright.
        nodata: The value that marks missing samples, or None.
    """

    colours: NDArray[Any]
    nominal: tuple[float, float]
    stretched: bool = True
    alpha: NDArray[Any] | None = None
    opaque: float = 1.0
    is_premultiplied: bool = False
    white_is_zero: bool = False
    nodata: float | None = None


def render_rgb(samples: Samples) -> Image.Image:
    """Return the samples as an RGB image.

    Raises:
        ImageError: No pixel has a finite value.
    """
    low, high = _range(samples) if samples.stretched else samples.nominal
    if not low < high:
        low, high = samples.nominal
    out: NDArray[np.uint8] = np.empty(samples.colours.shape, np.uint8)
    for rows in _bands(samples):
        values, alpha, missing = _band(samples, rows)
        with np.errstate(invalid="ignore"):
            shares = np.clip((values - low) / (high - low), 0, 1)
        if samples.white_is_zero:
            shares = 1 - shares
        if samples.alpha is not None or missing.any():
            shares[missing] = 0
            cover = ~missing.all(axis=-1, keepdims=True) * alpha
            shares = shares * cover + 1 - cover
        out[rows] = np.rint(255 * shares)
    if samples.colours.shape[2] == 1:
        return Image.fromarray(out[..., 0]).convert("RGB")
    return Image.fromarray(out)


def _range(samples: Samples) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    transparent = 0
    for rows in _bands(samples):
        values, alpha, missing = _band(samples, rows)
        visible = values[~missing & (alpha > 0) & np.isfinite(values)]
        transparent += int((alpha == 0).sum())
        if visible.size:
            low, high = min(low, float(visible.min())), max(high, float(visible.max()))
    height, width, _ = samples.colours.shape
    if low > high and transparent < height * width:
        raise ImageError("decode", "no pixel has a value: all are NaN, infinite or nodata")
    return low, high


def _bands(samples: Samples) -> Iterator[slice]:
    height, width, channels = samples.colours.shape
    step = max(1, _BAND // (width * channels))
    return (slice(top, top + step) for top in range(0, height, step))


def _band(samples: Samples, rows: slice) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Return values (n, w, c), alpha from 0 to 1 (n, w, 1), and a map of missing values."""
    native = samples.colours[rows]
    values = native.astype(np.float32 if native.itemsize <= 2 else np.float64)
    missing = np.zeros(native.shape, np.bool_)
    if samples.stretched and native.dtype.kind == "f":
        missing = np.isnan(values) | (np.abs(values) >= NODATA_MAGNITUDE) & np.isfinite(values)
    if samples.stretched and samples.nodata is not None:
        with np.errstate(over="ignore"):
            missing |= native == np.asarray(samples.nodata).astype(native.dtype)
    alpha = np.ones((*native.shape[:2], 1), values.dtype)
    if samples.alpha is not None:
        share = samples.alpha[rows, :, None].astype(values.dtype) / samples.opaque
        alpha = np.clip(np.nan_to_num(share, nan=0.0), 0, 1)
    if samples.is_premultiplied:
        values = np.divide(values, alpha, out=np.zeros_like(values), where=alpha > 0)
    return values, alpha, missing
