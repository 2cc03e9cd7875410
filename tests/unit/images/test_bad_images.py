"""Tests of hostile and odd images in the sandbox: bounded time and memory, reasons.

What the decoders cannot tell, and no test here asks of them: that a file's tail was overwritten
(with zeros, say), not cut off, where any bytes are pixels: baseline JPEG, WEBP, BMP, uncompressed
TIFF, PNG of mere noise.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segrec_batch.common.errors import ImageError
from segrec_batch.images import decode as d
from segrec_batch.images.sandbox import Sandbox
from tests.support.builders import encoded, png_by_hand, slow_jpeg, smooth_pixels

SHAPES = d.shapes_of_size(64, 16)
MEMORY = 2**28
RESIDENT = 160 * 2**20  # greatest resident size of a child, of which 35 MiB are Python and Pillow


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(memory=MEMORY, seconds=20) as box:
        yield box


@pytest.fixture
def fresh() -> Iterator[Sandbox]:
    with Sandbox(memory=MEMORY, seconds=20) as box:
        yield box


def _peak(box: Sandbox) -> int:
    """Greatest resident size so far of the child, in bytes."""
    status = Path(f"/proc/{box.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _reason(box: Sandbox, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        box.decode(data, SHAPES)
    assert caught.value.stage == "decode"
    return caught.value.reason


def _png_with(kind: bytes, body: bytes, times: int = 1) -> bytes:
    """A good image with chunks of a kind before its pixels."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    data = encoded(smooth_pixels(32, 48), "PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + chunk * times + data[at:]


def _deflated(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * 10**6), 9)


@pytest.mark.parametrize(
    ("kind", "head", "times", "megabytes"),
    [
        (b"zTXt", b"k\0\0", 1, 100),
        (b"iTXt", b"k\0\1\0\0\0", 1, 100),
        (b"iCCP", b"k\0\0", 1, 100),
        (b"zTXt", b"k\0\0", 100, 1),
    ],
)
def test_compressed_text_that_unfolds_to_much_is_refused(
    fresh: Sandbox, kind: bytes, head: bytes, times: int, megabytes: int
) -> None:
    reason = _reason(fresh, _png_with(kind, head + _deflated(megabytes), times))
    assert "too large" in reason or "Too much memory" in reason
    assert _peak(fresh) < RESIDENT


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_frames_after_the_first_cost_nothing(fresh: Sandbox, format_: str) -> None:
    frames = [Image.new("RGB", (200, 150), (i, 255 - i, 0)) for i in range(150)]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
    image = fresh.decode(data, SHAPES)
    assert (image.width, image.height) == (200, 150)
    assert abs(image.pixels.astype(int) - (0, 255, 0)).max() <= 8
    assert _peak(fresh) < RESIDENT


def _tiff(side: int, tiles: int, compression: int, bits: int = 8) -> bytes:
    """A grey TIFF of side² pixels that claims a number of tiles, 1 x 1 or 16 x 16, and has none."""
    tile = 16 if side % 16 == 0 else 1
    long, short = 4, 3
    fields = [
        (256, long, 1, side), (257, long, 1, side), (258, short, 1, bits),
        (259, short, 1, compression), (262, short, 1, 1), (277, short, 1, 1),
        (322, long, 1, tile), (323, long, 1, tile), (324, long, tiles, 8), (325, long, tiles, 8),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(1000)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize(("side", "tiles"), [(13_008, 2**31), (13_008, 813**2), (9_999, 9_999**2)])
def test_tiles_that_are_not_there_are_not_allocated(
    fresh: Sandbox, side: int, tiles: int, compression: int, bits: int
) -> None:
    reason = _reason(fresh, _tiff(side, tiles, compression, bits))
    assert "decoder error" in reason or "truncated" in reason
    assert _peak(fresh) < RESIDENT


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "zstd", "lzma"])
def test_strips_larger_than_memory_are_reported(box: Sandbox, compression: str) -> None:
    image = Image.fromarray(np.zeros((9_000, 9_000), np.uint16))
    data = encoded(image, "TIFF", compression=compression, tiffinfo={278: 9_000})
    assert len(data) < 600_000
    assert _reason(box, data) == "needs more than 0.25 GiB of memory"
    assert box.decode(encoded(smooth_pixels(48, 80), "PNG"), SHAPES).width == 80


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 16_000), (16_000, 10), (2000, 2000)])
def test_images_of_extreme_shape_take_little_memory(
    box: Sandbox, format_: str, width: int, height: int
) -> None:
    image = box.decode(encoded(smooth_pixels(height, width), format_), SHAPES)
    assert (image.width, image.height, image.format) == (width, height, format_)
    assert _peak(box) < RESIDENT


@pytest.mark.parametrize(("depth", "row"), [(1, 1 + 1_125), (8, 1 + 9_000), (16, 1 + 18_000)])
def test_image_larger_than_memory_limit_is_reported(box: Sandbox, depth: int, row: int) -> None:
    data = png_by_hand(9_000, 9_000, depth, colour=0, raw=bytes(row * 9_000))
    assert len(data) < 200_000
    assert _reason(box, data) == "needs more than 0.25 GiB of memory"
    assert box.decode(encoded(smooth_pixels(48, 80), "PNG"), SHAPES).width == 80


@pytest.mark.parametrize("format_", ["TIFF", "WEBP", "PNG"])
def test_a_large_image_leaves_the_child_small(format_: str) -> None:
    options = {"compression": "tiff_lzw"} if format_ == "TIFF" else {}
    data = encoded(Image.new("RGB", (5000, 5000), "#456"), format_, **options)
    with Sandbox(memory=2**30) as box:
        box.decode(data, SHAPES)
        assert _peak(box) > 100 * 2**20
        status = Path(f"/proc/{box.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 80_000  # kilobytes


@pytest.mark.slow
def test_a_jpeg_of_very_many_scans_is_stopped() -> None:
    bomb = slow_jpeg()
    assert len(bomb) < 200_000
    with Sandbox(seconds=1) as box:
        assert _reason(box, bomb) == "took longer than 1 s"
        assert box.decode(encoded(smooth_pixels(48, 80), "JPEG"), SHAPES).width == 80


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("PNG", {}), ("GIF", {}), ("JPEG", {"progressive": True}),
        ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_an_image_whose_tail_is_zeros_is_refused(
    box: Sandbox, format_: str, options: dict[str, object], quarters: int
) -> None:
    data = encoded(smooth_pixels(300, 400), format_, **options)
    kept = len(data) * quarters // 4
    assert _reason(box, data[:kept] + bytes(len(data) - kept))


def _broken_exif() -> bytes:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"
    return encoded(smooth_pixels(48, 80), "JPEG", exif=exif)


def _palette_with_transparency_as_bytes() -> bytes:
    image = Image.fromarray(smooth_pixels(48, 80)).quantize(16)
    return encoded(image, "PNG", transparency=bytes(range(0, 256, 16)))


def _many_pixels() -> bytes:
    return encoded(Image.new("1", (10_000, 10_000)), "PNG")  # above Pillow's first bound


@pytest.mark.parametrize("make", [_broken_exif, _palette_with_transparency_as_bytes, _many_pixels])
def test_what_pillow_warns_of_does_not_reach_the_log(
    make: Callable[[], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    data = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        d.decode(data, SHAPES)
    assert not caught
    assert tuple(capfd.readouterr()) == ("", "")
