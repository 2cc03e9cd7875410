"""Text on images: font, replacement of missing letters, shortening and wrapping by pixels."""

import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont

_FACES = {False: "DejaVuSans.ttf", True: "DejaVuSans-Bold.ttf"}
_PLAIN = {"σ": "sigma", "–": "-", "—": "-", "−": "-", "×": "x", "…": "..."}
_UNASSIGNED = "\U0010ffff"


@cache
def load_font(size: int, bold: bool = False) -> Font:
    """Return DejaVu Sans, or Pillow's own font if the system has no DejaVu Sans.

    Pillow's font has little more than ASCII. `size` is in pixels.
    """
    basic = ImageFont.Layout.BASIC
    try:
        return ImageFont.truetype(_FACES[bold], size, layout_engine=basic)
    except OSError:
        default = ImageFont.load_default(size)
        assert isinstance(default, Font)  # noqa: S101
        return default.font_variant(layout_engine=basic)


def to_drawable(text: str, face: Font) -> str:
    """Return the text on one line, with letters missing in the font replaced by similar ones.

    For example é becomes e and × becomes x; letters without a replacement are drawn as boxes.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return "".join(_replace_letter(letter, face) for letter in line)


@lru_cache(maxsize=4096)
def _replace_letter(letter: str, face: Font) -> str:
    if _has_glyph(letter, face):
        return letter
    parts = _PLAIN.get(letter) or unicodedata.normalize("NFKD", letter)
    replacement = "".join(part for part in parts if not unicodedata.combining(part))
    return replacement if all(_has_glyph(part, face) for part in replacement) else letter


def _has_glyph(letter: str, face: Font) -> bool:
    return letter.isspace() or bytes(face.getmask(letter)) != bytes(face.getmask(_UNASSIGNED))


def shorten(text: str, face: Font, width: float, *, keep_end: bool = False) -> str:
    """Return the drawable text, shortened with an ellipsis to `width` pixels.

    `keep_end` cuts the beginning, for URIs: the file name matters more than its folder.
    """
    text = to_drawable(text, face)
    if face.getlength(text) <= width:
        return text
    dots = to_drawable("…", face)
    room = width - face.getlength(dots)
    if keep_end:
        return dots + text[len(text) - _count_fitting(text, face, room, keep_end=True) :]
    return text[: _count_fitting(text, face, room)].rstrip() + dots


def _count_fitting(text: str, face: Font, width: float, *, keep_end: bool = False) -> int:
    """Return the number of letters from the beginning, or from the end, that fit into `width`."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        part = text[len(text) - middle :] if keep_end else text[:middle]
        low, high = (middle, high) if face.getlength(part) <= width else (low, middle - 1)
    return low


def wrap(text: str, face: Font, width: float, max_lines: int) -> list[str]:
    """Return the drawable text in lines of `width` pixels; the last of `max_lines` is shortened."""
    lines = list(_wrap_words(to_drawable(text, face).split(), face, width))
    if len(lines) > max_lines:
        lines[max_lines - 1 :] = [shorten(" ".join(lines[max_lines - 1 :]), face, width)]
    return lines


def _wrap_words(words: list[str], face: Font, width: float) -> Iterator[str]:
    line = ""
    for word in words:
        longer = f"{line} {word}" if line else word
        if face.getlength(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        while face.getlength(word) > width:
            count = max(1, _count_fitting(word, face, width))
            yield word[:count]
            word = word[count:]
        line = word
    if line:
        yield line
