"""Cards of contact sheets: small images and masks of known colours."""

import base64
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from segrec_batch.sheets.card import Card, Sheet
from segrec_batch.sheets.html import render_html
from tests.support.browser import Page

CLASSES = {"car": "#4363d8", "person": "#e6194B", "tree": "#3cb44b"}


def encoded(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    buffer, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def image(width: int = 80, height: int = 60, kind: str = "JPEG", orientation: int = 1) -> bytes:
    """Return an image with a red left half and a blue right half."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (250, 0, 0)
    pixels[:, width // 2 :] = (0, 0, 250)
    return encoded(Image.fromarray(pixels), kind, orientation)


def mask(width: int = 16, height: int = 12, labels: tuple[int, ...] = (0, 1, 2, 3)) -> bytes:
    """Return a palette PNG of vertical stripes, one for each label, from left to right."""
    columns = np.repeat(np.array(labels, np.uint8), width // len(labels))
    image = Image.fromarray(np.tile(columns, (height, 1)))
    image.putpalette(bytes(range(48)))  # not the colours of the sheet
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def card(
    uri: str = "s3://bucket/a.jpg",
    data: bytes | None = None,
    *,
    label_mask: bytes | None = None,
    coverage: Mapping[str, float] | None = None,
    score: float | None = None,
    mask_iou: float | None = None,
    readable: bool = True,
) -> Card:
    return Card(
        uri,
        (data or image()) if readable else None,
        label_mask or mask(),
        coverage if coverage is not None else {"tree": 0.25, "car": 0.125, "person": 0.0},
        score,
        mask_iou,
    )


class SheetPage(Page):
    """The HTML page of a contact sheet."""

    def images(self) -> list[Image.Image]:
        return [opened(attrs["src"]) for attrs in self.all("img") if "class" not in attrs]

    def masks(self) -> list[Image.Image]:
        return [opened(attrs["src"]) for attrs in self.of_class("mask")]


def opened(uri: str | None) -> Image.Image:
    head, _, body = (uri or "").partition(",")
    assert re.fullmatch(r"data:image/(jpeg|png);base64", head)
    return Image.open(BytesIO(base64.b64decode(body, validate=True)))


def make_sheet(query: Card, *results: Card, **options: Any) -> Sheet:
    return Sheet(query, results, **{"classes": CLASSES, "caption": "ranked", **options})


def sheet(query: Card, *results: Card, **options: Any) -> str:
    return render_html(make_sheet(query, *results, **options))


def page(query: Card, *results: Card) -> SheetPage:
    return SheetPage(sheet(query, *results))
