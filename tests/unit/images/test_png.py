"""Tests of PNG: every depth, transparency of every kind, damaged ancillary chunks."""

import struct
import zlib
from itertools import product

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.common.errors import ImageError
from segrec_batch.images import decode as d
from segrec_batch.images.png import SIGNATURE
from tests.support.builders import encoded, smooth_pixels

EXACT = 1.01
H, W = 24, 40
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _chunk(kind: bytes, body: bytes, damage: int = 0) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(
        ">I", zlib.crc32(kind + body) ^ damage
    )  # fmt: skip


def _png(samples: NDArray[np.integer], depth: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG of samples (h, w, channels), with chunks before the pixels."""
    height, width, _ = samples.shape
    if depth == 16:
        rows = samples.reshape(height, -1).astype(">u2").view(np.uint8)
    else:
        digits = samples.reshape(height, -1)[..., None] >> np.arange(depth - 1, -1, -1) & 1
        rows = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    pixels = [_chunk(b"IDAT", zlib.compress(raw)), _chunk(b"IEND", b"")]
    return SIGNATURE + header + b"".join(chunks) + b"".join(pixels)


def _read(data: bytes) -> NDArray[np.float64]:
    image, width, height, name = d.open_rgb(data)
    assert (image.size, width, height, name) == ((W, H), W, H, "PNG")
    return np.asarray(image, np.float64)


def _samples(colour: int, depth: int, low: float = 0, high: float = 1) -> NDArray[np.int64]:
    shares = np.dstack([smooth_pixels(H, W), smooth_pixels(H, W, seed=1)])[..., : CHANNELS[colour]]
    return np.rint((low + shares / 255 * (high - low)) * (2**depth - 1)).astype(np.int64)


def _stretched(values: NDArray[np.generic]) -> NDArray[np.float64]:
    values = values.astype(np.float64)
    return (values - values.min()) / np.ptp(values) * 255


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1 / 256), (0.4, 0.5), (0, 1 / 16)])
def test_sixteen_bits_keep_their_levels(colour: int, low: float, high: float) -> None:
    samples = _samples(colour, 16, low, high)
    colours = samples
    if colour in (4, 6):
        samples[..., -1] = 65535
        colours = samples[..., :-1]
    data = _png(samples, 16, colour)
    by_cv2 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    bgr = by_cv2.reshape(H, W, -1)[..., :3]
    np.testing.assert_array_equal(bgr[..., ::-1], np.broadcast_to(colours, bgr.shape))
    assert np.abs(_read(data) - _stretched(colours)).max() < EXACT


@pytest.mark.parametrize("colour", [2, 6])
def test_filters_of_sixteen_bits_are_undone_as_opencv_does(colour: int) -> None:
    samples = np.random.default_rng(colour).integers(0, 65536, (H, W, CHANNELS[colour]))
    if colour == 6:
        samples[..., 3] = 65535
    stored = samples[..., [2, 1, 0, 3][: CHANNELS[colour]]].astype(np.uint16)
    filtered = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_ALL_FILTERS]
    data = cv2.imencode(".png", stored, filtered)[1].tobytes()
    assert np.abs(_read(data) - _stretched(samples[..., :3])).max() < EXACT


@pytest.mark.parametrize("colour", [4, 6])
def test_alpha_of_sixteen_bits_is_laid_on_white(colour: int) -> None:
    samples = _samples(colour, 16)
    samples[:3, :, -1] = 0
    samples[:3, :, 0] = 0
    actual = _read(_png(samples, 16, colour))
    colours, alpha = samples[..., :-1], samples[..., -1:] / 65535
    seen = colours[alpha[..., 0] > 0].astype(np.float64)
    expected = (colours - seen.min()) / np.ptp(seen) * 255 * alpha + 255 * (1 - alpha)
    assert np.abs(actual - expected).max() < EXACT
    assert (actual[:3] == 255).all()


@pytest.mark.parametrize(("colour", "depth"), [*product([0], [1, 2, 4, 8, 16]), (2, 8), (2, 16)])
def test_a_transparent_colour_is_white_at_every_depth(colour: int, depth: int) -> None:
    samples = np.minimum(_samples(colour, depth), 2**depth - 2)
    key = 2**depth - 2 if depth < 16 else 12345
    samples[:5] = key
    if depth == 16:
        samples[5:9] = key + 1  # the same in eight bits
    trns = _chunk(b"tRNS", struct.pack(f">{CHANNELS[colour]}H", *[key] * CHANNELS[colour]))
    result = _read(_png(samples, depth, colour, trns))
    hidden = (samples == key).all(axis=-1)
    assert hidden[:5].all()
    assert not hidden.all() or depth == 1
    assert (result[hidden] == 255).all()
    if depth == 1:
        return
    seen = samples[~hidden]
    low, high = (seen.min(), seen.max()) if depth == 16 else (0, 2**depth - 1)
    assert np.abs(result[~hidden] - (seen - low) / (high - low) * 255).max() < EXACT


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparency_of_a_palette_is_laid_on_white(depth: int) -> None:
    samples = _samples(3, depth)
    colours = np.random.default_rng(0).integers(0, 256, (2**depth, 3))
    alpha = np.random.default_rng(1).integers(0, 256, 2**depth)
    alpha[0] = 0
    chunks = (
        _chunk(b"PLTE", bytes(colours.ravel().tolist())),
        _chunk(b"tRNS", bytes(alpha.tolist())),
    )
    share = alpha[samples] / 255
    expected = colours[samples[..., 0]] * share + 255 * (1 - share)
    assert np.abs(_read(_png(samples, depth, 3, *chunks)) - expected).max() < EXACT


@pytest.mark.parametrize("kind", [b"tEXt", b"pHYs", b"tIME", b"tRNS", b"gAMA", b"iCCP"])
def test_damaged_ancillary_chunk_keeps_pixels(kind: bytes) -> None:
    pixels = smooth_pixels(H, W)
    data = encoded(pixels, "PNG")
    for at in (data.index(b"IDAT") - 4, data.index(b"IEND") - 4):
        chunk = _chunk(kind, b"\0\1\0\2\0\3", damage=1)
        result = _read(data[:at] + chunk + chunk + data[at:])
        np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_a_damaged_critical_chunk_is_refused_as_broken(kind: bytes) -> None:
    samples = _samples(3, 8)
    data = bytearray(_png(samples, 8, 3, _chunk(b"PLTE", bytes(768))))
    at = data.index(kind)
    (length,) = struct.unpack_from(">I", data, at - 4)
    data[at + 4 + length] ^= 1
    with pytest.raises(ImageError) as caught:
        d.open_rgb(bytes(data))
    assert "broken" in caught.value.reason
    assert "not an image" not in caught.value.reason


def test_a_header_that_is_not_first_is_refused() -> None:
    data = encoded(smooth_pixels(H, W), "PNG")
    with pytest.raises(ImageError) as caught:
        d.open_rgb(SIGNATURE + _chunk(b"tEXt", b"a\0b") + data[len(SIGNATURE) :])
    assert caught.value.reason == "broken PNG: the header is not the first chunk"


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_a_damaged_file_is_read_right_or_refused(mode: str) -> None:
    """Cut off at any length, and with a bit turned anywhere: never other pixels."""
    top = 65536 if mode == "I;16" else 256
    shape = (9, 11, 3) if mode == "RGB" else (9, 11)
    pixels = np.random.default_rng(0).integers(0, top, shape, np.uint16 if top > 256 else np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG")
    expected = np.asarray(d.open_rgb(data)[0])
    damaged = [data[:n] for n in range(len(data))]
    damaged += [data[:i] + bytes([data[i] ^ 32]) + data[i + 1 :] for i in range(len(data))]
    refused = 0
    for content in damaged:
        try:
            np.testing.assert_array_equal(d.open_rgb(content)[0], expected)
        except ImageError:
            refused += 1
    assert refused > len(damaged) - 40  # what comes after the last pixel may be anything
