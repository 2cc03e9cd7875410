"""Small images of large ones, and their masks in the colours of the classes."""

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

MOST_LATE = 3
"""Images of a sheet that may take longer than they should before all others get less time."""
_SHORT_SECONDS = 1.0  # for each of these


@dataclass(frozen=True)
class Thumbnail:
    """What a sheet shows of one image; a part that cannot be read is None."""

    image: Image.Image | None
    """RGB, upright, no larger than the box it was made for."""
    overlay: Image.Image | None
    """Palette image of the image's size: 0 = background, i = the i-th class in its colour."""
    late: str | None = None
    """Why a part was given up, if that was for the time it took."""
    is_withheld: bool = False
    """Whether the source of the image was not fetched."""

    @property
    def size(self) -> Size:
        """Width and height in pixels, 0 where nothing can be shown."""
        shown = self.image or self.overlay
        return shown.size if shown else (0, 0)

    @property
    def missing(self) -> str | None:
        """What cannot be shown, in words."""
        parts = {"image": self.image, "mask": self.overlay}
        if self.is_withheld:
            del parts["image"]
        lost = " and ".join(name for name, part in parts.items() if part is None)
        texts = ["image not fetched"] if self.is_withheld else []
        if lost:
            texts.append(f"{lost} not readable{f' ({self.late})' if self.late else ''}")
        return ", ".join(texts) or None


class ThumbnailMaker:
    """Makes the thumbnails of one sheet, in the sandbox of this process.

    An image may take `INTERACTIVE_SECONDS`, and a second each after `MOST_LATE` have taken longer:
    a sheet of images that are made to take long is not there for hours.
    """

    def __init__(self, colours: Sequence[str], box: Size) -> None:
        """`colours`: ``#rrggbb``, one a class. `box`: width and height in pixels at most."""
        self.colours = colours
        self.box = box
        self._late = 0

    def make(self, card: Card) -> Thumbnail:
        """Return the image of a card and its mask; smaller images keep their size.

        One image is decoded at a time, a JPEG at the coarsest scale that is enough.
        """
        image, late = self._image(card.image)
        labels, also_late = self._tried(sandbox.shared().decode_mask, card.mask)
        size = image.size if image else None
        overlay = self._overlay(labels, size)
        return Thumbnail(image, overlay, late or also_late, card.is_withheld)

    def _image(self, data: bytes | None) -> tuple[Image.Image | None, str | None]:
        if data is None:
            return None, None
        found, late = self._tried(partial(sandbox.shared().decode_within, box=self.box), data)
        return (Image.fromarray(found.pixels) if found else None), late

    def _tried(self, decode: Callable[..., T], data: bytes) -> tuple[T | None, str | None]:
        """What is decoded, or None, and the reason if that took too long."""
        seconds = sandbox.INTERACTIVE_SECONDS if self._late < MOST_LATE else _SHORT_SECONDS
        try:
            return decode(data, seconds=seconds), None
        except ImageError as error:
            if not sandbox.is_late(error):
                return None, None
            self._late += 1
            return None, error.reason

    def _overlay(self, labels: Labels | None, size: Size | None) -> Image.Image | None:
        """The mask at `size`, or as large as the box allows; None when it is no image of labels.

        Labels beyond the classes count as background.
        """
        if labels is None or labels.dtype != np.uint8:
            return None
        overlay = Image.fromarray(np.where(labels <= len(self.colours), labels, np.uint8(0)))
        overlay.putpalette(bytes.fromhex("000000" + "".join(c[1:] for c in self.colours)))
        wanted = size or _largest(overlay.size, self.box)
        return overlay.resize(wanted, Image.Resampling.NEAREST)


def data_uri(image: Image.Image | None, kind: str, **options: object) -> str | None:
    """An image as a `data:` URI, in a format and with the options of Pillow for it."""
    if image is None:
        return None
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _largest(size: Size, box: Size) -> Size:
    """The size of the same aspect that fills a box."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
