"""Tests of masks: a label is the sample that the file stores, or the file is refused."""

import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from segrec_batch.common.errors import ImageError
from segrec_batch.images import masks
from segrec_batch.images.masks import FORMATS, decode_mask
from tests.support.builders import encoded, png_by_hand, quick

Labels = NDArray[np.integer[Any]]


def _labels(bits: int, dtype: str = "u2", seed: int = 0) -> Labels:
    """(7, 11) labels of so many bits, no more than a mask may have, both ends among them."""
    top = min(2**bits, 2**15)
    result = np.random.default_rng(seed).integers(0, top, (7, 11))
    result[0, :2] = 0, top - 1
    return result.astype(dtype)


def _packed(labels: Labels, bits: int) -> list[bytes]:
    """Rows of samples of so many bits, highest bit first, each from a whole byte on."""
    planes = (labels[..., None] >> np.arange(bits)[::-1]) & 1
    return [np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in planes]


def _png(
    labels: Labels, bits: int, palette: bytes | None = None, transparency: bytes = b""
) -> bytes:
    raw = b"".join(b"\0" + row for row in _packed(labels, bits))
    height, width = labels.shape
    whole = png_by_hand(width, height, bits, 0 if palette is None else 3, raw)
    extra = b""
    for kind, body in ((b"PLTE", palette), (b"tRNS", transparency)):
        if body:
            checked = kind + body
            extra += struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))
    return whole[:33] + extra + whole[33:]  # after the header


def _tiff(
    labels: Labels, bits: int, *, palette: bool = False, photometric: int | None = 1
) -> bytes:
    """A TIFF of few bits, which tifffile alone does not write; its photometric tag may lack."""
    height, width = labels.shape
    data = b"".join(_packed(labels, bits))
    colours = np.random.default_rng(0).integers(0, 2**16, 3 * 2**bits).astype("<u2").tobytes()
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1),
        (262, 3, 1, 3 if palette else photometric), (273, 4, 1, 8), (277, 3, 1, 1),
        (278, 4, 1, height), (279, 4, 1, len(data)),
        *([(320, 3, 3 * 2**bits, 8 + len(data))] if palette else []),
    ]  # fmt: skip
    tags = [tag for tag in tags if tag[3] is not None]
    body = data + (colours if palette else b"")
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + bytes(4)


def _bmp(labels: Labels, bits: int, palette: bytes) -> bytes:
    height, width = labels.shape
    rows = [row + bytes(-len(row) % 4) for row in reversed(_packed(labels, bits))]
    start = 54 + len(palette)
    head = struct.pack("<HIHHI", 0x4D42, start + sum(map(len, rows)), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 2**bits, 0)
    return head + info + palette + b"".join(rows)


def _by_tifffile(labels: Labels, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, labels, **{"photometric": "minisblack"} | options)
    return out.getvalue()


def _colours(entries: int, channels: int = 3) -> bytes:
    return np.random.default_rng(1).integers(0, 256, entries * channels, np.uint8).tobytes()


def _reason(data: bytes) -> str:
    with pytest.raises(ImageError) as refused:
        decode_mask(data)
    assert "\n" not in refused.value.reason
    return refused.value.reason


def _same(data: bytes, labels: Labels) -> None:
    result = decode_mask(data)
    assert result.dtype.kind in "iu"
    np.testing.assert_array_equal(result, labels)


@pytest.mark.parametrize("transparency", [b"", b"\0\0"], ids=["", "tRNS"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_gives_its_samples(bits: int, transparency: bytes) -> None:
    labels = _labels(bits)
    _same(_png(labels, bits, transparency=transparency), labels)


@pytest.mark.parametrize("transparency", [b"", b"\0\x80"], ids=["", "tRNS"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_png_gives_its_indices(bits: int, transparency: bytes) -> None:
    labels = _labels(bits)
    _same(_png(labels, bits, _colours(2**bits), transparency), labels)


@pytest.mark.parametrize(
    ("dtype", "order", "compression"),
    [
        *product(("u1", "i1", "u2"), "<>", (None, "zlib", "lzma")),
        *product(("i2", "u4", "i4"), "<", (None, "zlib", "lzma")),
    ],
)
def test_tiff_gives_what_tifffile_wrote(dtype: str, order: str, compression: str | None) -> None:
    labels = _labels(7 if dtype == "i1" else 8 * int(dtype[1]), dtype)
    _same(_by_tifffile(labels, byteorder=order, compression=compression), labels)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "zstd"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_compressed_tiff_gives_what_opencv_reads(dtype: str, compression: str) -> None:
    labels = _labels(8 * int(dtype[1]), dtype)
    data = encoded(Image.fromarray(labels), "TIFF", compression=compression)
    if compression != "zstd":  # not in OpenCV's wheel
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read, labels)
    _same(data, labels)


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_of_few_bits_gives_its_samples(bits: int, palette: bool) -> None:
    labels = _labels(bits)
    _same(_tiff(labels, bits, palette=palette), labels)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_gives_its_indices(bits: int) -> None:
    labels = _labels(bits)
    ramp = np.repeat(np.arange(2**bits) * 255 // (2**bits - 1), 4).astype(np.uint8).tobytes()
    for palette in (_colours(2**bits, 4), ramp):
        _same(_bmp(labels, bits, palette), labels)


@given(labels=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6))
@quick
def test_the_same_labels_are_the_same_in_every_storage(labels: list[list[int]]) -> None:
    values = np.array(labels, np.uint8)
    grey = Image.fromarray(values)
    for data in (
        *(_png(values, bits) for bits in (2, 4, 8, 16)),
        *(_png(values, bits, _colours(2**bits)) for bits in (2, 4, 8)),
        *(_tiff(values, bits, palette=palette) for bits in (2, 4, 8) for palette in (False, True)),
        *(_bmp(values, bits, _colours(2**bits, 4)) for bits in (4, 8)),
        *(_by_tifffile(values.astype(dtype)) for dtype in ("i1", "u2", "i2", "u4", "i4")),
        *(encoded(grey, name) for name in FORMATS),
    ):
        _same(data, values)


GREY = Image.fromarray(_labels(8, "u1"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: encoded(GREY, "JPEG"), "JPEG is refused: its lossy compression"),
        (lambda: encoded(GREY, "WEBP"), "WEBP is refused"),
        (lambda: encoded(GREY, "WEBP", lossless=True), "WEBP is refused"),
        (lambda: encoded(GREY, "GIF"), "GIF is refused"),
        (lambda: encoded(GREY.convert("RGB"), "EPS"), "not an image of BMP, PNG, TIFF"),
        (lambda: encoded(GREY, "TIFF", compression="jpeg"), "compression jpeg is refused"),
        *(
            (lambda mode=mode: encoded(GREY.convert(mode), "PNG"), f"channels ({mode})")
            for mode in ("RGB", "RGBA", "LA")
        ),
        (lambda: encoded(GREY.convert("CMYK"), "TIFF"), "4 channels"),
        (lambda: encoded(GREY.convert("RGB"), "BMP"), "3 channels"),
        *(
            (lambda dtype=dtype: _by_tifffile(_labels(7, dtype)), message)
            for dtype, message in (
                ("f4", "floating-point"), ("f2", "layout that is not read"),
                ("f8", "layout that is not read"), ("u8", "layout that is not read"),
            )
        ),
        *(
            (lambda dtype=dtype: _by_tifffile(_labels(7, dtype), byteorder=">"), "layout")
            for dtype in ("i2", "u4", "i4")
        ),
        *(
            (lambda bits=bits: _tiff(_labels(bits), bits, photometric=0), "MinIsWhite")
            for bits in (1, 4, 8, 16)
        ),
        (lambda: _tiff(_labels(8), 8, photometric=None), "MinIsWhite"),
        (lambda: _tiff(_labels(12), 12), "12 bits"),
        (lambda: _tiff(_labels(8), 8, photometric=6), "photometric 6"),
        (lambda: encoded(GREY, "TIFF", tiffinfo={274: 3}), "orientation (TIFF)"),
        (lambda: encoded(GREY, "TIFF", save_all=True, append_images=[GREY]), "several frames"),
        (
            lambda: encoded(GREY, "PNG", save_all=True, append_images=[GREY.rotate(180)]),
            "several frames",
        ),
        (lambda: b"", "empty file"),
        (lambda: b"<html>", "not an image"),
        (lambda: encoded(GREY, "PNG")[:60], ""),
        (lambda: encoded(GREY, "TIFF")[:40], ""),
        (lambda: png_by_hand(50_000, 50_000, colour=0), "pixels are too many"),
    ],
)  # fmt: skip
def test_what_is_no_mask_is_refused(data: Callable[[], bytes], message: str) -> None:
    assert message in _reason(data())


def test_a_turned_png_is_refused() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    assert "orientation (EXIF)" in _reason(encoded(GREY, "PNG", exif=exif))


@pytest.mark.parametrize("labels", [[0, 7], [7], [0, 1, 7]])
def test_a_palette_of_colours_may_have_greys_among_them(labels: list[int]) -> None:
    """That of PASCAL VOC: its colour 7 is a grey, 128."""
    bits = np.arange(256)[:, None, None] >> np.arange(3)[:, None] + 3 * np.arange(8) & 1
    voc = (bits << np.arange(7, -1, -1)).sum(axis=2).astype(np.uint8)
    assert voc[7].tolist() == [128, 128, 128]
    values = np.array([labels], np.uint8)
    np.testing.assert_array_equal(decode_mask(_png(values, 8, voc.tobytes())), values)


@pytest.mark.parametrize(
    ("labels", "greys", "is_read"),
    [
        ([0, 1, 2], [0, 1, 2], True),  # of grey g the index is g
        ([0, 1], [0, 255], True),  # for display
        ([0, 1, 2, 3], [0, 85, 170, 255], True),
        ([0, 1, 2], [0, 128, 255], True),
        ([0, 1, 2], [0, 0, 0], True),  # cannot have been greys
        ([0, 1, 2], [0, 1, 3], False),  # greys 0, 1, 3 that a program has packed
        ([0, 1], [255, 0], False),
        ([0, 1, 2], [8, 0, 11], False),
    ],
)
def test_a_palette_of_greys_is_read_if_it_is_for_display(
    labels: list[int], greys: list[int], is_read: bool
) -> None:
    values = np.array([labels], np.uint8)
    data = _png(values, 8, bytes(np.repeat(np.array(greys, np.uint8), 3)))
    if is_read:
        _same(data, values)
    else:
        assert "which of them is the label" in _reason(data)


def test_header_of_too_large_image_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MAX_PIXELS", 76)
    assert "11×7 pixels are too many" in _reason(encoded(GREY, "PNG"))
    monkeypatch.setattr(masks, "MAX_PIXELS", 77)
    _same(encoded(GREY, "PNG"), np.asarray(GREY))


def test_a_damaged_png_is_never_read_as_other_labels() -> None:
    whole = encoded(GREY, "PNG")
    for at in range(len(whole)):
        for flip in (0x01, 0x55, 0xFF):
            data = bytearray(whole)
            data[at] ^= flip
            with suppress(ImageError):
                np.testing.assert_array_equal(decode_mask(bytes(data)), GREY, f"byte {at}")


@pytest.mark.parametrize("format_", ["BMP", "TIFF"])
def test_other_damaged_masks_are_read_or_refused(format_: str) -> None:
    whole = encoded(GREY, format_)
    for at in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            data = bytearray(whole)
            data[at] ^= flip
            with suppress(ImageError):
                assert decode_mask(bytes(data)).ndim == 2


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        *(("TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "packbits", "zstd")),
    ],
)
def test_half_a_mask_is_never_read_as_one(format_: str, options: dict[str, str]) -> None:
    whole = encoded(GREY, format_, **options)
    for length in range(len(whole)):
        with suppress(ImageError):
            np.testing.assert_array_equal(decode_mask(whole[:length]), GREY, f"{length} bytes")
