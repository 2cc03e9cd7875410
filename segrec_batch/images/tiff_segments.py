"""Reading of the samples of a TIFF from its strips and tiles."""

import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from segrec_batch.common.errors import ImageError
from segrec_batch.images.tiff_layout import Layout

Buffer = bytes | memoryview

MAX_BYTES = 3 * 2**29  # bytes of the samples of an image

NONE, _DEFLATE = 1, (8, 32946)
_BY_LIBTIFF = (5, 32773, 34925, 50000)  # LZW, PackBits, LZMA, Zstandard
COMPRESSIONS = frozenset({NONE, *_DEFLATE, *_BY_LIBTIFF})
"""Compressions of bytes, whatever the samples."""

_WHOLE = {"unsigned": (8, 16, 32, 64), "signed": (8, 16, 32, 64), "float": (16, 32, 64)}
_LETTER = {"unsigned": "u", "signed": "i", "float": "f"}
_MOST_PACKED = 16  # bits of a sample that does not fill bytes
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_BAND = 2**21  # bits unpacked at once
_BATCH = 2**24  # bytes of strips or tiles decompressed at once


def can_read_samples(layout: Layout) -> bool:
    """Return whether `read_samples` supports the type and the predictor of the samples."""
    if layout.bits in _WHOLE.get(layout.kind, ()):
        return layout.predictor in (1, 2) or (layout.predictor == 3 and layout.kind == "float")
    packed = layout.kind == "unsigned" and 1 <= layout.bits <= _MOST_PACKED
    return packed and layout.predictor == 1


def read_samples(data: bytes, layout: Layout, kept: int) -> NDArray[Any]:
    """Return the first `kept` samples of each pixel, (h, w, kept), in the file's type.

    Raises:
        ImageError: Strips or tiles are missing, truncated or broken, or the samples are too many.
    """
    dtype = _dtype(layout)
    if layout.height * layout.width * kept * dtype.itemsize > MAX_BYTES:
        raise ImageError(
            "decode", f"{layout.width}×{layout.height} pixels of {kept} {layout.bits}-bit samples "
            f"take more than {MAX_BYTES / 2**30:g} GiB",
        )  # fmt: skip
    rows, columns = layout.segment
    if rows * columns * layout.samples * dtype.itemsize > MAX_BYTES:
        raise ImageError("decode", f"tiles of {columns}×{rows} pixels are too large")
    across, down = math.ceil(layout.width / columns), math.ceil(layout.height / rows)
    needed = across * down * (layout.samples if layout.is_planar else 1)
    _check_segments(layout, needed, len(data))
    out = np.empty((layout.height, layout.width, kept), dtype)
    last = across * down * (kept if layout.is_planar else 1)
    for index, values in enumerate(_segments(data, layout, last, down)):
        plane, place = divmod(index, across * down)
        top, left = place // across * rows, place % across * columns
        bands = slice(plane, plane + 1) if layout.is_planar else slice(0, kept)
        target = out[top : top + rows, left : left + columns, bands]
        target[:] = values[: target.shape[0], : target.shape[1], : target.shape[2]]
    return out


def _check_segments(layout: Layout, needed: int, length: int) -> None:
    compressed = layout.compression != NONE  # uncompressed sizes are known
    there = min(len(layout.offsets), len(layout.sizes)) if compressed else len(layout.offsets)
    if there < needed:
        raise ImageError("decode", f"truncated TIFF: {there} of {needed} strips or tiles")
    for i, offset in enumerate(layout.offsets[:needed]):
        end = offset + layout.sizes[i] if compressed else offset + 1
        if offset and end > length:
            raise ImageError("decode", "truncated TIFF: a strip or tile ends beyond the file")


def _segments(data: bytes, layout: Layout, last: int, down: int) -> Iterator[NDArray[Any]]:
    """Yield the strips or tiles before `last`, each (height, columns, samples)."""
    rows, columns = layout.segment
    samples = 1 if layout.is_planar else layout.samples
    row = math.ceil(columns * samples * layout.bits / 8)
    rest = layout.height - (down - 1) * rows  # rows of the last strip of a plane
    batch = max(1, _BATCH // (rows * row))
    for start in range(0, last, batch):
        indices = range(start, min(start + batch, last))
        for height, alike in groupby(
            indices, lambda i: rest if not layout.is_tiled and (i + 1) % down == 0 else rows
        ):
            members = list(alike)
            stored = [i for i in members if layout.offsets[i]]  # GDAL omits segments without data
            contents = dict(zip(stored, _contents(data, layout, stored, height * row), strict=True))
            for i in members:
                shape = (height, columns, samples)
                if i in contents:
                    yield _values(contents[i], layout, shape)
                else:
                    yield np.full(shape, _filling(layout), _dtype(layout))


def _contents(data: bytes, layout: Layout, indices: Sequence[int], size: int) -> Sequence[Buffer]:
    """Return `size` bytes of each strip or tile in `indices`."""
    sizes = layout.sizes if layout.compression != NONE else None
    places = [(layout.offsets[i], sizes[i] if sizes else size) for i in indices]
    contents: list[Buffer] = [memoryview(data)[at : at + n] for at, n in places]
    if layout.fill_order == 2:
        contents = [bytes(content).translate(_REVERSED) for content in contents]
    if layout.compression in _DEFLATE:
        contents = [_inflate(content, size) for content in contents]
    elif layout.compression != NONE:
        contents = _decompress_by_libtiff(contents, layout.compression, size)
    if any(len(content) < size for content in contents):
        raise ImageError("decode", "truncated TIFF: a strip or tile has too few bytes")
    return contents


def _values(content: Buffer, layout: Layout, shape: tuple[int, int, int]) -> NDArray[Any]:
    height, columns, samples = shape
    dtype = _dtype(layout)
    if layout.bits not in _WHOLE[layout.kind]:
        packed = np.frombuffer(content, np.uint8).reshape(height, -1)
        return _unpack(packed, columns * samples, layout.bits).reshape(shape)
    if layout.predictor == 3:
        return _undo_float_prediction(content, dtype, shape)
    stored = np.frombuffer(content, dtype.newbyteorder("<" if layout.is_little_endian else ">"))
    values = stored.astype(dtype, copy=False).reshape(shape)
    if layout.predictor == 2:
        whole = np.dtype(f"u{dtype.itemsize}")
        return np.cumsum(values.view(whole), axis=1, dtype=whole).view(dtype)
    return values


def _dtype(layout: Layout) -> np.dtype[Any]:
    if layout.bits in _WHOLE[layout.kind]:
        return np.dtype(f"{_LETTER[layout.kind]}{layout.bits // 8}")
    return np.dtype(np.uint8 if layout.bits < 8 else np.uint16)


def _filling(layout: Layout) -> float:
    dtype, nodata = _dtype(layout), layout.nodata or 0
    if dtype.kind == "f":
        return nodata
    info = np.iinfo(dtype)
    return nodata if info.min <= nodata <= info.max else 0


def _unpack(packed: NDArray[np.uint8], n: int, bits: int) -> NDArray[Any]:
    """Return `n` unsigned samples of each row; the first bit of a byte is the highest."""
    out = np.zeros((len(packed), n), np.uint8 if bits < 8 else np.uint16)
    step = max(1, _BAND // (n * bits))
    for top in range(0, len(packed), step):
        digits = np.unpackbits(packed[top : top + step], axis=1, count=n * bits)
        digits = digits.reshape(-1, n, bits)
        band = out[top : top + step]
        for place in range(bits):
            band[:] = band << 1 | digits[..., place]
    return out


def _undo_float_prediction(
    content: Buffer, dtype: np.dtype[Any], shape: tuple[int, int, int]
) -> NDArray[Any]:
    """Undo Adobe's floating-point predictor (Technical Note 3), which sorts bytes by rank."""
    height, _, samples = shape
    steps = np.frombuffer(content, np.uint8).reshape(height, -1, samples)
    values = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(height, dtype.itemsize, -1)
    big_endian = np.ascontiguousarray(values.transpose(0, 2, 1)).view(dtype.newbyteorder(">"))
    return big_endian.astype(dtype).reshape(shape)


def _inflate(content: Buffer, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, size)
    except zlib.error as error:
        raise ImageError("decode", f"broken TIFF: {error}") from error


def _decompress_by_libtiff(contents: Sequence[Buffer], compression: int, size: int) -> list[Buffer]:
    """Decompress `size` bytes of each content with libtiff, through Pillow.

    The contents are passed as the strips of a grey image, one for each row.
    """
    if not contents:
        return []
    n, fields_n = len(contents), 10
    after = 8 + 2 + 12 * fields_n + 4  # header, directory
    sizes = [len(content) for content in contents]
    starts = accumulate(sizes[:-1], initial=after + (8 * n if n > 1 else 0))
    fields = [
        (256, [size]), (257, [n]), (258, [8]), (259, [compression]), (262, [1]), (273, [*starts]),
        (277, [1]), (278, [1]), (279, sizes), (317, [1]),
    ]  # fmt: skip
    entries, body = b"", b""
    for tag, values in fields:
        packed = struct.pack(f"<{len(values)}I", *values)
        value = packed if len(values) == 1 else struct.pack("<I", after + len(body))
        body += packed if len(values) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(values)) + value
    head = struct.pack("<2sHIH", b"II", 42, 8, fields_n) + entries + bytes(4) + body
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(head + b"".join(contents)))
    try:
        rows = image.tobytes()
    except OSError as error:
        raise ImageError("decode", f"broken or truncated TIFF: {error}") from error
    return [rows[at : at + size] for at in range(0, n * size, size)]
