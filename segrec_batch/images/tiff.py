"""Reading of TIFF as RGB, with layouts that Pillow reads wrong or not at all.

Photometric × bits × kind × extra samples; strips or tiles, chunky or planar, either byte order,
either fill order, with or without predictor:

    grey, black or white is zero    1, 2, 4, 8 bits unsigned         Pillow
    RGB                             8 bits unsigned                  Pillow
    grey or RGB + 1 extra sample    8 bits unsigned, chunky          Pillow
    palette                         1, 2, 4, 8 bits                  Pillow
    CMYK                            8 bits unsigned                  Pillow
    CIE L*a*b*, YCbCr               8 bits unsigned, chunky, and     Pillow
                                    not subsampled if uncompressed
    grey, grey + alpha, RGB,        1 to 16, 32, 64 bits unsigned;   here, of the compressions
    RGB + alpha                     8 to 64 bits signed;             none, LZW, PackBits, Deflate,
                                    16, 32, 64 bits float            LZMA, Zstandard
    palette, palette + alpha        up to 16 bits                    likewise
    CMYK                            8 to 16 bits unsigned            likewise
    anything else                   refused by its name

This module also reads Pillow's layouts from a big-endian BigTIFF, and from uncompressed bytes with
reversed bits: Pillow does not open all of these.

Extra samples other than alpha have no known meaning: those of RGB and CMYK, and a single one of
grey, are ignored. Grey with more extra samples is refused.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.images.scaling import Samples, render_rgb
from segrec_batch.images.tiff_layout import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    CIELAB,
    CMYK,
    PALETTE,
    RGB,
    UNASSOCIATED,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    YCBCR,
    Layout,
)
from segrec_batch.images.tiff_segments import COMPRESSIONS, NONE, can_read_samples, read_samples

_NONE: tuple[tuple[int, ...], ...] = ((),)
_OTHER = ((), (UNSPECIFIED,), (UNASSOCIATED,))
# for unsigned samples: photometric → bits → kinds of extra samples
_PILLOWS: dict[int, dict[int, tuple[tuple[int, ...], ...]]] = {
    WHITE_IS_ZERO: {1: _NONE, 2: _NONE, 4: _NONE, 8: _NONE},
    BLACK_IS_ZERO: {1: _NONE, 2: _NONE, 4: _NONE, 8: _OTHER},
    RGB: {8: (*_OTHER, (ASSOCIATED,))},
    PALETTE: {1: _NONE, 2: _NONE, 4: _NONE, 8: _NONE},
    CMYK: {8: _NONE},
    YCBCR: {8: _NONE},
    CIELAB: {8: _NONE},
}
_BAND = 2**20


def is_pillows(layout: Layout) -> bool:
    """Return whether Pillow reads the layout correctly."""
    extras = _PILLOWS.get(layout.photometric, {}).get(layout.bits, ())
    if layout.kind != "unsigned" or layout.extras not in extras:
        return False
    if layout.is_big_tiff and not layout.is_little_endian:
        return False
    if layout.fill_order == 2 and layout.compression == NONE:
        return False
    if layout.is_planar:
        return layout.photometric in (RGB, CMYK) and not layout.extras
    is_subsampled = layout.photometric == YCBCR and layout.subsampling != (1, 1)
    return not is_subsampled or layout.compression != NONE  # only libtiff undoes subsampling


def correct_palette(image: Image.Image, layout: Layout) -> None:
    """Correct the palette of an opened image whose colour map ends at 255, not 65535."""
    if layout.photometric == PALETTE and max(layout.colour_map, default=256) < 256:
        image.putpalette(_palette(layout).astype(np.uint8).tobytes())


def open_here(data: bytes, layout: Layout) -> Image.Image:
    """Read a TIFF for which `is_pillows` is false as RGB, without applying its orientation.

    Raises:
        ImageError: The layout is not supported, or the content is broken.
    """
    known = _has_meaning(layout) and can_read_samples(layout)
    if not (known and layout.compression in COMPRESSIONS):
        layout.refuse()
    kept = layout.colours if layout.alpha is None else layout.alpha + 1
    samples = read_samples(data, layout, kept)
    colours = samples[..., : layout.colours]
    alpha = None if layout.alpha is None else samples[..., layout.alpha]
    low, high = _nominal(layout)
    stretched = layout.bits > 8
    if layout.photometric == PALETTE:
        colours, (low, high), stretched = _through_palette(colours, layout), (0, 255), False
    elif layout.photometric == CMYK:
        colours = _without_ink(colours, int(high))
    return render_rgb(
        Samples(
            colours,
            (low, high),
            stretched,
            alpha,
            opaque=_nominal(layout)[1],
            is_premultiplied=alpha is not None and ASSOCIATED in layout.extras,
            white_is_zero=layout.photometric == WHITE_IS_ZERO,
            nodata=_representable(layout.nodata, samples.dtype),
        )
    )


def _has_meaning(layout: Layout) -> bool:
    if layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        return layout.colours == 1 and (layout.alpha is not None or layout.samples <= 2)
    if layout.photometric == RGB:
        return layout.colours == 3
    unsigned = layout.kind == "unsigned" and layout.bits <= 16
    if layout.photometric == PALETTE:
        whole_map = len(layout.colour_map) == 3 * 2**layout.bits
        return layout.colours == 1 and unsigned and whole_map
    return layout.photometric == CMYK and layout.colours == 4 and unsigned and layout.bits >= 8


def _nominal(layout: Layout) -> tuple[float, float]:
    if layout.kind == "float":
        return 0.0, 1.0
    if layout.kind == "signed":
        return -(2.0 ** (layout.bits - 1)), 2.0 ** (layout.bits - 1) - 1
    return 0.0, 2.0**layout.bits - 1


def _palette(layout: Layout) -> NDArray[np.float64]:
    """Return the colour map (n, 3), 0 to 255; some programs store this range, not 0 to 65535."""
    colours = np.array(layout.colour_map, np.float64).reshape(3, -1).T
    return colours if colours.max() < 256 else np.rint(colours / 257)


def _through_palette(indices: NDArray[Any], layout: Layout) -> NDArray[np.uint8]:
    colours: NDArray[np.uint8] = _palette(layout).astype(np.uint8)[indices[..., 0]]
    return colours


def _without_ink(inks: NDArray[Any], full: int) -> NDArray[np.uint16]:
    """Return CMYK samples as RGB of the same range."""
    height, width, _ = inks.shape
    out = np.empty((height, width, 3), np.uint16)
    step = max(1, _BAND // width)
    for top in range(0, height, step):
        paper = full - inks[top : top + step].astype(np.float64)
        out[top : top + step] = np.rint(paper[..., :3] * paper[..., 3:] / full)
    return out


def _representable(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """Return `nodata` if a sample can have this value, else None."""
    if nodata is None or dtype.kind == "f":
        return nodata
    info = np.iinfo(dtype)
    return int(nodata) if info.min <= nodata <= info.max and nodata == int(nodata) else None
