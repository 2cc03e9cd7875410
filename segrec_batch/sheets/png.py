"""Contact sheets as PNG, for reports and slides: the content of the HTML page as one image."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from segrec_batch.common.errors import InputError
from segrec_batch.images.decode import MAX_PIXELS
from segrec_batch.sheets.card import (
    FULL_WINDOW,
    HEADING,
    MARK_TEXT,
    MASK_OPACITY,
    NO_RESULTS,
    Bar,
    Entry,
    Sheet,
)
from segrec_batch.sheets.lettering import Font, load_font, shorten, wrap
from segrec_batch.sheets.thumbnail import Size, Thumbnail, ThumbnailMaker

MAX_CARDS = 500
MARGIN, GAP = 36, 20
"""Pixels around the sheet, and between the cards."""
WELL: Size = (304, 228)
"""Width and height of the area of a card that holds the image, in pixels; as wide as the card."""

_CSS = (Path(__file__).parent / "palette.css").read_text()
COLOURS: Mapping[str, str] = dict(re.findall(r"--([\w-]+): (#\w{6});", _CSS.partition("@media")[0]))
"""Colours of the light HTML page, by name."""
_WINDOW_COLOUR = "#cbcbc4"  # the colour `edge` at 35 % over `well`, as on the page

_PAD, _TITLE, _ROW, _NAME, _BAR = 14, 26, 21, 22, 10  # heights of the parts of a card, pixels
_TEXT_WIDTH = WELL[0] - 2 * _PAD
_MAX_LINE = 960  # pixels; longer lines of text are hard to read
_MAX_LINES = 5  # of the caption, and of the notice
_LINE, _ITEM, _SWATCH, _STRIP_GAP = 22, 26, 14, 12  # heights of the parts of the header, pixels

DrawSwatch = Callable[[ImageDraw.ImageDraw, int, int], None]
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Grid:
    """Positions of the cards of a sheet: rows of equal cards, in reading order."""

    cards: int
    card_height: int

    @property
    def columns(self) -> int:
        """Number of columns, 2 to 8, about that of the rows."""
        return min(max(ceil(sqrt(self.cards)), 2), 8)

    @property
    def size(self) -> Size:
        """Width and height of all cards in pixels."""
        rows = ceil(self.cards / self.columns)
        return self.columns * (WELL[0] + GAP) - GAP, rows * (self.card_height + GAP) - GAP

    def corner(self, i: int) -> Size:
        """Return left and top of the i-th card within the grid."""
        row, column = divmod(i, self.columns)
        return column * (WELL[0] + GAP), row * (self.card_height + GAP)


def card_height(classes: int) -> int:
    """Return the height of a card in pixels."""
    return WELL[1] + _PAD + _TITLE + classes * _ROW + _NAME + _PAD


def render_png(sheet: Sheet) -> bytes:
    """Return a contact sheet as PNG, RGB.

    The same sheet gives the same bytes, with the same Pillow and fonts. Texts that are too long end
    in an ellipsis.

    Raises InputError for more than `MAX_CARDS` cards, and for more pixels than an index accepts.
    """
    entries = sheet.entries
    if len(entries) > MAX_CARDS:
        raise InputError(f"{len(entries)} cards are too many for a PNG ({MAX_CARDS}); use html")
    grid = Grid(len(entries), card_height(len(sheet.classes)))
    header = draw_header(sheet, grid.size[0])
    image = _create_page(grid.size[0] + 2 * MARGIN, header.height + grid.size[1] + 2 * MARGIN)
    image.paste(header, (MARGIN, MARGIN))
    maker = ThumbnailMaker(list(sheet.classes.values()), WELL)
    for i, entry in enumerate(entries):
        x, y = grid.corner(i)
        card = draw_card(entry, maker.make(entry.card))
        image.paste(card, (x + MARGIN, y + MARGIN + header.height))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _create_page(width: int, height: int) -> Image.Image:
    if width * height > MAX_PIXELS:
        raise InputError(f"a PNG of {width}×{height} pixels is too large; use html")
    return Image.new("RGB", (width, height), COLOURS["page"])


def draw_header(sheet: Sheet, width: int) -> Image.Image:
    """Return heading, caption, notice and legend as an image of the given width in pixels."""
    text_font = load_font(14)
    caption = wrap(sheet.summary, text_font, min(width, _MAX_LINE), _MAX_LINES)
    strips = [
        _draw_text_strip(width, [HEADING], load_font(24, bold=True), "text", 36),
        _draw_text_strip(width, caption, text_font, "soft", _LINE),
        *([_draw_notice_strip(width, sheet.notice)] if sheet.notice else []),
        _draw_legend_strip(width, sheet),
        *(
            []
            if sheet.results
            else [_draw_text_strip(width, [NO_RESULTS], load_font(14), "text", _LINE)]
        ),
    ]
    height = sum(strip.height + _STRIP_GAP for strip in strips)
    header = Image.new("RGB", (width, height + _STRIP_GAP), COLOURS["page"])
    top = 0
    for strip in strips:
        header.paste(strip, (0, top))
        top += strip.height + _STRIP_GAP
    return header


def _draw_text_strip(
    width: int, lines: Sequence[str], face: Font, colour: str, line: int
) -> Image.Image:
    strip = Image.new("RGB", (width, line * len(lines)), COLOURS["page"])
    draw = ImageDraw.Draw(strip)
    for i, text in enumerate(lines):
        draw.text((0, i * line + line // 2), text, COLOURS[colour], face, "lm")
    return strip


def _draw_notice_strip(width: int, notice: str) -> Image.Image:
    right = min(width, _MAX_LINE)
    lines = wrap(notice, load_font(14), right - 36, _MAX_LINES)
    strip = Image.new("RGB", (width, _LINE * len(lines) + 20), COLOURS["page"])
    draw = ImageDraw.Draw(strip)
    border = COLOURS["notice-line"]
    draw.rectangle((0, 0, right - 1, strip.height - 1), COLOURS["notice"], border)
    draw.rectangle((0, 0, 5, strip.height - 1), border)
    for i, text in enumerate(lines):
        middle = 10 + i * _LINE + _LINE // 2
        draw.text((20, middle), text, COLOURS["notice-text"], load_font(14), "lm")
    return strip


def _draw_legend_strip(width: int, sheet: Sheet) -> Image.Image:
    """Return the classes with their colours and the marks of the bars, in rows as needed."""
    items = _list_legend_items(sheet, width)
    positions: list[Size] = []
    x = y = 0
    for text, face, _ in items:
        item_width = _SWATCH + 9 + round(face.getlength(text)) + 24
        if x and x + item_width - 24 > width:
            x, y = 0, y + _ITEM
        positions.append((x, y + _ITEM // 2))
        x += item_width
    strip = Image.new("RGB", (width, y + _ITEM), COLOURS["page"])
    draw = ImageDraw.Draw(strip)
    for (text, face, draw_swatch), (left, middle) in zip(items, positions, strict=True):
        draw_swatch(draw, left, middle - _SWATCH // 2)
        draw.text((left + _SWATCH + 9, middle), text, COLOURS["text"], face, "lm")
    return strip


def _list_legend_items(sheet: Sheet, width: int) -> list[tuple[str, Font, DrawSwatch]]:
    """Return text, font and swatch of each item of the legend."""
    items: list[tuple[str, Font, DrawSwatch]] = []
    for name in sheet.labels:
        face = load_font(13, bold=name == sheet.class_name)
        text = shorten(name, face, min(width - 2 * _SWATCH, 240))
        items.append((text, face, _make_class_swatch(sheet.classes[name])))
    if sheet.window_text:
        items.append((sheet.window_text, load_font(13), _draw_window_swatch))
    return [*items, (MARK_TEXT, load_font(13), _draw_mark_swatch)]


def _make_class_swatch(colour: str) -> DrawSwatch:
    def draw_swatch(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
        draw.rectangle((x, y, x + _SWATCH - 1, y + _SWATCH - 1), colour, COLOURS["edge"])

    return draw_swatch


def _draw_window_swatch(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    bar = Bar("", 0, "", 0.0, True, FULL_WINDOW, None)
    _draw_bar(draw, (x, y + 2, x + _SWATCH - 1, y + _SWATCH - 3), bar)


def _draw_mark_swatch(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    middle = x + _SWATCH // 2
    draw.line((middle, y, middle, y + _SWATCH - 1), COLOURS["text"], 2)


def draw_card(entry: Entry, thumbnail: Thumbnail) -> Image.Image:
    """Return a card: image under its mask, title, scores, bars and name; the query is framed.

    `thumbnail` has the size of `WELL` at most.
    """
    width, height = WELL[0], card_height(len(entry.bars))
    image = Image.new("RGB", (width, height), COLOURS["card"])
    draw = ImageDraw.Draw(image)
    _draw_thumbnail(image, draw, thumbnail)
    _draw_title(draw, WELL[1] + _PAD + 13, entry)
    top = WELL[1] + _PAD + _TITLE
    _draw_bars(draw, top, entry.bars)
    name = shorten(entry.card.name, load_font(12), _TEXT_WIDTH, keep_end=True)
    middle = top + len(entry.bars) * _ROW + _NAME // 2 + 2
    draw.text((_PAD, middle), name, COLOURS["soft"], load_font(12), "lm")
    colour, frame = (COLOURS["accent"], 3) if entry.is_query else (COLOURS["line"], 1)
    draw.rectangle((0, 0, width - 1, height - 1), outline=colour, width=frame)
    return image


def _draw_thumbnail(image: Image.Image, draw: ImageDraw.ImageDraw, thumbnail: Thumbnail) -> None:
    draw.rectangle((0, 0, WELL[0] - 1, WELL[1] - 1), COLOURS["well"])
    if thumbnail.size != (0, 0):
        blended = ImageOps.contain(_blend(thumbnail), WELL)
        image.paste(blended, ((WELL[0] - blended.width) // 2, (WELL[1] - blended.height) // 2))
    if thumbnail.missing:
        middle = (WELL[0] // 2, WELL[1] - 22)
        text = shorten(thumbnail.missing, load_font(12), _TEXT_WIDTH)
        left, top, right, bottom = draw.textbbox(middle, text, load_font(12), "mm")
        box = (left - 9, top - 6, right + 9, bottom + 6)
        draw.rectangle(box, COLOURS["card"], COLOURS["line"])
        draw.text(middle, text, COLOURS["soft"], load_font(12), "mm")


def _blend(thumbnail: Thumbnail) -> Image.Image:
    """Return the image, or a plain area if it is missing, under its mask."""
    image = thumbnail.image or Image.new("RGB", thumbnail.size, COLOURS["well"])
    if thumbnail.overlay:
        labels = np.asarray(thumbnail.overlay)
        opacity = Image.fromarray(np.where(labels > 0, round(255 * MASK_OPACITY), 0).astype("u1"))
        image.paste(thumbnail.overlay.convert("RGB"), mask=opacity)
    return image


def _draw_title(draw: ImageDraw.ImageDraw, base: int, entry: Entry) -> None:
    """Draw the title on the left and the scores on the right of one base line."""
    bold, plain = load_font(12, bold=True), load_font(12)
    draw.text((_PAD, base), entry.title, COLOURS["text"], load_font(14, bold=True), "ls")
    x = _PAD + _TEXT_WIDTH
    for name, score in reversed(entry.scores.items()):
        draw.text((x, base), score, COLOURS["text"], bold, "rs")
        x -= round(bold.getlength(score)) + 5
        draw.text((x, base), name, COLOURS["soft"], plain, "rs")
        x -= round(plain.getlength(name)) + 12


def _draw_bars(draw: ImageDraw.ImageDraw, top: int, bars: Sequence[Bar]) -> None:
    """Draw a row for each class: name, bar, percent."""
    bold = load_font(12, bold=True)
    names = min(max((bold.getlength(bar.name) for bar in bars), default=0), _TEXT_WIDTH * 0.4)
    end = _PAD + _TEXT_WIDTH
    left, right = _PAD + round(names) + 10, end - round(bold.getlength("100.0 %")) - 10
    for i, bar in enumerate(bars):
        middle, face = top + i * _ROW + _ROW // 2, load_font(12, bold=bar.is_emphasised)
        draw.text((_PAD, middle), shorten(bar.name, face, names), COLOURS["text"], face, "lm")
        draw.text((end, middle), bar.percent, COLOURS["text"], face, "rm")
        _draw_bar(draw, (left, middle - _BAR // 2, right, middle + _BAR // 2 - 1), bar)


def _draw_bar(draw: ImageDraw.ImageDraw, box: Box, bar: Bar) -> None:
    left, top, right, bottom = box

    def position(share: float) -> int:
        return left + round(min(share, 1.0) * (right - left))

    low, high = map(position, bar.window or FULL_WINDOW)
    draw.rectangle(box, COLOURS["well"])
    if bar.window:
        draw.rectangle((low, top, high, bottom), _WINDOW_COLOUR)
    if bar.share > 0:
        draw.rectangle((left, top, position(bar.share), bottom), bar.colour, COLOURS["edge"])
    if bar.window:
        draw.rectangle((low, bottom - 1, high, bottom), COLOURS["soft"])
    if bar.mark is not None:
        x = position(bar.mark)
        draw.line((x, top, x, bottom), COLOURS["text"], 2)
