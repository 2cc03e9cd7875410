"""Small pictures of large ones, and their masks in the colours of the classes."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from segrec_batch.decode import open_rgb
from segrec_batch.errors import PictureError
from segrec_batch.query.card import Card

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Thumbnail:
    """What a sheet shows of one image; a part that cannot be read is None."""

    picture: Image.Image | None
    """RGB, upright, no larger than the box it was made for."""
    overlay: Image.Image | None
    """Palette image of the picture's size: 0 = background, i = the i-th class in its colour."""
    is_withheld: bool = False
    """Whether the source of the picture was not fetched."""

    @property
    def size(self) -> Size:
        """Width and height in pixels, 0 where nothing can be shown."""
        shown = self.picture or self.overlay
        return shown.size if shown else (0, 0)

    @property
    def missing(self) -> str | None:
        """What cannot be shown, in words."""
        parts = {"picture": self.picture, "mask": self.overlay}
        if self.is_withheld:
            del parts["picture"]
        lost = " and ".join(name for name, part in parts.items() if part is None)
        texts = ["picture not fetched"] if self.is_withheld else []
        return ", ".join([*texts, *([f"{lost} not readable"] if lost else [])]) or None


def thumbnail(card: Card, colours: Sequence[str], box: Size) -> Thumbnail:
    """The picture of a card and its mask, to fit a box in pixels; smaller pictures keep their size.

    ``colours`` are ``#rrggbb``, one a class. One picture is decoded at a time, a JPEG at the
    coarsest scale that is enough.
    """
    picture = _picture(card.picture, box)
    overlay = _overlay(card.mask, colours, box, picture.size if picture else None)
    return Thumbnail(picture, overlay, card.is_withheld)


def data_uri(image: Image.Image | None, kind: str, **options: object) -> str | None:
    """A picture as a `data:` URI, in a format and with the options of Pillow for it."""
    if image is None:
        return None
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _picture(data: bytes | None, box: Size) -> Image.Image | None:
    if data is None:
        return None
    width, height = box
    try:
        image, *_ = open_rgb(data, [(2 * height, 2 * width)])
    except PictureError:
        return None
    image.thumbnail(box)
    return image


def _overlay(
    mask: bytes, colours: Sequence[str], box: Size, size: Size | None
) -> Image.Image | None:
    """The mask at `size`, or as large as the box allows. Labels beyond the classes count as
    background. None when it is no image of labels.
    """
    try:
        image = Image.open(BytesIO(mask), formats=("PNG",))
        labels = np.asarray(image, dtype=np.uint8)
    except Exception:  # on broken bytes Pillow's readers raise a dozen different types
        return None
    if image.mode not in ("P", "L", "1"):
        return None
    overlay = Image.fromarray(np.where(labels <= len(colours), labels, np.uint8(0)))
    overlay.putpalette(bytes.fromhex("000000" + "".join(colour[1:] for colour in colours)))
    return overlay.resize(size or _largest(overlay.size, box), Image.Resampling.NEAREST)


def _largest(size: Size, box: Size) -> Size:
    """The size of the same aspect that fills a box."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
