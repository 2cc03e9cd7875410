"""Decode masks: images whose pixel values are labels.

A label is the sample that the file stores: the index in a palette image, 3 for a 4-bit grey of 3, 0
or 1 for one bit. Files whose samples may not be labels are refused: lossy formats, several
channels, fractions, and layouts that programs read differently.
"""

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from segrec_batch.common.errors import ImageError
from segrec_batch.images.decode import MAX_PIXELS
from segrec_batch.images.signatures import find_format

FORMATS = ("BMP", "PNG", "TIFF")
"""Formats of masks: they store an image of one channel without loss."""

ADVICE = "save masks as PNG, 8-bit grey or palette, one value per pixel"

# other formats are opened to name them in the error; none starts a program
_OPENED_FORMATS = (*FORMATS, "GIF", "JPEG", "WEBP")
_REFUSAL_REASONS = {
    "JPEG": "its lossy compression changes labels",
    "MPO": "its lossy compression changes labels",
    "WEBP": "it stores colours, in general lossily, and no labels",
    "GIF": "programs that save it number its palette anew",
}
_SCALES = {"L;2": 85, "L;4": 17}  # Pillow's factors for greys of few bits

_PHOTOMETRIC, _BITS, _SAMPLES, _ORIENTATION, _SAMPLE_FORMAT = 262, 258, 277, 274, 339
_WHITE_IS_0, _GREY, _INDEX = 0, 1, 3  # photometric interpretations
_UNSIGNED, _SIGNED = 1, 2  # sample formats
_TIFF_LAYOUTS = {  # layouts that Pillow reads correctly, as tested
    *((_GREY, _UNSIGNED, bits) for bits in (1, 2, 4, 8, 16, 32)),
    *((_GREY, _SIGNED, bits) for bits in (8, 16, 32)),
    *((_INDEX, _UNSIGNED, bits) for bits in (1, 2, 4, 8)),
}
_TIFF_LOSSLESS = {
    "raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate",
    "packbits", "lzma", "zstd",
}  # fmt: skip


def decode_mask(data: bytes) -> NDArray[np.integer[Any]]:
    """Return the samples of a mask, (H, W), in the smallest integer type that holds them.

    Raises ImageError with stage `decode` for a damaged or refused file; the reason says what to do.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # faults are checked here, or are harmless
            with Image.open(io.BytesIO(data), formats=_OPENED_FORMATS) as image:
                scale = _find_scale(image)
                _check_layout(image)
                if image.format == "PNG":
                    _check_checksums(data)
                image.load()
                _check_upright(image)
                return _read_samples(image, scale)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise _make_error(
            f"more than {MAX_PIXELS:,} pixels are too many", "make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise _make_error(_describe_unidentified(data)) from error
    except Exception as error:  # decoders raise any exception on broken bytes
        reason = f"damaged ({type(error).__name__}: {error})"
        raise _make_error(reason, "make the file again") from error


def _describe_unidentified(data: bytes) -> str:
    if not data:
        return "empty file"
    if (name := find_format(data)) in FORMATS:
        return f"a {name} that is damaged, or of a layout that is not read"
    return f"not an image of {', '.join(FORMATS)}"


def _find_scale(image: Image.Image) -> int:
    """Return the factor by which Pillow multiplies the samples when it loads them."""
    if image.mode != "L":
        return 1
    if isinstance(image, TiffImageFile):
        return _SCALES.get(f"L;{_read_tag(image, _BITS)}", 1)
    return _SCALES.get(str(image.tile[0][3]), 1) if isinstance(image, PngImageFile) else 1


def _read_samples(image: Image.Image, scale: int) -> NDArray[np.integer[Any]]:
    """Return the stored samples of an image whose layout has been checked."""
    samples = np.asarray(image)
    if image.mode == "P":
        _check_palette(image)
    if samples.dtype == np.bool_:
        return samples.astype(np.uint8)
    is_signed = isinstance(image, TiffImageFile) and _read_tag(image, _SAMPLE_FORMAT) == _SIGNED
    if is_signed and samples.dtype == np.uint8:  # Pillow reads signed bytes as unsigned
        return samples.view(np.int8)
    return samples // scale if scale > 1 else samples


def _check_layout(image: Image.Image) -> None:
    """Raise ImageError if the header shows that an image cannot be a mask."""
    if image.format not in FORMATS:
        reason = _REFUSAL_REASONS.get(str(image.format), "not one of " + ", ".join(FORMATS))
        raise _make_error(f"a mask in {image.format} is refused: {reason}")
    if image.width * image.height > MAX_PIXELS:
        raise _make_error(f"{image.width}×{image.height} pixels are too many", "make it smaller")
    bands = len(image.getbands())
    if bands > 1:
        raise _make_error(f"a mask of {bands} channels ({image.mode}) is refused")
    if image.mode == "F":
        raise _make_error("a mask of floating-point values is refused")
    if getattr(image, "is_animated", False):
        raise _make_error("a mask of several frames or pages is refused", "save one, as PNG")
    if isinstance(image, TiffImageFile):
        _check_tiff(image)


def _check_checksums(data: bytes) -> None:
    """Raise SyntaxError for a PNG with a wrong checksum; loading checks only a few."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _check_tiff(image: TiffImageFile) -> None:
    compression = str(image.info.get("compression", "raw"))
    if compression not in _TIFF_LOSSLESS:
        raise _make_error(
            f"a mask in TIFF of compression {compression} is refused: it may be lossy"
        )
    photometric, bits = _read_tag(image, _PHOTOMETRIC, _WHITE_IS_0), _read_tag(image, _BITS)
    sample_format = _read_tag(image, _SAMPLE_FORMAT)
    if photometric == _WHITE_IS_0:
        raise _make_error(
            "a mask in TIFF that stores white as 0 (MinIsWhite) is refused: programs disagree "
            "whether its values are inverted"
        )
    # Pillow does not swap bytes of compressed signed or 32-bit samples
    is_swapped = image.tag_v2.prefix[:2] == b"MM" and (
        bits == 32 or (sample_format, bits) == (2, 16)
    )
    is_known = (photometric, sample_format, bits) in _TIFF_LAYOUTS and not is_swapped
    if not is_known or _read_tag(image, _SAMPLES) != 1:
        raise _make_error(
            f"a mask in TIFF of this layout is refused: photometric {photometric}, sample format "
            f"{sample_format}, {bits} bits{', big-endian' if is_swapped else ''}"
        )
    if _read_tag(image, _ORIENTATION) != 1:
        raise _make_orientation_error("TIFF")


def _read_tag(image: TiffImageFile, number: int, default: int = 1) -> int:
    """Return the first number of a tag."""
    value = image.tag_v2.get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _check_upright(image: Image.Image) -> None:
    """Raise ImageError for a loaded PNG with an EXIF orientation.

    Other mask formats have no EXIF, or `_check_layout` has checked them.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF has no orientation
        return
    if image.format == "PNG" and orientation != 1:
        raise _make_orientation_error("EXIF")


def _make_orientation_error(where: str) -> ImageError:
    return _make_error(
        f"a mask with an orientation ({where}) is refused", "turn its pixels upright"
    )


def _check_palette(image: Image.Image) -> None:
    """Raise ImageError for a palette that may store greys.

    Programs that shrink files renumber the greys of a mask: 0, 1, 3 become the indices 0, 1, 2 of
    a grey palette. Palettes for display have colours, or all greys from black to white.
    """
    used_indices = np.flatnonzero(image.histogram()[:256])
    palette = np.array(image.getpalette("RGB") or [], int).reshape(-1, 3)
    if not len(used_indices) or used_indices[-1] >= len(palette):
        return
    greys = palette[used_indices, 0]
    if (palette != palette[:, :1]).any() or len(set(greys.tolist())) < len(greys):
        return
    wrong = used_indices[greys != used_indices]
    ramps = (
        np.rint(used_indices * 255 / max(n - 1, 1))
        for n in {2, 4, 16, len(palette), used_indices[-1] + 1}
    )
    if len(wrong) and not any(np.abs(greys - ramp).max() <= 1 for ramp in ramps):
        raise _make_error(
            f"its palette has greys only, and index {wrong[0]} is grey {palette[wrong[0], 0]}: "
            "which of them is the label cannot be told",
            "save masks as PNG, 8-bit grey",
        )


def _make_error(reason: str, advice: str = ADVICE) -> ImageError:
    return ImageError("decode", f"{reason}; {advice}")
