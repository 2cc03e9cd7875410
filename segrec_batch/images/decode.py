"""Decode images to RGB pixels of one of a few fixed shapes.

A model takes images in a few *shapes* of nearly equal area, one for each aspect ratio. So images
are hardly distorted, images of one shape form one tensor, and every image costs about the same time
and memory.
"""

import io
import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from segrec_batch.common.errors import ImageError
from segrec_batch.images import png, signatures, tiff
from segrec_batch.images.tiff_layout import Layout, read_layout

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs
MASK_SIDE = 1024  # longest side of a mask, in pixels
_ASPECTS = (1.0, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2.0, 3.0)  # long side / short side

# not all formats of Pillow: some plug-ins start other programs
_OPENERS = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # libavif cannot start threads in the sandbox
_PRELOADED = (
    ImageCms,
    MpoImagePlugin,
)  # Pillow uses these too, and cannot import them inside the sandbox

Shape = tuple[int, int]  # height, width

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image: `pixels` uint8 (h, w, 3) RGB; `width`, `height` of the upright source."""

    pixels: NDArray[np.uint8]
    width: int
    height: int
    format: str


def shapes_of_size(size: int, stride: int) -> tuple[Shape, ...]:
    """Return shapes of about `size`² pixels, sides multiples of `stride`, portrait to landscape.

    >>> shapes_of_size(224, 16)[6:9]
    ((224, 224), (208, 256), (192, 256))
    """
    landscape = [(size / math.sqrt(a), size * math.sqrt(a)) for a in _ASPECTS]
    portrait = [(w, h) for h, w in reversed(landscape[1:])]
    return tuple(
        (_round_to_stride(h, stride), _round_to_stride(w, stride)) for h, w in portrait + landscape
    )


def _round_to_stride(side: float, stride: int) -> int:
    return max(stride, round(side / stride) * stride)


def nearest_shape(shapes: Sequence[Shape], height: int, width: int) -> Shape:
    """Return the shape whose aspect ratio is nearest to that of an image, on a log scale."""
    aspect = math.log(width / height)
    return min(shapes, key=lambda s: abs(math.log(s[1] / s[0]) - aspect))


def mask_shape(height: int, width: int) -> Shape:
    """Return the size of the mask of an image: its own, with a long side of at most 1024."""
    scale = min(1.0, MASK_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def decode(data: bytes, shapes: Sequence[Shape]) -> DecodedImage:
    """Decode an image as `open_rgb` does, and resize it to the nearest shape."""
    image, width, height, format_ = open_rgb(data, shapes)
    return DecodedImage(fit(image, shapes), width, height, format_)


def fit(image: Image.Image, shapes: Sequence[Shape]) -> NDArray[np.uint8]:
    """Return an RGB image resized to the nearest of `shapes`: uint8 (h, w, 3)."""
    h, w = nearest_shape(shapes, image.height, image.width)
    resized = image.resize((w, h), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(resized, np.uint8)


def open_rgb(
    data: bytes, shapes: Sequence[Shape] | None = None
) -> tuple[Image.Image, int, int, str]:
    """Return the first frame as upright RGB, and its full width, height and format.

    Samples of up to 8 bits keep their values; `images.scaling` stretches samples of more bits.
    Pixels that are transparent, NaN or nodata become white.

    Args:
        data: The file.
        shapes: A JPEG may be decoded at a reduced scale that is not below the nearest of them.

    Raises:
        ImageError: With stage `decode`: the file is no image, is broken, or is of a format,
            layout, compression or size that is not supported; the reason says which.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # harmless faults, such as broken EXIF
            return _open_rgb(data, signatures.recognise(data), shapes)
    except ImageError:
        raise
    except Exception as error:  # decoders raise any exception on broken bytes
        raise ImageError("decode", f"{type(error).__name__}: {error}") from error


def _open_rgb(
    data: bytes, format_: str, shapes: Sequence[Shape] | None
) -> tuple[Image.Image, int, int, str]:
    if format_ == "TIFF":
        return _open_tiff(data, read_layout(data))
    if format_ == "PNG":
        data = png.drop_damaged_ancillary(data)
    image = _open_with_pillow(data, format_)
    if format_ == "PNG":
        depth, colour = png.read_depth_and_colour(data)
        if depth == 16:
            orientation = _read_orientation(image)
            return _describe_image(
                _turn_upright(png.open_16_bits(data, colour), orientation), format_
            )
        png.scale_transparency(image, depth)
    return _convert_with_pillow(image, _read_orientation(image), shapes)


def _open_with_pillow(data: bytes, format_: str) -> ImageFile.ImageFile:
    try:
        image: ImageFile.ImageFile = _OPENERS[format_](io.BytesIO(data), "")
    except (
        SyntaxError,
        IndexError,
        TypeError,
        struct.error,
    ) as error:  # of plug-ins
        kind = f"broken, truncated or unknown kind of {format_}"
        raise ImageError("decode", f"{kind}: {error}") from error
    _check_size(image.width, image.height)
    return image


def _open_tiff(data: bytes, layout: Layout) -> tuple[Image.Image, int, int, str]:
    _check_size(layout.width, layout.height)
    layout.check_compression()
    if tiff.is_pillows(layout):
        image = _open_with_pillow(data, "TIFF")
        tiff.correct_palette(image, layout)
        return _convert_with_pillow(image, 1, None)  # Pillow applies the orientation
    return _describe_image(_turn_upright(tiff.open_here(data, layout), layout.orientation), "TIFF")


def _convert_with_pillow(
    image: Image.Image, orientation: int, shapes: Sequence[Shape] | None
) -> tuple[Image.Image, int, int, str]:
    is_sideways = 5 <= orientation <= 8
    width, height = (image.height, image.width) if is_sideways else (image.width, image.height)
    if shapes:
        h, w = nearest_shape(shapes, height, width)
        image.draft(None, (h, w) if is_sideways else (w, h))
    return to_rgb(_turn_upright(image, orientation)), width, height, image.format or "?"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError("decode", f"{width}×{height} pixels are too many")


def _describe_image(image: Image.Image, format_: str) -> tuple[Image.Image, int, int, str]:
    return image, image.width, image.height, format_


def _turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _read_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF does not make an image unreadable
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any 8-bit mode of Pillow to RGB, with transparent pixels on white."""
    if image.has_transparency_data:
        rgba = _convert_mode(image, "RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return _convert_mode(image, "RGB")


def _convert_mode(image: Image.Image, mode: str) -> Image.Image:
    image.load()
    return image if image.mode == mode else image.convert(mode)  # convert() always copies
