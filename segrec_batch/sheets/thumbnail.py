"""Thumbnails of images, and their masks in the colours of the classes."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.common.errors import ImageError
from segrec_batch.images import sandbox
from segrec_batch.sheets.card import Card

Size = tuple[int, int]  # width, height
Labels = NDArray[np.integer[Any]]
T = TypeVar("T")

MAX_LATE = 3
"""Images of a sheet that may exceed `INTERACTIVE_SECONDS` before the limit is shortened."""
_SHORT_SECONDS = 1.0  # the shortened limit


@dataclass(frozen=True)
class Thumbnail:
    """Thumbnail of one image with its mask; a part that cannot be read is None."""

    image: Image.Image | None
    """RGB, upright, no larger than the box of its `ThumbnailMaker`."""
    overlay: Image.Image | None
    """Palette image of the image's size: 0 = background, i = the i-th class in its colour."""
    late: str | None = None
    """Reason why the decoding of a part was stopped, if it exceeded the time limit."""
    is_withheld: bool = False
    """The source of the image was not fetched."""

    @property
    def size(self) -> Size:
        """Width and height in pixels; (0, 0) if there is neither image nor mask."""
        part = self.image or self.overlay
        return part.size if part else (0, 0)

    @property
    def missing(self) -> str | None:
        """Text about the missing parts; None if no part is missing."""
        parts = {"image": self.image, "mask": self.overlay}
        if self.is_withheld:
            del parts["image"]
        unreadable = " and ".join(name for name, part in parts.items() if part is None)
        texts = ["image not fetched"] if self.is_withheld else []
        if unreadable:
            texts.append(f"{unreadable} not readable{f' ({self.late})' if self.late else ''}")
        return ", ".join(texts) or None


class ThumbnailMaker:
    """Maker of the thumbnails of one sheet, in the sandbox of this process.

    The time limit of an image is `INTERACTIVE_SECONDS`; after `MAX_LATE` images have exceeded it,
    the limit is one second, which bounds the time of a sheet of malicious images.
    """

    def __init__(self, colours: Sequence[str], box: Size) -> None:
        """Take the colours of the classes, `#rrggbb`, and the maximum size in pixels."""
        self.colours = colours
        self.box = box
        self._late = 0

    def make(self, card: Card) -> Thumbnail:
        """Return the thumbnail of a card; images smaller than the box keep their size.

        One image is decoded at a time, a JPEG at the coarsest sufficient scale.
        """
        image, late = self._decode_image(card.image)
        labels, also_late = self._decode(sandbox.shared().decode_mask, card.mask)
        size = image.size if image else None
        overlay = self._colour(labels, size)
        return Thumbnail(image, overlay, late or also_late, card.is_withheld)

    def _decode_image(self, data: bytes | None) -> tuple[Image.Image | None, str | None]:
        if data is None:
            return None, None
        decoded, late = self._decode(partial(sandbox.shared().decode_within, box=self.box), data)
        return (Image.fromarray(decoded.pixels) if decoded else None), late

    def _decode(self, decode: Callable[..., T], data: bytes) -> tuple[T | None, str | None]:
        """Return the decoded part or None, and the reason if it exceeded the time limit."""
        seconds = sandbox.INTERACTIVE_SECONDS if self._late < MAX_LATE else _SHORT_SECONDS
        try:
            return decode(data, seconds=seconds), None
        except ImageError as error:
            if not sandbox.is_late(error):
                return None, None
            self._late += 1
            return None, error.reason

    def _colour(self, labels: Labels | None, size: Size | None) -> Image.Image | None:
        """Return the mask at `size`, or as large as the box allows; None if it has no labels.

        Labels beyond the classes count as background.
        """
        if labels is None or labels.dtype != np.uint8:
            return None
        overlay = Image.fromarray(np.where(labels <= len(self.colours), labels, np.uint8(0)))
        overlay.putpalette(bytes.fromhex("000000" + "".join(c[1:] for c in self.colours)))
        return overlay.resize(size or _fit(overlay.size, self.box), Image.Resampling.NEAREST)


def data_uri(image: Image.Image | None, kind: str, **options: object) -> str | None:
    """Return an image as a `data:` URI, encoded by Pillow with the given format and options."""
    if image is None:
        return None
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _fit(size: Size, box: Size) -> Size:
    """Return the largest size of the same aspect in a box."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
