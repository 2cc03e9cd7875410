"""Tests of the recognition of images by content."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segrec_batch.common.errors import ImageError
from segrec_batch.images import sandbox
from segrec_batch.images.decode import decode
from segrec_batch.sources.recognise import EXTENSIONS, HEAD, are_images, get_extension, is_image
from tests.support.builders import encoded, smooth_pixels

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
SHAPES = ((32, 48),)


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_that_is_decoded_is_recognised(name: str) -> None:
    content = encoded(smooth_pixels(32, 48), name)
    assert is_image(content[:HEAD])
    assert decode(content, SHAPES).format == name


def test_the_extensions_are_those_of_the_formats() -> None:
    registered = Image.registered_extensions()
    known = {registered.get(f".{extension}", "JPEG") for extension in EXTENSIONS}
    assert known == set(FORMATS)


@given(st.binary(max_size=64))
def test_what_is_not_recognised_is_not_decoded(content: bytes) -> None:
    if not is_image(content[:HEAD]):
        with pytest.raises(ImageError):
            decode(content, SHAPES)


@pytest.mark.parametrize(
    "text",
    [b"", b"BM", b"BMW and other cars: a list of them, in Baden", b"%PDF-1.7", b"RIFF....AVI "],
)
def test_other_content_is_not(text: bytes) -> None:
    assert not is_image(text)


@pytest.mark.parametrize(
    ("name", "extension"),
    [("a.JPG", "jpg"), ("a", ""), ("a.", ""), ("scan.2019", ""), (".jpg", "jpg"), ("a.b c", "")],
)
def test_extensions(name: str, extension: str) -> None:
    assert get_extension(name) == extension


def test_what_cannot_be_read_counts_as_an_image(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    uris = [str(tmp_path / name) for name in ("text", "vanished", "text")]
    assert are_images(uris, [4, 10, 0]) == [False, True, False]


def test_avif_is_decoded_in_the_sandbox() -> None:
    pixels = smooth_pixels(64, 96)
    with sandbox.Sandbox() as box:
        seen = box.decode(encoded(pixels, "AVIF", quality=90), ((64, 96),))
    assert (seen.format, seen.height, seen.width) == ("AVIF", 64, 96)
    assert np.abs(seen.pixels.astype(int) - pixels).mean() < 3
