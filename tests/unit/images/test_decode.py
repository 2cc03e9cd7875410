"""Tests of decoding: images of every kind become upright RGB of a known shape."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from segrec_batch.common.errors import ImageError
from segrec_batch.images import decode as d
from tests.support.builders import encoded, quick, smooth_pixels

SHAPES = d.shapes_of_size(64, 16)
EXACT, LOSSY = 1.01, 4.0  # greatest, or for lossy formats mean, difference of a value from 0 to 255
FAULTS = Path(__file__).parents[4] / "shared" / "faults"
needs_faults = pytest.mark.skipif(not FAULTS.is_dir(), reason="the inputs are not here")
sizes = st.integers(1, 5000)


def _on_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return np.asarray(rgb * share + 255 * (1 - share))


def _image(mode: str) -> tuple[Image.Image, NDArray[np.float64]]:
    """An image of 48 x 32 in a mode, and the RGB values (32, 48, 3) that it stands for."""
    rgb = smooth_pixels(32, 48)
    grey, alpha, wide = rgb[..., 0], rgb[..., 1], rgb[..., 2].astype(np.int64) * 257
    one = np.broadcast_to(grey[..., None], rgb.shape)
    index, palette = rgb[..., 0] // 16, smooth_pixels(16, 1, seed=1)[:, 0]
    if mode == "1":
        return Image.fromarray(grey > 127), np.where(one > 127, 255.0, 0.0)
    if mode == "L":
        return Image.fromarray(grey), one.astype(np.float64)
    if mode == "LA":
        return Image.fromarray(np.dstack([grey, alpha])), _on_white(one, alpha)
    if mode.startswith("P"):
        image = Image.fromarray(index)
        image.putpalette(palette.tobytes())
        if mode == "P":
            return image, palette[index].astype(np.float64)
        image.info["transparency"] = 3
        return image, _on_white(palette[index], np.where(index == 3, 0, 255).astype(np.uint8))
    if mode == "RGBA":
        return Image.fromarray(np.dstack([rgb, alpha])), _on_white(rgb, alpha)
    if mode == "CMYK":
        cmyk = np.dstack([rgb, grey // 2])
        ink = (255 - cmyk[..., :3].astype(np.float64)) * (255 - cmyk[..., 3:]) / 255
        return Image.fromarray(cmyk, "CMYK"), ink
    if mode in ("I;16", "I;16B"):
        kind = ">u2" if mode == "I;16B" else "<u2"
        stretched = (wide - wide.min()) / np.ptp(wide) * 255
        return Image.fromarray(wide.astype(kind)), np.dstack([stretched] * 3)
    if mode in ("I", "F"):
        values = wide * 1000 - 7 if mode == "I" else wide / 1e6 - 0.01
        stretched = (values - values.min()) / np.ptp(values) * 255
        image = Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
        return image, np.dstack([stretched] * 3)
    return Image.fromarray(rgb), rgb.astype(np.float64)


@pytest.mark.parametrize(
    ("format_", "mode"),
    [
        *(("PNG", m) for m in ("1", "L", "LA", "P", "P+transparency", "RGB", "RGBA", "I;16")),
        *(("TIFF", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")),
        *(("TIFF", m) for m in ("I;16", "I;16B", "I", "F")),
        *(("GIF", m) for m in ("1", "L", "P", "P+transparency")),
        *(("BMP", m) for m in ("1", "L", "P", "RGB")),
        *(("WEBP", m) for m in ("RGB", "RGBA")),
        *(("JPEG", m) for m in ("L", "RGB", "CMYK")),
    ],
)
def test_every_format_and_mode_becomes_rgb(format_: str, mode: str) -> None:
    image, expected = _image(mode)
    options = {"WEBP": {"lossless": True, "exact": True}, "JPEG": {"quality": 95}}
    actual, width, height, name = d.open_rgb(encoded(image, format_, **options.get(format_, {})))
    assert (actual.mode, width, height, name) == ("RGB", 48, 32, format_)
    difference = np.abs(np.asarray(actual, np.float64) - expected)
    assert (difference.mean() < LOSSY) if format_ == "JPEG" else (difference.max() < EXACT)


def test_a_transparent_colour_of_an_rgb_image_is_white() -> None:
    pixels = np.full((8, 8, 3), (10, 20, 30), np.uint8)
    pixels[2:4] = (200, 100, 50)
    result, *_ = d.open_rgb(encoded(pixels, "PNG", transparency=(200, 100, 50)))
    assert np.asarray(result)[3, 3].tolist() == [255, 255, 255]
    assert np.asarray(result)[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("format_", ["GIF", "TIFF", "WEBP", "PNG"])
def test_only_the_first_frame_counts(format_: str) -> None:
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("#ff0000", "#0000ff"))
    lossless = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(first, format_, save_all=True, append_images=[second], **lossless)
    pixels = d.decode(data, SHAPES).pixels
    assert (pixels == (255, 0, 0)).mean() > 0.99


def _stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return the pixels that a camera stores of an upright image (EXIF 2.32, tag 0x0112)."""
    rows_first = {  # orientation: row 0 and column 0 of the file are which sides of the image?
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright[:, ::-1].swapaxes(0, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: upright[::-1].swapaxes(0, 1),  # left, bottom
    }
    return np.ascontiguousarray(rows_first[orientation])


def _turned(upright: NDArray[np.uint8], orientation: int, format_: str) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(_stored(upright, orientation), format_, exif=exif)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(format_: str, orientation: int) -> None:
    upright = smooth_pixels(48, 80)
    result, width, height, _ = d.open_rgb(_turned(upright, orientation, format_))
    assert (width, height) == result.size == (80, 48)
    assert np.abs(np.asarray(result, np.float64) - upright).mean() < LOSSY


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_jpeg_at_reduced_scale_is_close_to_full_one(orientation: int) -> None:
    data = _turned(smooth_pixels(300, 400, cells=12), orientation, "JPEG")
    full, *_ = d.open_rgb(data)
    reduced, width, height, _ = d.open_rgb(data, SHAPES)
    shape = d.nearest_shape(SHAPES, height, width)
    assert (width, height) == full.size == (400, 300)
    assert full.width > reduced.width >= shape[1]
    assert full.height > reduced.height >= shape[0]
    pixels = d.decode(data, SHAPES).pixels
    assert pixels.shape == (*shape, 3)
    assert np.abs(pixels.astype(np.float64) - d.fit(full, SHAPES)).mean() < LOSSY


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    assert d.open_rgb(encoded(smooth_pixels(48, 80), "JPEG", exif=exif))[1:3] == (80, 48)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_make_an_image_unreadable() -> None:
    data = encoded(smooth_pixels(48, 80), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")
    assert d.open_rgb(data)[1:3] == (80, 48)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 10), (10, 20_000)])
def test_images_of_extreme_shape_are_read(width: int, height: int) -> None:
    image = d.decode(encoded(smooth_pixels(height, width), "PNG"), SHAPES)
    assert (image.width, image.height, image.format) == (width, height, "PNG")
    assert image.pixels.shape[:2] == d.nearest_shape(SHAPES, height, width)
    assert image.pixels.flags.writeable


@given(size=st.integers(16, 2000))
@quick
def test_shapes_are_strides_of_equal_area_and_symmetric(size: int) -> None:
    shapes = d.shapes_of_size(size, 16)
    assert all(side % 16 == 0 and side > 0 for shape in shapes for side in shape)
    assert [(w, h) for h, w in reversed(shapes)] == list(shapes)
    assert sorted(shapes, key=lambda s: s[1] / s[0]) == list(shapes)
    # half a stride, 8, of rounding on each side, worst at 3:1
    tolerance = 8 * (3**0.5 + 3**-0.5) / size + 64 / size**2
    assert all(abs(h * w / size**2 - 1) <= tolerance + 1e-9 for h, w in shapes)


@given(size=st.integers(32, 1000), height=sizes, width=sizes)
@quick
def test_transposing_an_image_transposes_its_shape(size: int, height: int, width: int) -> None:
    shapes = d.shapes_of_size(size, 16)
    gaps = sorted({abs(np.log(w / h) - np.log(width / height)) for h, w in shapes})
    assume(len(gaps) == 1 or gaps[1] - gaps[0] > 1e-9)  # no tie
    h, w = d.nearest_shape(shapes, height, width)
    assert d.nearest_shape(shapes, width, height) == (w, h)
    assert abs(np.log(w / h) - np.log(width / height)) <= gaps[0] + 1e-9


@given(height=st.integers(1, 30_000), width=st.integers(1, 30_000))
@quick
def test_masks_keep_size_and_aspect_up_to_1024(height: int, width: int) -> None:
    h, w = d.mask_shape(height, width)
    assert d.mask_shape(width, height) == (w, h)
    if max(height, width) <= 1024:
        assert (h, w) == (height, width)
    else:
        scale = 1024 / max(height, width)
        assert max(h, w) == 1024
        assert abs(h - max(1, height * scale)) <= 0.5 + 1e-9
        assert abs(w - max(1, width * scale)) <= 0.5 + 1e-9


def _fault(name: str) -> NDArray[np.float64]:
    image, *_ = d.open_rgb((FAULTS / name).read_bytes())
    return np.asarray(image, np.float64)


def _levels(name: str) -> int:
    return len(np.unique(_fault(name)))


@needs_faults
@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("miniswhite16.tif", "miniswhite8.tif"), ("miniswhiteF.tif", "miniswhite8.tif"),
        ("thermal_u16.tif", "thermal_i32.tif"), ("g16_8bit.png", "thermal_i32.tif"),
        ("g16_10bit.png", "thermal_i32.tif"), ("g16_12bit.png", "thermal_i32.tif"),
        ("g12.tif", "thermal_i32.tif"), ("u32.tif", "thermal_i32.tif"),
        ("i8.tif", "thermal_i32.tif"), ("i16neg.tif", "thermal_i32.tif"),
        ("float16.tif", "float64.tif"),
    ],
)  # fmt: skip
def test_the_same_scene_is_read_the_same_from_every_type(name: str, like: str) -> None:
    assert np.corrcoef(_fault(name).ravel(), _fault(like).ravel())[0, 1] > 0.9999
    assert (_levels(name), _fault(name).min(), _fault(name).max()) == (254, 0, 255)


@needs_faults
@pytest.mark.parametrize("name", ["nan_border", "nodata9999", "nodata_min"])
def test_nodata_is_white_and_keeps_contrast(name: str) -> None:
    result, plain = _fault(f"float_{name}.tif"), _fault("float_plain.tif")
    inner = np.s_[12:-12, 12:-12]
    assert np.corrcoef(result[inner].ravel(), plain[inner].ravel())[0, 1] > 0.9999
    assert _levels(f"float_{name}.tif") > 250
    with pytest.raises(ImageError, match="no pixel has a value"):
        _fault("float_allnan.tif")


@needs_faults
def test_transparent_colours_of_sixteen_bits_are_white() -> None:
    for name in ("rgb16_trns.png", "g16_trns.png"):
        by_cv2 = cv2.imread(str(FAULTS / name), cv2.IMREAD_UNCHANGED)
        grey = name == "g16_trns.png"
        raw = np.asarray(Image.open(FAULTS / name)) if grey else by_cv2
        key = Image.open(FAULTS / name).info["transparency"]
        hidden = raw == key if grey else by_cv2[..., 3] == 0
        assert hidden.any()
        assert (_fault(name)[hidden] == 255).all()
        assert (_fault(name)[~hidden] < 255).any()


@needs_faults
def test_other_layouts_are_read_or_named() -> None:
    rgb = tifffile.imread(FAULTS / "rgb_float.tif").astype(np.float64)
    expected = (rgb - rgb.min()) / np.ptp(rgb) * 255
    assert np.abs(_fault("rgb_float.tif") - expected).max() < EXACT
    grey, alpha = tifffile.imread(FAULTS / "la16.tif").astype(np.float64).transpose(2, 0, 1) / 65535
    seen = grey[alpha > 0]
    laid = (grey - seen.min()) / np.ptp(seen) * alpha + 1 - alpha
    assert np.abs(_fault("la16.tif")[..., 0] - 255 * laid).max() < EXACT
    by_cv2 = cv2.imread(str(FAULTS / "png_bad_anc_crc.png"), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(_fault("png_bad_anc_crc.png"), by_cv2)
    with pytest.raises(ImageError) as caught:
        _fault("multi6_u16.tif")
    named = "TIFF of this layout is not supported: grey, 6 samples of 16-bit unsigned, planar"
    assert caught.value.reason == named
