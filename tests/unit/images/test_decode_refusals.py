"""Tests of refusals: broken, unsupported and too large files raise ImageError with a reason."""

import resource
import struct
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segrec_batch.common.errors import ImageError
from segrec_batch.images import decode as d
from tests.support.builders import (
    encoded,
    noise_pixels,
    png_by_hand,
    quick,
    smooth_pixels,
    tiff_by_hand,
)

SHAPES = d.shapes_of_size(64, 16)


def _failure(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        d.decode(data, SHAPES)
    assert caught.value.stage == "decode"
    assert "object at 0x" not in caught.value.reason
    return caught.value.reason


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow, of a TIFF directory cut off
@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {}),
        ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}), ("AVIF", {}),
    ],
)  # fmt: skip
def test_a_truncated_image_is_refused(
    format_: str, options: dict[str, object], quarters: int
) -> None:
    data = encoded(noise_pixels(60, 80), format_, **options)
    reason = _failure(data[: len(data) * quarters // 4])
    assert "truncated" in reason or "decoder" in reason


def test_what_is_no_image_is_named_so() -> None:
    assert _failure(b"") == "empty file"
    assert _failure(b"<!DOCTYPE html><html><body>404 Not Found</body></html>") == "not an image"
    assert _failure(bytes(1000)) == "not an image"
    assert _failure(b"\xff\xd8\xff") != ""


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0 ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (b"\xff\x0a", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"), (b"P5\n40 30\n65535\n", "netpbm"),
        (bytes(128) + b"DICM", "DICOM"), (b"\x76\x2f\x31\x01", "OpenEXR"),
    ],
)  # fmt: skip
def test_formats_that_are_not_read_are_named(start: bytes, name: str) -> None:
    convert = "convert it to one of AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP"
    assert _failure(start + bytes(200)) == f"{name} is not supported: {convert}"


def test_a_jpeg_of_twelve_bits_is_named() -> None:
    data = bytearray(encoded(smooth_pixels(16, 16), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    kind = "broken, truncated or unknown kind of JPEG"
    assert _failure(bytes(data)) == f"{kind}: cannot handle 12-bit layers"


def test_a_film_is_no_image() -> None:
    assert _failure(b"\0\0\0 ftypisom" + bytes(200)) == "not an image"


def _layout(bits: int, samples: int = 1, photometric: int = 1, **tags: int) -> bytes:
    """A TIFF of 8 x 8 zeros."""
    names = {"planar": 284, "predictor": 317, "compression": 259}
    strips = [bytes(8 * 8 * samples * bits // 8)]
    if tags.get("planar") == 2:
        strips = [bytes(8 * 8 * bits // 8)] * samples
    own: dict[int, list[int]] = {
        256: [8],
        257: [8],
        258: [bits] * samples,
        262: [photometric],
        277: [samples],
        278: [8],
    }
    if "kind" in tags:
        own[339] = [tags.pop("kind")] * samples
    return tiff_by_hand(own | {names[name]: [value] for name, value in tags.items()}, strips)


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        (_layout(16, 6, planar=2), "grey, 6 samples of 16-bit unsigned, planar"),
        (_layout(8, 3), "grey, 3 samples of 8-bit unsigned"),
        (_layout(16, 2, 2), "RGB, 2 samples of 16-bit unsigned"),
        (_layout(24), "grey, 1 sample of 24-bit unsigned"),
        (_layout(24, kind=3), "grey, 1 sample of 24-bit float"),
        (_layout(64, kind=6), "grey, 1 sample of 64-bit complex"),
        (_layout(16, 1, 4), "transparency mask, 1 sample of 16-bit unsigned"),
        (_layout(8, 1, 32803), "colour filter array, 1 sample of 8-bit unsigned"),
        (_layout(16, 3, 8), "CIE L*a*b*, 3 samples of 16-bit unsigned"),
        (_layout(8, 3, 8, planar=2), "CIE L*a*b*, 3 samples of 8-bit unsigned, planar"),
        (_layout(8, 3, 6), "YCbCr, 3 samples of 8-bit unsigned, subsampled 2×2"),
        (_layout(16, 1, 3), "palette, 1 sample of 16-bit unsigned"),  # without a colour map
        (_layout(32, 4, 5, kind=3), "CMYK, 4 samples of 32-bit float"),
        (_layout(12, 1, compression=7), "grey, 1 sample of 12-bit unsigned, JPEG compression"),
        (
            _layout(16, 1, predictor=3, compression=5),
            "grey, 1 sample of 16-bit unsigned, LZW compression, predictor 3",
        ),
        (_layout(8, 1, 12345), "12345, 1 sample of 8-bit unsigned"),
    ],
)
def test_layouts_of_tiff_that_are_not_read_are_named(data: bytes, layout: str) -> None:
    assert _failure(data) == f"TIFF of this layout is not supported: {layout}"


@pytest.mark.parametrize(
    ("compression", "name"),
    [(34712, "JPEG 2000"), (34887, "LERC"), (50001, "WebP"), (50002, "JPEG XL"), (12345, "12345")],
)
def test_unsupported_compression_of_tiff_is_named(compression: int, name: str) -> None:
    for bits in (8, 16):
        reason = _failure(_layout(bits, compression=compression))
        assert reason == f"TIFF compression {name} is not supported"


def test_samples_of_different_bits_are_named() -> None:
    tags = {256: [8], 257: [8], 258: [5, 6, 5], 262: [2], 277: [3], 278: [8]}
    reason = "TIFF of this layout is not supported: RGB, samples of 5-bit, 6-bit, 5-bit"
    assert _failure(tiff_by_hand(tags, [bytes(128)])) == reason


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "zstd"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_truncated_tiff_of_sixteen_bits_says_so(compression: str, quarters: int) -> None:
    values = noise_pixels(60, 80)[..., 0].astype(np.uint16) * 200
    data = encoded(Image.fromarray(values), "TIFF", compression=compression, tiffinfo={278: 16})
    assert "truncated TIFF" in _failure(data[: 9 + (len(data) - 9) * quarters // 4])


@pytest.mark.parametrize("compression", [5, 8, 34925, 50000])
def test_strips_of_sixteen_bits_that_are_noise_are_broken(compression: int) -> None:
    tags = {256: [80], 257: [60], 258: [16], 259: [compression], 262: [1], 277: [1], 278: [60]}
    data = tiff_by_hand(tags, [b"\xff\xfe" * 4000])
    assert "broken" in _failure(data)


@pytest.mark.parametrize(("samples", "bits", "kind"), [(3, 64, 3), (1, 64, 1)])
def test_too_many_samples_are_refused_before_allocation(samples: int, bits: int, kind: int) -> None:
    side = 13_300 if samples == 3 else 14_300
    photometric = 2 if samples == 3 else 1
    tags = {256: [side], 257: [12_000], 258: [bits] * samples, 262: [photometric], 277: [samples]}
    tags |= {278: [1], 339: [kind] * samples}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _failure(tiff_by_hand(tags, [b"0"] * 12_000)).endswith(
        "take more than 1.5 GiB" if samples == 3 else "has too few bytes"
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000  # kilobytes


def _patched(format_: str, side: int) -> bytes:
    """A tiny file whose header promises `side`² pixels."""
    if format_ == "PNG":
        return png_by_hand(side, side, raw=bytes(100))
    data = bytearray(encoded(Image.new("L", (4, 4)), format_))
    if format_ == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif format_ == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif format_ == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    else:  # TIFF
        (directory,) = struct.unpack("<I", data[4:8])
        for at in range(directory + 2, directory + 2 + 12 * data[directory], 12):
            if struct.unpack("<H", data[at : at + 2])[0] in (256, 257):  # width, height
                data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize("format_", ["PNG", "GIF", "BMP", "JPEG", "TIFF"])
@pytest.mark.parametrize("side", [13_500, 50_000])  # just over the bound; far over
def test_bomb_is_refused_before_allocation(format_: str, side: int) -> None:
    data = _patched(format_, side)
    assert len(data) < 2000
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    reason = _failure(data)
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000  # kilobytes
    assert str(side) in reason or str(side**2) in reason


def test_a_gif_frame_larger_than_its_screen_is_refused() -> None:
    data = bytearray(encoded(Image.new("L", (4, 4)), "GIF"))
    at = data.index(b"\x2c") + 5
    data[at : at + 4] = struct.pack("<HH", 50_000, 50_000)
    assert "pixels" in _failure(bytes(data))


@given(
    format_=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PNG 16", "TIFF 16"]),
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4),
)
@quick
def test_a_damaged_image_is_an_image_or_an_image_error(
    format_: str, damage: list[tuple[float, bytes]]
) -> None:
    pixels = smooth_pixels(24, 32)
    format_, _, bits = format_.partition(" ")
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 99) if bits else pixels
    data = bytearray(encoded(image, format_))
    for where, bytes_ in damage:
        at = int(where * len(data))
        data[at : at + len(bytes_)] = bytes_
    with suppress(ImageError):
        assert d.decode(bytes(data), SHAPES).pixels.shape[:2] in SHAPES
