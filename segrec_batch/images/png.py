"""Read what Pillow does not read from PNG: 16-bit samples, tRNS, damaged ancillary chunks.

What reads each colour type and bit depth:

    grey 1, 2, 4, 8; RGB 8; palette 1 to 8     Pillow, with the tRNS value in its units
    grey 16; RGB 16; grey + alpha 16; RGBA 16  both bytes of each sample, see `_both_bytes`;
                                               a tRNS colour is compared at 16 bits
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from segrec_batch.common.errors import ImageError
from segrec_batch.images.scaling import Samples, render_rgb

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_GREY, _RGB, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 4, 6  # colour types with 16 bits
_CHANNELS = {_GREY: 1, _RGB: 3, _GREY_ALPHA: 2, _RGB_ALPHA: 4}


def drop_damaged_ancillary(data: bytes) -> bytes:
    """Remove the ancillary chunks with a wrong checksum from a PNG, as libpng does.

    Pixels do not depend on them. Pillow does not check the last checksum of the pixels, and checks
    none while it looks for EXIF in a damaged file; it then returns black pixels.

    Raises:
        ImageError: A critical chunk is cut short, or its checksum is wrong.
    """
    pieces, start = [], 0
    for offset, end, kind in _iter_chunks(data):
        if _is_intact(data, offset, end):
            continue
        if not kind[0] & 0x20:
            name = kind.decode("ascii", "backslashreplace")
            raise ImageError("decode", f"broken or truncated PNG: the chunk {name} is damaged")
        pieces.append(data[start:offset])
        start = end
    return b"".join([*pieces, data[start:]]) if pieces else data


def _iter_chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the start, end and type of each chunk before IEND; an end may exceed the data."""
    offset = len(SIGNATURE)
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"IEND":
            return
        yield offset, offset + 12 + length, kind
        offset += 12 + length


def _is_intact(data: bytes, offset: int, end: int) -> bool:
    """Return whether a chunk is complete and its checksum is right."""
    if end > len(data):
        return False
    stored = int.from_bytes(data[end - 4 : end])
    return zlib.crc32(memoryview(data)[offset + 4 : end - 4]) == stored


def read_depth_and_colour(data: bytes) -> tuple[int, int]:
    """Return bits per sample and the colour type, from the header.

    Raises:
        ImageError: The header is not the first chunk; Pillow accepts this, the format does not.
    """
    if data[12:16] != b"IHDR":
        raise ImageError("decode", "broken PNG: the header is not the first chunk")
    return data[24], data[25]


def scale_transparency(image: Image.Image, depth: int) -> None:
    """Scale the transparent grey of a 2- or 4-bit image as Pillow scales its pixels."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int):
        image.info["transparency"] = (key & (2**depth - 1)) * 255 // (2**depth - 1)


def open_16_bits(data: bytes, colour: int) -> Image.Image:
    """Return a PNG of 16 bits per sample as RGB."""
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    samples = _read_samples(image, data, colour)
    channels = _CHANNELS[colour]
    colours, alpha, opaque_value = samples, None, 65535.0
    if colour in (_GREY_ALPHA, _RGB_ALPHA):
        colours, alpha = samples[..., : channels - 1], samples[..., channels - 1]
    elif (key := image.info.get("transparency")) is not None:
        alpha, opaque_value = (samples != np.atleast_1d(key)).any(axis=-1), 1.0
    return render_rgb(Samples(colours, (0, 65535), alpha=alpha, opaque=opaque_value))


def _read_samples(image: PngImagePlugin.PngImageFile, data: bytes, colour: int) -> NDArray[Any]:
    """Return the samples of an opened image, uint16 (h, w, channels)."""
    if colour == _GREY:
        return np.asarray(image, np.uint16)[..., None]
    if colour == _GREY_ALPHA:  # its rows have the bytes and filters of 8-bit RGBA
        return _unpack_rows(image, "RGBA", "RGBA").view(">u2")
    mode = "RGB" if colour == _RGB else "RGBA"
    high = _unpack_rows(image, mode, f"{mode};16B")
    second = PngImagePlugin.PngImageFile(io.BytesIO(data))
    low = _unpack_rows(second, mode, f"{mode};16L")  # 16L takes the second byte
    return high.astype(np.uint16) << 8 | low


def _unpack_rows(image: PngImagePlugin.PngImageFile, mode: str, raw: str) -> NDArray[np.uint8]:
    """Return the bytes of rows that Pillow reads as if they had the layout `raw` of equal width."""
    (tile,) = image.tile
    image.tile = [tile._replace(args=raw)]
    image._mode = mode
    return np.array(image, np.uint8)
