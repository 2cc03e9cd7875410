"""Tests of slow images where a user waits: other images are shown, the card has the reason."""

import ast
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segrec_batch.cli import main as cli
from segrec_batch.images import sandbox
from segrec_batch.sheets import thumbnail
from segrec_batch.sheets.png import render_png
from tests.support.builders import slow_jpeg
from tests.support.cards import card, image, make_sheet, page

PACKAGE = Path(__file__).parents[3] / "segrec_batch"


@pytest.fixture(scope="module")
def slow() -> bytes:
    return slow_jpeg()


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.shared().confinement()  # the start of its process is not the image's time
    monkeypatch.setattr(sandbox, "INTERACTIVE_SECONDS", 0.4)
    monkeypatch.setattr(thumbnail, "_SHORT_SECONDS", 0.2)


def test_sheet_names_slow_image_and_shows_others(slow: bytes) -> None:
    started = time.monotonic()
    sheet = page(card(), *(card(data=slow) for _ in range(5)), card())
    assert time.monotonic() - started < 20  # of 60 that one alone might take
    message = [text for text in sheet.text("span") if "readable" in text]
    assert (
        message
        == ["image not readable (took longer than 0.4 s)"] * 3
        + ["image not readable (took longer than 0.2 s)"] * 2
    )
    assert len(sheet.images()) == 2
    assert len(sheet.masks()) == 7


def test_a_drawn_sheet_shows_the_others(slow: bytes) -> None:
    cards = [card(), card(data=slow), card()]
    drawn = np.asarray(Image.open(BytesIO(render_png(make_sheet(cards[0], *cards)))))
    red = (drawn[..., 0] > 200) & (drawn[..., 1] < 40) & (drawn[..., 2] < 40)
    unread = [card(), card(readable=False), card()]
    other = np.asarray(Image.open(BytesIO(render_png(make_sheet(unread[0], *unread)))))
    assert red.any()
    assert drawn.shape == other.shape
    differ = (drawn != other).any(axis=-1)
    assert 0 < differ.sum() < 0.02 * differ.size  # what the card says


def test_query_by_slow_image_fails_with_one_line(
    index: str, slow: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow.jpg").write_bytes(slow)
    started = time.monotonic()
    assert cli.main(["query", "--index", index, "--image", str(tmp_path / "slow.jpg")]) == 1
    assert time.monotonic() - started < 20
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {tmp_path}/slow.jpg: took longer than 0.4 s"


def test_good_images_of_a_sheet_come_from_one_process() -> None:
    page(card())
    child = sandbox.shared().pid
    assert child is not None
    page(*(card(data=image(900, 700, kind)) for kind in ("JPEG", "PNG", "WEBP", "TIFF")))
    assert sandbox.shared().pid == child


DECODERS = {"decode.py", "sandbox_child.py", "masks.py", "images"}
"""The only modules that look into an image file; others ask the sandbox."""


def test_nothing_is_decoded_outside_the_sandbox() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] in DECODERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            used = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert used not in ("Image.open", "cv2.imread", "cv2.imdecode", "decode.decode"), path
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                of_ours = (node.module or "").startswith("segrec_batch.")
                assert not (of_ours and names & {"decode_mask", "open_rgb", "decode"}), path
