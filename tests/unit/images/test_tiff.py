"""Tests of TIFF: every supported layout gives the values of independent decoders."""

import io
import zlib
from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.images import decode as d
from tests.support.builders import encoded, smooth_pixels, tiff_by_hand

H, W = 40, 56
EXACT = 1.01
BLOB = smooth_pixels(H, W).astype(np.float64) / 255  # 0 to 1
ALPHA = smooth_pixels(H, W, seed=1)[..., 0].astype(np.float64) / 255
ALPHA[:4] = 0


def _read(data: bytes) -> NDArray[np.float64]:
    image, width, height, name = d.open_rgb(data)
    assert (image.mode, image.size, name) == ("RGB", (width, height), "TIFF")
    return np.asarray(image, np.float64)


def _stretched(values: NDArray[Any], visible: NDArray[np.bool_] | bool = True) -> NDArray[Any]:
    """Values to 0 to 255, by the range of the visible ones."""
    values = values.astype(np.float64)
    seen = values[np.broadcast_to(visible, values.shape)]
    return (values - seen.min()) / (seen.max() - seen.min()) * 255


def _rgb(values: NDArray[Any]) -> NDArray[np.float64]:
    """Grey or RGB as RGB (h, w, 3)."""
    three = values if values.ndim == 3 else values[..., None]
    return np.broadcast_to(three, (*three.shape[:2], 3)).astype(np.float64)


def _differ(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(actual - _rgb(expected)).max())


def _of_type(shares: NDArray[np.float64], kind: str) -> NDArray[Any]:
    """Shares from 0 to 1 as values of a type that are no nominal range, negative where they can."""
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        return (shares * 20 - 5).astype(dtype)
    info = np.iinfo(dtype)
    low, high = (info.min, info.max) if dtype.itemsize == 1 else (info.min * 0.4, info.max * 0.9)
    if dtype.kind == "u" and dtype.itemsize > 1:
        low = info.max * 0.85
    return np.rint(low + shares * (high - low)).astype(dtype)


def _write(values: NDArray[Any], **options: Any) -> bytes:
    """A TIFF by tifffile; that tifffile reads the same samples back is checked."""
    out = io.BytesIO()
    tifffile.imwrite(out, values, metadata=None, **options)
    back = tifffile.TiffFile(io.BytesIO(out.getvalue())).pages[0].asarray()
    np.testing.assert_array_equal(back, values)
    return out.getvalue()


_ORGANISATIONS: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 32), "compression": "zlib"},
    "big": {"bigtiff": True, "byteorder": ">", "rowsperstrip": 7},
    "predicted": {"compression": "zlib", "predictor": True, "byteorder": ">"},
}


def _cases(*kinds: str) -> list[tuple[str, str]]:
    """Types with the organisations that tifffile writes of them."""
    return [
        (kind, organisation)
        for kind, organisation in product(kinds, _ORGANISATIONS)
        if organisation != "predicted" or kind in ("i1", "i2", "i4", "u2", "u4")
    ]


@pytest.mark.parametrize(
    ("kind", "organisation"),
    _cases("u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"),
)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_of_every_type_is_read(kind: str, photometric: str, organisation: str) -> None:
    values = _of_type(BLOB[..., 0], kind)
    data = _write(values, photometric=photometric, **_ORGANISATIONS[organisation])
    expected = values.astype(np.float64) + 128 if kind == "i1" else _stretched(values)
    assert _differ(_read(data), 255 - expected if photometric == "miniswhite" else expected) < EXACT
    cv2_knows = kind in ("u2", "i2", "i4", "f4", "f8") and "big" not in organisation
    if cv2_knows and photometric == "minisblack":
        by_cv2 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert by_cv2 is not None
        assert _differ(_read(data), _stretched(by_cv2)) < EXACT


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(("kind", "organisation"), _cases("u2", "u4", "i2", "f2", "f4", "f8"))
def test_rgb_of_every_type_has_one_range(kind: str, organisation: str, planar: str) -> None:
    values = _of_type(BLOB, kind)
    stored = values if planar == "contig" else np.ascontiguousarray(values.transpose(2, 0, 1))
    options = _ORGANISATIONS[organisation] | {"planarconfig": planar}
    assert _differ(_read(_write(stored, photometric="rgb", **options)), _stretched(values)) < EXACT


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("organisation", ["strips", "tiles"])
def test_alpha_is_laid_on_white_other_samples_left_out(
    kind: str, photometric: str, extra: str, planar: str, organisation: str
) -> None:
    colours = BLOB if photometric == "rgb" else BLOB[..., :1]
    full = 1.0 if kind[0] == "f" else float(np.iinfo(kind).max)
    stored = colours * ALPHA[..., None] if extra == "assocalpha" else colours
    samples = np.dstack([stored, ALPHA]) * full
    samples = (samples if kind[0] == "f" else np.rint(samples)).astype(kind)
    laid = samples if planar == "contig" else np.ascontiguousarray(samples.transpose(2, 0, 1))
    options = _ORGANISATIONS[organisation] | {"planarconfig": planar, "extrasamples": [extra]}
    actual = _read(_write(laid, photometric=photometric, **options))
    visible = (ALPHA > 0)[..., None] if extra != "unspecified" else True
    expected = colours * 255 if kind == "u1" else _stretched(colours, visible)
    if extra != "unspecified":
        expected = expected * ALPHA[..., None] + 255 * (1 - ALPHA[..., None])
        assert (actual[:4] == 255).all()
    tolerance = 3 if extra == "assocalpha" and kind == "u1" else EXACT  # rounded, then divided
    assert _differ(actual, expected) < tolerance


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("organisation", ["strips", "tiles", "big"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb", "separated"])
def test_eight_bits_keep_their_values(photometric: str, organisation: str, planar: str) -> None:
    channels = {"rgb": 3, "separated": 4}.get(photometric, 1)
    values = np.dstack([smooth_pixels(H, W), smooth_pixels(H, W, seed=1)])[..., :channels] // 2 + 60
    expected = values.astype(np.float64)
    if photometric == "miniswhite":
        expected = 255 - expected
    elif photometric == "separated":
        expected = (255 - expected[..., :3]) * (255 - expected[..., 3:]) / 255
    options = dict(_ORGANISATIONS[organisation])
    if channels > 1:
        options["planarconfig"] = planar
    stored = values[..., 0] if channels == 1 else values
    if channels > 1 and planar == "separate":
        stored = np.ascontiguousarray(values.transpose(2, 0, 1))
    assert _differ(_read(_write(stored, photometric=photometric, **options)), expected) < EXACT


def _pack(values: NDArray[np.integer[Any]], bits: int) -> NDArray[np.uint8]:
    """Rows of samples in as few bytes as they need, the highest bit first."""
    digits = values.reshape(len(values), -1)[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1)


def _tags(bits: int, photometric: int, samples: int = 1, **more: int) -> dict[int, Any]:
    names = {"compression": 259, "fill": 266, "rows": 278, "kind": 339, "extra": 338, "planar": 284}
    tags: dict[int, Any] = {256: [W], 257: [H], 258: [bits] * samples, 262: [photometric]}
    tags |= {277: [samples], 278: [H]}
    return tags | {names[name]: [value] for name, value in more.items()}


@pytest.mark.parametrize("fill", [1, 2])
@pytest.mark.parametrize(
    ("bits", "samples", "photometric"),
    [*product(range(1, 17), [1], [0, 1]), (4, 3, 2), (12, 3, 2)],
)
def test_samples_of_any_number_of_bits_are_read(
    bits: int, samples: int, photometric: int, fill: int
) -> None:
    values = np.rint(BLOB[..., :samples] * (2**bits - 1)).astype(np.int64)
    rows = _pack(values, bits) if bits != 16 else values.reshape(H, -1).astype(">u2").view(np.uint8)
    strips = [rows[:30].tobytes(), rows[30:].tobytes()]
    if fill == 2:
        strips = [bytes(int(f"{byte:08b}"[::-1], 2) for byte in strip) for strip in strips]
    data = tiff_by_hand(_tags(bits, photometric, samples, fill=fill, rows=30), strips, ">")
    expected = values / (2**bits - 1) * 255 if bits <= 8 else _stretched(values)
    assert _differ(_read(data), expected if photometric else 255 - expected) < EXACT


def test_white_of_twelve_bits_is_white_as_opencv_reads_it() -> None:
    values = np.rint(BLOB[..., 0] * 4095).astype(np.int64)
    data = tiff_by_hand(_tags(12, 1), [_pack(values, 12).tobytes()])
    by_cv2 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(by_cv2, values << 4)
    assert _differ(_read(data), _stretched(by_cv2)) < EXACT


@pytest.mark.parametrize(
    ("kind", "predictor", "compression"),
    [
        *product(["u2", "f4"], [1, 2], ["tiff_lzw", "tiff_deflate", "lzma", "zstd"]),
        *product(["f4"], [3], ["tiff_lzw", "tiff_deflate", "lzma", "zstd"]),
        *product(["u2", "f4"], [1], ["packbits"]),
    ],
)
def test_compressions_and_predictors_of_libtiff_are_undone(
    kind: str, predictor: int, compression: str
) -> None:
    values = _of_type(BLOB[..., 0], kind)
    info = {317: predictor, 278: 7} if predictor > 1 else {278: 7}
    data = encoded(Image.fromarray(values), "TIFF", compression=compression, tiffinfo=info)
    assert tifffile.TiffFile(io.BytesIO(data)).pages[0].predictor == predictor
    assert _differ(_read(data), _stretched(values)) < EXACT


@pytest.mark.parametrize("compression", [1, 32773])
def test_predictor_without_effect_is_ignored_like_libtiff(compression: int) -> None:
    values = _of_type(BLOB[..., 0], "u2")
    strip = values.astype("<u2").tobytes()
    if compression == 32773:  # runs of literal bytes
        strip = b"".join(b"\x7f" + strip[i : i + 128] for i in range(0, len(strip), 128))
    data = tiff_by_hand(_tags(16, 1, compression=compression) | {317: [2]}, [strip])
    by_cv2 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(by_cv2, values)
    assert _differ(_read(data), _stretched(values)) < EXACT


def test_what_opencv_compresses_is_read() -> None:
    values = _of_type(BLOB, "u2")
    data = cv2.imencode(".tif", values[..., ::-1])[1].tobytes()
    assert tifffile.TiffFile(io.BytesIO(data)).pages[0].compression == tifffile.COMPRESSION.LZW
    assert _differ(_read(data), _stretched(values)) < EXACT


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("unit", [1, 257])
def test_colour_maps_of_either_scale_are_followed(bits: int, unit: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 2**bits))
    indices = (smooth_pixels(H, W)[..., 0].astype(np.int64) * (2**bits - 1)) // 255
    content = _pack(indices, bits) if bits < 16 else indices.astype("<u2")
    tags = _tags(bits, 3) | {320: (colours * unit).ravel().tolist()}
    data = tiff_by_hand(tags, [content.tobytes()])
    assert _differ(_read(data), colours.T[indices]) < EXACT


def test_ink_of_sixteen_bits_is_printed_on_white() -> None:
    inks = np.dstack([BLOB, ALPHA])
    data = _write(np.rint(inks * 65535).astype(np.uint16), photometric="separated")
    paper = (1 - inks[..., :3]) * (1 - inks[..., 3:])
    assert _differ(_read(data), _stretched(paper)) < EXACT


@pytest.mark.parametrize("mode", ["RGB", "YCbCr"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_ycbcr_is_what_opencv_sees(compression: str, mode: str) -> None:
    image = Image.fromarray(smooth_pixels(48, 64)).convert(mode)
    data = encoded(image, "TIFF", compression=compression)
    by_cv2 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(_read(data) - by_cv2).max() < EXACT


def test_lab_is_converted() -> None:
    pixels = smooth_pixels(48, 64)
    data = encoded(Image.fromarray(pixels).convert("LAB"), "TIFF")
    assert np.abs(_read(data) - pixels).mean() < 1.5  # of 8 bits, also for L*a*b*


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone_once(orientation: int) -> None:
    upright = _of_type(BLOB[..., 0], "u2")
    turned = np.asarray(Image.fromarray(upright.astype(np.int32)).transpose(_STORED[orientation])
                        if orientation in _STORED else upright).astype(np.uint16)  # fmt: skip
    data = _write(turned, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    assert _differ(_read(data), _stretched(upright)) < EXACT


_STORED = {  # what a camera did to the upright image
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("compression", [1, 8])
def test_strips_that_gdal_left_out_are_nodata(compression: int) -> None:
    rows = np.rint(BLOB[:20, :, 0] * 30000 + 100).astype("<u2").tobytes()
    strip = zlib.compress(rows) if compression == 8 else rows
    tags = _tags(16, 1, compression=compression, rows=20)
    at = len(tiff_by_hand(tags | {273: [1, 0]}, [strip, b""])) - len(strip)
    data = tiff_by_hand(tags | {273: [at, 0]}, [strip, b""])
    result = _read(data)
    assert (result[20:] == 0).all()  # no tag says what stands for no value: 0
    data = tiff_by_hand(tags | {273: [at + 12, 0], 42113: "0\0"}, [strip, b""])
    assert (_read(data)[20:] == 255).all()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("f4", "-9999\0", -9999), ("f4", "-9999.0 \0", -9999), ("f8", "-3.4e38\0", -3.4e38),
        ("f4", "-3.4028234663852886e+38\0", np.finfo("f4").min), ("f4", "nan\0", np.nan),
        ("f4", "0.1\0", 0.1), ("u2", "65535\0", 65535), ("u2", "0\0", 0),
        ("i2", "-32768\0", -32768),
        ("u8", "18446744073709551615\0", 2**64 - 1), ("u4", "1e3\0", 1000),
    ],
)  # fmt: skip
def test_gdal_nodata_is_white_and_ignored_by_scaling(kind: str, text: str, value: float) -> None:
    values = (BLOB[..., 0] * 20 + 290).astype(kind)
    values[:, :9] = value
    data = _write(values, photometric="minisblack", extratags=[(42113, "s", 0, text, True)])
    assert tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[42113].value.strip("\0 ") in text
    expected = _stretched(values, np.broadcast_to(np.arange(W) >= 9, (H, W)))
    actual = _read(data)
    assert (actual[:, :9] == 255).all()
    assert _differ(actual[:, 9:], expected[:, 9:]) < EXACT


@pytest.mark.parametrize("text", ["\0", "none\0", "70000\0", "-1\0", "0.5\0", "1 2\0", "1e999\0"])
def test_nodata_that_no_sample_can_have_is_none(text: str) -> None:
    values = _of_type(BLOB[..., 0], "u2")
    data = _write(values, photometric="minisblack", extratags=[(42113, "s", 0, text, True)])
    assert _differ(_read(data), _stretched(values)) < EXACT


def test_reversed_bits_are_turned_before_inflation() -> None:
    values = _of_type(BLOB[..., 0], "u2")
    strip = zlib.compress(values.astype("<u2").tobytes())
    strip = bytes(int(f"{byte:08b}"[::-1], 2) for byte in strip)
    data = tiff_by_hand(_tags(16, 1, compression=8, fill=2), [strip])
    by_cv2 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(by_cv2, values)
    assert _differ(_read(data), _stretched(values)) < EXACT


def test_more_extra_samples_beside_rgb_are_left_out() -> None:
    values = np.dstack([smooth_pixels(H, W), smooth_pixels(H, W, seed=1)])
    for kind, planar in product(("u1", "u2"), ("contig", "separate")):
        stored = values.astype(kind) * (1 if kind == "u1" else 257)
        if planar == "separate":
            stored = np.ascontiguousarray(stored.transpose(2, 0, 1))
        extras = ["unspecified", "unspecified", "unspecified"]
        data = _write(stored, photometric="rgb", planarconfig=planar, extrasamples=extras)
        expected = values[..., :3] if kind == "u1" else _stretched(values[..., :3])
        assert _differ(_read(data), expected) < EXACT


def test_a_fourth_sample_beside_rgb_without_a_tag_is_alpha() -> None:
    values = np.dstack([BLOB, ALPHA])
    for bits in (8, 16):
        samples = np.rint(values * (2**bits - 1)).astype(f"<u{bits // 8}")
        result = _read(tiff_by_hand(_tags(bits, 2, 4), [samples.tobytes()]))
        assert (result[:4] == 255).all()
        result = _read(tiff_by_hand(_tags(bits, 2, 4, extra=999), [samples.tobytes()]))
        assert (result[:4] == 255).all()
