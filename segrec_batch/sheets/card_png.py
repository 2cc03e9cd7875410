"""One card of a contact sheet, drawn: image under its mask, similarity, a bar a class, name."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from segrec_batch.sheets.card import EVERYTHING, Card, asked_first, scores
from segrec_batch.sheets.lettering import font, shorten
from segrec_batch.sheets.thumbnail import Size, Thumbnail

WELL: Size = (304, 228)
"""The part of a card that holds the image, in pixels, as wide as the card."""

CARD, WELL_COLOUR, LINE, EDGE = "#ffffff", "#e9e9e6", "#d9d9d4", "#76766f"
TEXT, SOFT, ACCENT, WINDOW = "#1d1d1b", "#5a5a55", "#1f5fbf", "#cbcbc4"
MASK_OPACITY = 0.55

_PAD, _TITLE, _ROW, _NAME = 14, 26, 21, 22  # around the texts; heights of what a card says
_BAR = 10
_ROOM = WELL[0] - 2 * _PAD  # for text


@dataclass(frozen=True)
class Look:
    """What all cards of a sheet have in common."""

    colours: Mapping[str, str]
    """Class to ``#rrggbb``, in the order of the labels of the masks."""
    query: Mapping[str, float]
    """Coverage of the query, marked on the bars of the results."""
    asked: str | None = None
    window: tuple[float, float] | None = None
    """Of σ, drawn on the bars of the class asked about; None: no window to draw."""

    @property
    def classes(self) -> list[str]:
        """In the order to show them."""
        return list(asked_first(self.colours, self.asked))

    @property
    def card_height(self) -> int:
        """Of every card, in pixels."""
        return WELL[1] + _PAD + _TITLE + len(self.colours) * _ROW + _NAME + _PAD


def draw_card(
    sheet: Image.Image, corner: Size, card: Card, small: Thumbnail, title: str, look: Look
) -> None:
    """Draw a card with its upper left corner there; the one titled Query has a frame.

    `small` is its thumbnail, made to fit `WELL`.
    """
    is_query = title == "Query"
    x, y = corner
    brush = ImageDraw.Draw(sheet)
    right, bottom = x + WELL[0] - 1, y + look.card_height - 1
    brush.rectangle((x, y, right, bottom), fill=CARD)
    _draw_image(sheet, corner, small)
    _draw_title(brush, (x + _PAD, y + WELL[1] + _PAD), title, {} if is_query else scores(card))
    top = y + WELL[1] + _PAD + _TITLE
    _draw_rows(brush, (x + _PAD, top), card, look, marked=not is_query)
    name = shorten(card.name, font(12), _ROOM, keep_end=True)
    middle = top + len(look.colours) * _ROW + _NAME // 2 + 2
    brush.text((x + _PAD, middle), name, SOFT, font(12), "lm")
    frame = (x, y, right, bottom)
    brush.rectangle(frame, outline=ACCENT if is_query else LINE, width=3 if is_query else 1)


def _draw_image(sheet: Image.Image, corner: Size, small: Thumbnail) -> None:
    x, y = corner
    brush = ImageDraw.Draw(sheet)
    brush.rectangle((x, y, x + WELL[0] - 1, y + WELL[1] - 1), fill=WELL_COLOUR)
    if small.size != (0, 0):
        shown = ImageOps.contain(_blended(small), WELL)
        sheet.paste(shown, (x + (WELL[0] - shown.width) // 2, y + (WELL[1] - shown.height) // 2))
    if small.missing:
        middle = (x + WELL[0] // 2, y + WELL[1] - 22)
        text = shorten(small.missing, font(12), _ROOM)
        left, top, right, bottom = brush.textbbox(middle, text, font(12), "mm")
        label = (left - 9, top - 6, right + 9, bottom + 6)
        brush.rectangle(label, fill=CARD, outline=LINE)
        brush.text(middle, text, SOFT, font(12), "mm")


def _blended(small: Thumbnail) -> Image.Image:
    """The image, or the colour of the well, under its mask."""
    image = small.image or Image.new("RGB", small.size, WELL_COLOUR)
    if small.overlay:
        labels = np.asarray(small.overlay)
        opacity = Image.fromarray(np.where(labels > 0, round(255 * MASK_OPACITY), 0).astype("u1"))
        image.paste(small.overlay.convert("RGB"), mask=opacity)
    return image


def _draw_title(
    brush: ImageDraw.ImageDraw, corner: Size, title: str, measured: Mapping[str, str]
) -> None:
    """The title on the left, the measures from the right, on one base line."""
    x, base = corner[0] + _ROOM, corner[1] + 13
    brush.text((corner[0], base), title, TEXT, font(14, bold=True), "ls")
    for name, score in reversed([*measured.items()]):
        brush.text((x, base), score, TEXT, font(12, bold=True), "rs")
        x -= round(font(12, bold=True).getlength(score)) + 5
        brush.text((x, base), name, SOFT, font(12), "rs")
        x -= round(font(12).getlength(name)) + 12


def _draw_rows(
    brush: ImageDraw.ImageDraw, corner: Size, card: Card, look: Look, *, marked: bool
) -> None:
    """A row a class: name, bar, percent; `marked` with the coverage of the query."""
    x, y = corner
    names = min(max(map(font(12, bold=True).getlength, look.classes), default=0), _ROOM * 0.4)
    percents = font(12, bold=True).getlength("100.0 %")
    left, right = x + round(names) + 10, x + _ROOM - round(percents) - 10
    for i, name in enumerate(look.classes):
        asked, middle = name == look.asked, y + i * _ROW + _ROW // 2
        face, share = font(12, bold=asked), card.coverage.get(name, 0.0)
        brush.text((x, middle), shorten(name, face, names), TEXT, face, "lm")
        brush.text((x + _ROOM, middle), f"{100 * share:.1f} %", TEXT, face, "rm")
        bar = (left, middle - _BAR // 2, right, middle + _BAR // 2 - 1)
        draw_bar(brush, bar, share, look.colours[name], look.window if asked else None)
        if marked:
            tick = left + round(look.query.get(name, 0.0) * (right - left))
            brush.line((tick, bar[1], tick, bar[3]), TEXT, 2)


def draw_bar(
    brush: ImageDraw.ImageDraw,
    bar: tuple[int, int, int, int],
    share: float,
    colour: str,
    window: tuple[float, float] | None,
) -> None:
    """A share in [0, 1] of a bar (left, top, right, bottom), over the window asked for."""
    left, top, right, bottom = bar
    low, high = (left + round(part * (right - left)) for part in window or EVERYTHING)
    end = left + round(min(share, 1.0) * (right - left))
    brush.rectangle(bar, WELL_COLOUR)
    if window:
        brush.rectangle((low, top, high, bottom), WINDOW)
    if share > 0:
        brush.rectangle((left, top, end, bottom), colour, EDGE)
    if window:
        brush.rectangle((low, bottom - 1, high, bottom), SOFT)
