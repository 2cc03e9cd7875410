"""Text on images: font, replacement of missing letters, shortening and wrapping by pixels."""

import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont

_FACES = {False: "DejaVuSans.ttf", True: "DejaVuSans-Bold.ttf"}
_PLAIN = {"σ": "sigma", "–": "-", "—": "-", "−": "-", "×": "x", "…": "..."}
_NO_CHARACTER = "\U0010ffff"


@cache
def font(size: int, bold: bool = False) -> Font:
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


def drawable(text: str, face: Font) -> str:
    """Return the text on one line, with letters missing in the font replaced by similar ones.

    For example é becomes e and × becomes x; letters without a replacement are drawn as boxes.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return "".join(_letter(letter, face) for letter in line)


@lru_cache(maxsize=4096)
def _letter(letter: str, face: Font) -> str:
    if _has(letter, face):
        return letter
    parts = _PLAIN.get(letter) or unicodedata.normalize("NFKD", letter)
    replacement = "".join(part for part in parts if not unicodedata.combining(part))
    return replacement if all(_has(part, face) for part in replacement) else letter


def _has(letter: str, face: Font) -> bool:
    return letter.isspace() or bytes(face.getmask(letter)) != bytes(face.getmask(_NO_CHARACTER))


def shorten(text: str, face: Font, width: float, *, keep_end: bool = False) -> str:
    """Return the drawable text, shortened with an ellipsis to `width` pixels.

    `keep_end` cuts the beginning, for URIs: the file name matters more than its folder.
    """
    text = drawable(text, face)
    if face.getlength(text) <= width:
        return text
    dots = drawable("…", face)
    room = width - face.getlength(dots)
    if keep_end:
        return dots + text[len(text) - _fitting(text, face, room, keep_end=True) :]
    return text[: _fitting(text, face, room)].rstrip() + dots


def _fitting(text: str, face: Font, width: float, *, keep_end: bool = False) -> int:
    """Return how many letters from the beginning, or from the end, fit into `width`."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        part = text[len(text) - middle :] if keep_end else text[:middle]
        low, high = (middle, high) if face.getlength(part) <= width else (low, middle - 1)
    return low


def wrap(text: str, face: Font, width: float, max_lines: int) -> list[str]:
    """Return the drawable text in lines of `width` pixels; the last of `max_lines` is shortened."""
    lines = list(_lines(drawable(text, face).split(), face, width))
    if len(lines) > max_lines:
        lines[max_lines - 1 :] = [shorten(" ".join(lines[max_lines - 1 :]), face, width)]
    return lines


def _lines(words: list[str], face: Font, width: float) -> Iterator[str]:
    line = ""
    for word in words:
        longer = f"{line} {word}" if line else word
        if face.getlength(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        while face.getlength(word) > width:
            letters = max(1, _fitting(word, face, width))
            yield word[:letters]
            word = word[letters:]
        line = word
    if line:
        yield line
