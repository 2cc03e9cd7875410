"""Tests of text on images: shortening, wrapping and replacement of missing letters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrec_batch.sheets.lettering import load_font, shorten, to_drawable, wrap

WIDTHS = st.integers(30, 400)


@given(st.text(max_size=200), WIDTHS, st.booleans())
def test_shorten_fits_width(text: str, width: int, keep_end: bool) -> None:
    face = load_font(12)
    short = shorten(text, face, width, keep_end=keep_end)
    assert face.getlength(short) <= width
    whole = to_drawable(text, face)
    if face.getlength(whole) <= width:
        assert short == whole


@pytest.mark.parametrize("keep_end", [True, False])
def test_shorten_keeps_chosen_end(keep_end: bool) -> None:
    text = "s3://bucket/" + 50 * "folder/" + "0001.jpg"
    short = shorten(text, load_font(12), 150, keep_end=keep_end)
    kept = short.strip("….")
    assert len(kept) > 10
    assert text.endswith(kept) if keep_end else text.startswith(kept)


@given(st.text(max_size=300), WIDTHS)
def test_wrap_fits_width_and_keeps_all_text(text: str, width: int) -> None:
    face = load_font(12)
    lines = wrap(text, face, width, max_lines=1000)
    assert all(face.getlength(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(to_drawable(text, face).split())


def test_wrap_shortens_last_line() -> None:
    lines = wrap("word " * 500, load_font(12), 200, max_lines=3)
    assert len(lines) == 3
    assert lines[-1].endswith(("…", "..."))
    assert lines[0].startswith("word word")


def test_drawable_is_one_line() -> None:
    assert to_drawable("a\nb\tc\x07d\udcffe\u202e", load_font(12)) == "a b c d e "


def test_drawable_replaces_letters_without_system_fonts(tmp_path: Path) -> None:
    code = (
        "from segrec_batch.sheets.lettering import load_font, to_drawable, wrap\n"
        "f = load_font(12)\n"
        "print(f.getname()[0], ascii(to_drawable('σ 0.2–0.9 × café Łódź 写', f)), sep='|')"
    )
    bare = {"XDG_DATA_DIRS": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **bare},
    )
    assert run.stdout == "Aileron|" + ascii("sigma 0.2-0.9 x cafe Łodz 写") + "\n"
