"""Text on images: one font, no missing letters, lines and names cut to a width in pixels."""

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
    """DejaVu Sans where the system has it, for it knows most alphabets; else Pillow's own font,
    which knows little more than ASCII. `size` in pixels.
    """
    basic = ImageFont.Layout.BASIC
    try:
        return ImageFont.truetype(_FACES[bold], size, layout_engine=basic)
    except OSError:
        own = ImageFont.load_default(size)
        assert isinstance(own, Font)  # noqa: S101
        return own.font_variant(layout_engine=basic)


def drawable(text: str, face: Font) -> str:
    """The text on one line, in letters of the font: é may become e and × x, and what it has no
    likeness of stays, to be drawn as an empty box.
    """
    blank = "".join(letter if letter.isprintable() else " " for letter in text)
    return "".join(_letter(letter, face) for letter in blank)


@lru_cache(maxsize=4096)
def _letter(letter: str, face: Font) -> str:
    if _has(letter, face):
        return letter
    parts = _PLAIN.get(letter) or unicodedata.normalize("NFKD", letter)
    likeness = "".join(part for part in parts if not unicodedata.combining(part))
    return likeness if all(_has(part, face) for part in likeness) else letter


def _has(letter: str, face: Font) -> bool:
    return letter.isspace() or bytes(face.getmask(letter)) != bytes(face.getmask(_NO_CHARACTER))


def shorten(text: str, face: Font, width: float, *, keep_end: bool = False) -> str:
    """The drawable text, cut with an ellipsis where it is wider than `width` pixels.

    `keep_end` cuts the beginning, as a file's name matters more than its folder.
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
    """How many letters from the beginning, or from the end, are not wider; by bisection."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        part = text[len(text) - middle :] if keep_end else text[:middle]
        low, high = (middle, high) if face.getlength(part) <= width else (low, middle - 1)
    return low


def wrap(text: str, face: Font, width: float, most: int) -> list[str]:
    """The drawable text in lines of at most `width` pixels; the last of `most` is cut short."""
    lines = list(_lines(drawable(text, face).split(), face, width))
    if len(lines) > most:
        lines[most - 1 :] = [shorten(" ".join(lines[most - 1 :]), face, width)]
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
