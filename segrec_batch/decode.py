"""Encoded pictures → RGB pixels of one of a few fixed shapes.

A model sees pictures in a handful of *shapes* of nearly equal area, one per aspect ratio: the
aspect of a picture survives, a batch of one shape is one tensor, and neither cost nor memory
depends on the picture.
"""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from segrec_batch.errors import PictureError

MAX_PIXELS = 178_956_970  # Pillow's own bound for decompression bombs
MASK_SIDE = 1024  # masks keep the picture's size up to this long side
STRIDE = 16  # of the deepest convolution layers; sides of shapes are multiples of it
_ASPECTS = (1.0, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2.0, 3.0)  # long side : short side

# not all that Pillow knows: some of its plug-ins start other programs
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

Shape = tuple[int, int]  # height, width

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A decoded picture: `pixels` uint8 (h, w, 3) RGB; `width`, `height` of the upright source."""

    pixels: NDArray[np.uint8]
    width: int
    height: int
    format: str


def shapes_of_size(size: int) -> tuple[Shape, ...]:
    """The shapes of about `size`² pixels, sides multiples of 16, portrait to landscape.

    >>> shapes_of_size(224)[6:9]
    ((224, 224), (208, 256), (192, 256))
    """
    wide = [(size / math.sqrt(a), size * math.sqrt(a)) for a in _ASPECTS]
    tall = [(w, h) for h, w in reversed(wide[1:])]
    return tuple((_whole_strides(h), _whole_strides(w)) for h, w in tall + wide)


def _whole_strides(side: float) -> int:
    return max(STRIDE, round(side / STRIDE) * STRIDE)


def nearest_shape(shapes: Sequence[Shape], height: int, width: int) -> Shape:
    """The shape whose aspect ratio is nearest to that of a picture (on a log scale)."""
    aspect = math.log(width / height)
    return min(shapes, key=lambda s: abs(math.log(s[1] / s[0]) - aspect))


def mask_shape(height: int, width: int) -> Shape:
    """The size at which the mask of a picture is stored: its own, long side at most 1024."""
    scale = min(1.0, MASK_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def decode(data: bytes, shapes: Sequence[Shape]) -> Picture:
    """Decode any picture that Pillow reads (see `open_rgb`), resized to the nearest shape."""
    image, width, height, format_ = open_rgb(data, shapes)
    return Picture(fit(image, shapes), width, height, format_)


def fit(image: Image.Image, shapes: Sequence[Shape]) -> NDArray[np.uint8]:
    """An RGB image resized to the nearest of `shapes`: uint8 (h, w, 3)."""
    h, w = nearest_shape(shapes, image.height, image.width)
    resized = image.resize((w, h), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(resized, np.uint8)


def open_rgb(
    data: bytes, shapes: Sequence[Shape] | None = None
) -> tuple[Image.Image, int, int, str]:
    """Decode the first frame, upright, as RGB; also the upright source's width, height and format.

    With `shapes`, JPEGs may come at a reduced DCT scale that is still larger than the nearest one.
    16-bit grey is scaled by 1/257, 32-bit and float grey stretched to its own range, transparency
    laid on white. Raises PictureError with stage `decode`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what it can live with: broken EXIF etc.
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise PictureError("decode", f"{image.width}×{image.height} pixels are too many")
            return _open_rgb(image, shapes)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("decode", "not a picture" if data else "empty file") from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise PictureError("decode", f"{type(error).__name__}: {error}") from error


def _open_rgb(
    image: Image.Image, shapes: Sequence[Shape] | None
) -> tuple[Image.Image, int, int, str]:
    orientation = _orientation(image)
    sideways = orientation >= 5
    width, height = (image.height, image.width) if sideways else (image.width, image.height)
    if shapes:
        h, w = nearest_shape(shapes, height, width)
        image.draft(None, (h, w) if sideways else (w, h))
    turn = _UPRIGHT.get(orientation)
    upright = image if turn is None else image.transpose(turn)
    return to_rgb(upright), width, height, image.format or "?"


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF does not make a picture unreadable
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode → RGB (see `open_rgb`)."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.float32) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_stretch(np.asarray(image)))
    if image.has_transparency_data:
        rgba = _in_mode(image, "RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return _in_mode(image, "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    image.load()
    return image if image.mode == mode else image.convert(mode)  # which copies in any case


def _stretch(grey: NDArray[Any]) -> NDArray[np.uint8]:
    bands = np.array_split(grey.ravel(), 1 + grey.size // 2**22)  # float64 takes much memory
    low = min(_finite(band).min() for band in bands)
    high = max(_finite(band).max() for band in bands)
    scale = 255 / max(high - low, 1e-12)
    eight = [((_finite(band) - low) * scale + 0.5).astype(np.uint8) for band in bands]
    return np.concatenate(eight).reshape(grey.shape)


def _finite(grey: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(grey.astype(np.float64), posinf=0.0, neginf=0.0)
