"""The top of a drawn contact sheet: heading, caption, notice and legend."""

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from segrec_batch.sheets.card import EVERYTHING, NO_RESULTS, counted
from segrec_batch.sheets.card_png import EDGE, SOFT, TEXT, Look, draw_bar
from segrec_batch.sheets.lettering import Font, font, shorten, wrap
from segrec_batch.sheets.thumbnail import Size

PAGE, NOTICE = "#f6f6f4", "#fff4d6"

_NOTICE_EDGE, _NOTICE_TEXT = "#c99a1d", "#4f3b00"
_WIDEST = 960  # of a line of text; longer ones are hard to read
_MOST_LINES = 5  # of the caption, and of the notice
_LINE, _ITEM, _SWATCH, _STRIP_GAP = 22, 26, 14, 12

Draw = Callable[[ImageDraw.ImageDraw, Size], None]


def header(width: int, look: Look, results: int, caption: str, notice: str | None) -> Image.Image:
    """All that stands above the cards, as wide as given; its height is that of its texts."""
    caption_lines = wrap(counted(results, caption), font(14), min(width, _WIDEST), _MOST_LINES)
    strips = [
        _text(width, ["Contact sheet"], font(24, bold=True), TEXT, 36),
        _text(width, caption_lines, font(14), SOFT, _LINE),
        *([_notice(width, notice)] if notice else []),
        _legend(width, look),
        *([_text(width, [NO_RESULTS], font(14), TEXT, _LINE)] if not results else []),
    ]
    height = sum(strip.height + _STRIP_GAP for strip in strips)
    sheet = Image.new("RGB", (width, height + _STRIP_GAP), PAGE)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + _STRIP_GAP
    return sheet


def _text(width: int, lines: Sequence[str], face: Font, colour: str, line: int) -> Image.Image:
    strip = Image.new("RGB", (width, line * len(lines)), PAGE)
    brush = ImageDraw.Draw(strip)
    for i, text in enumerate(lines):
        brush.text((0, i * line + line // 2), text, colour, face, "lm")
    return strip


def _notice(width: int, notice: str) -> Image.Image:
    wide = min(width, _WIDEST)
    lines = wrap(notice, font(14), wide - 36, _MOST_LINES)
    strip = Image.new("RGB", (width, _LINE * len(lines) + 20), PAGE)
    brush = ImageDraw.Draw(strip)
    brush.rectangle((0, 0, wide - 1, strip.height - 1), NOTICE, _NOTICE_EDGE)
    brush.rectangle((0, 0, 5, strip.height - 1), _NOTICE_EDGE)
    for i, text in enumerate(lines):
        brush.text((20, 10 + i * _LINE + _LINE // 2), text, _NOTICE_TEXT, font(14), "lm")
    return strip


def _legend(width: int, look: Look) -> Image.Image:
    """The classes with their colours, and what is marked on the bars, in rows as needed."""
    items = _items(look, width)
    places: list[Size] = []
    x = y = 0
    for text, face, _ in items:
        wide = _SWATCH + 9 + round(face.getlength(text)) + 24
        if x and x + wide - 24 > width:
            x, y = 0, y + _ITEM
        places.append((x, y + _ITEM // 2))
        x += wide
    strip = Image.new("RGB", (width, y + _ITEM), PAGE)
    brush = ImageDraw.Draw(strip)
    for (text, face, draw), (left, middle) in zip(items, places, strict=True):
        draw(brush, (left, middle - _SWATCH // 2))
        brush.text((left + _SWATCH + 9, middle), text, TEXT, face, "lm")
    return strip


def _items(look: Look, width: int) -> list[tuple[str, Font, Draw]]:
    """Text, font and swatch of each item of the legend."""
    items: list[tuple[str, Font, Draw]] = []
    for name in look.classes:
        face = font(13, bold=name == look.asked)
        text = shorten(name, face, min(width - 2 * _SWATCH, 240))
        items.append((text, face, _class_swatch(look.colours[name])))
    if look.window:
        low, high = (100 * part for part in look.window)
        items.append((f"{low:g} to {high:g} % asked for", font(13), _window_swatch))
    return [*items, ("coverage of the query", font(13), _tick_swatch)]


def _class_swatch(colour: str) -> Draw:
    def draw(brush: ImageDraw.ImageDraw, corner: Size) -> None:
        x, y = corner
        brush.rectangle((x, y, x + _SWATCH - 1, y + _SWATCH - 1), colour, EDGE)

    return draw


def _window_swatch(brush: ImageDraw.ImageDraw, corner: Size) -> None:
    x, y = corner
    draw_bar(brush, (x, y + 2, x + _SWATCH - 1, y + _SWATCH - 3), 0.0, EDGE, EVERYTHING)


def _tick_swatch(brush: ImageDraw.ImageDraw, corner: Size) -> None:
    x, y = corner
    brush.line((x + _SWATCH // 2, y, x + _SWATCH // 2, y + _SWATCH - 1), TEXT, 2)
