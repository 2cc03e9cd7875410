"""What is no whole picture of bearable size is refused: PictureError, stage and reason."""

import resource
import struct
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segrec_batch import decode as d
from segrec_batch.errors import PictureError
from tests.builders import encoded, noise_pixels, png_by_hand, quick, smooth_pixels

SHAPES = d.shapes_of_size(64)


def _failure(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
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
        ("BMP", {}),
    ],
)  # fmt: skip
def test_a_truncated_picture_is_refused(
    format_: str, options: dict[str, object], quarters: int
) -> None:
    data = encoded(noise_pixels(60, 80), format_, **options)
    reason = _failure(data[: len(data) * quarters // 4])
    assert "truncated" in reason or "decoder" in reason or reason == "not a picture"


def test_what_is_no_picture_is_named_so() -> None:
    assert _failure(b"") == "empty file"
    assert _failure(b"<!DOCTYPE html><html><body>404 Not Found</body></html>") == "not a picture"
    assert _failure(bytes(1000)) == "not a picture"
    assert _failure(b"\xff\xd8\xff") != ""


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
def test_a_bomb_is_refused_before_its_pixels_are_allocated(format_: str, side: int) -> None:
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
    format_=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4),
)
@quick
def test_a_damaged_picture_is_a_picture_or_a_picture_error(
    format_: str, damage: list[tuple[float, bytes]]
) -> None:
    data = bytearray(encoded(smooth_pixels(24, 32), format_))
    for where, bytes_ in damage:
        at = int(where * len(data))
        data[at : at + len(bytes_)] = bytes_
    with suppress(PictureError):
        assert d.decode(bytes(data), SHAPES).pixels.shape[:2] in SHAPES
