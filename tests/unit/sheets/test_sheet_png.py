"""Tests of the contact sheet as PNG: layout, colours, limits."""

from io import BytesIO
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segrec_batch.common.errors import InputError
from segrec_batch.sheets.card import MASK_OPACITY, Card
from segrec_batch.sheets.png import (
    COLOURS,
    GAP,
    MARGIN,
    MAX_CARDS,
    WELL,
    Grid,
    card_height,
    draw_card,
    draw_header,
    render_png,
)
from segrec_batch.sheets.thumbnail import ThumbnailMaker
from tests.support.cards import CLASSES, card, image, make_sheet, mask


def drawn(query: Card, *results: Card, **options: Any) -> bytes:
    return render_png(make_sheet(query, *results, **options))


def opened(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
    return image


def cut(data: bytes, cards: int, classes: int = 3) -> list[np.ndarray[Any, Any]]:
    """The cards of a sheet, cut out: integers (height, width, 3)."""
    image = opened(data)
    height = card_height(classes)
    grid = Grid(cards, height)
    top = image.height - MARGIN - grid.size[1]
    boxes = [grid.corner(i) for i in range(cards)]
    pixels = np.asarray(image).astype(int)
    return [pixels[top + y :, MARGIN + x :][:height, : WELL[0]] for x, y in boxes]


def rgb(colour: str) -> np.ndarray[Any, Any]:
    return np.array([*bytes.fromhex(colour[1:])])


@pytest.mark.parametrize("cards", [1, 2, 5, 6, 21, 201, MAX_CARDS])
def test_cards_keep_apart_and_inside(cards: int) -> None:
    grid, height = Grid(cards, 300), 300
    corners = [grid.corner(i) for i in range(cards)]
    assert corners[0] == (0, 0)
    assert corners == sorted(corners, key=lambda corner: corner[::-1])  # read like text
    assert max(x for x, _ in corners) + WELL[0] <= grid.size[0]
    assert max(y for _, y in corners) + height == grid.size[1]
    for (x, y), (u, v) in combinations(corners, 2):
        assert abs(x - u) >= WELL[0] + GAP or abs(y - v) >= height + GAP


@pytest.mark.parametrize("results", [0, 1, 5, 20])
def test_the_size_follows_from_header_and_grid(results: int) -> None:
    sheet = make_sheet(card(), *[card()] * results)
    image, grid = opened(render_png(sheet)), Grid(results + 1, card_height(len(CLASSES)))
    header = draw_header(sheet, grid.size[0])
    assert image.width == grid.size[0] + 2 * MARGIN
    assert image.height == header.height + grid.size[1] + 2 * MARGIN


def test_the_same_cards_give_the_same_bytes() -> None:
    cards = [card(), card(score=0.5, mask_iou=0.25), card(readable=False)]
    assert drawn(*cards, notice="n") == drawn(*cards, notice="n")


def test_the_query_comes_first_in_a_frame() -> None:
    for i, pixels in enumerate(cut(drawn(*[card()] * 4), 4)):
        frame = np.concatenate([pixels[:2], pixels[-2:]], axis=None).reshape(-1, 3)
        assert (frame == rgb(COLOURS["accent"])).all() == (i == 0)


def test_masks_are_blended_with_the_image() -> None:
    """Four stripes, background first; the image is red on the left and blue on the right."""
    data = drawn(card(data=image(608, 456, "PNG")), card(data=image(608, 456, "PNG")))
    row = cut(data, 2)[1][WELL[1] // 2]
    seen = [row[WELL[0] * i // 8] for i in (1, 3, 5, 7)]
    under = [rgb("#fa0000"), rgb("#fa0000"), rgb("#0000fa"), rgb("#0000fa")]
    over = [rgb(colour) for colour in CLASSES.values()]
    assert (seen[0] == under[0]).all()
    for pixel, low, high in zip(seen[1:], under[1:], over, strict=True):
        assert abs(pixel - (1 - MASK_OPACITY) * low - MASK_OPACITY * high).max() <= 2


def test_bars_are_as_long_as_their_shares() -> None:
    shares = {"car": 1.0, "person": 0.5, "tree": 0.0}
    pixels = cut(drawn(card(coverage=shares), card(coverage=shares)), 2)[0][WELL[1] :]
    lengths = [(pixels == rgb(colour)).all(axis=2).sum(axis=1).max() for colour in CLASSES.values()]
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=3)
    assert lengths[0] > 100
    assert lengths[2] == 0


def test_window_changes_only_bar_of_filtered_class() -> None:
    def bars(**options: Any) -> np.ndarray[Any, Any]:
        return cut(drawn(card(), card(), class_name="car", **options), 2)[1][WELL[1] :]

    rows = np.flatnonzero((bars() != bars(window=(0.29, 0.96))).any(axis=(1, 2)))
    assert 8 <= len(rows) <= 12
    assert np.ptp(rows) == len(rows) - 1  # one bar


@pytest.mark.parametrize(("width", "height"), [(900, 90), (90, 900), (4000, 1), (1, 3000), (3, 2)])
def test_images_of_any_aspect_are_centred(width: int, height: int) -> None:
    data = drawn(card(data=image(width, height, "PNG"), label_mask=mask(labels=(0, 0))))
    well = cut(data, 1)[0][3 : WELL[1], 3:-3]  # without the frame
    filled = (well != rgb(COLOURS["well"])).any(axis=2)
    assert filled.any()
    for axis in (0, 1):
        places = np.flatnonzero(filled.any(axis=axis))
        assert places[0] == pytest.approx(filled.shape[1 - axis] - 1 - places[-1], abs=4)


@pytest.mark.parametrize("data", [b"", b"no png", image(640, 480)[:2000]])
def test_what_cannot_be_read_leaves_the_layout_alone(data: bytes) -> None:
    whole = opened(drawn(card(), card(), card()))
    unread = Card("b.jpg", data, mask(), {}, None)
    nothing = Card("c.jpg", None, data, {}, float("nan"), float("nan"))
    assert opened(drawn(card(), unread, nothing)).size == whole.size
    cards = cut(drawn(card(), unread, nothing), 3)
    assert (cards[1][10, 10] == rgb(COLOURS["well"])).all()
    assert not (cards[1][10, WELL[0] // 2] == rgb(COLOURS["well"])).all()  # the mask is shown
    assert (cards[2][1 : WELL[1] // 2, 1:-1] == rgb(COLOURS["well"])).all()


def test_long_texts_and_odd_names_stay_on_the_sheet() -> None:
    """Nothing is drawn on the margins, between the cards or over the edge of a card's text."""
    odd = "写真/ملف/\udcff\n\t\u202e/" + "x" * 3000 + "é.jpg"
    name = "class_" + "w" * 200
    data = drawn(
        card(odd),
        *[card(odd, score=None, mask_iou=float("nan"))] * 2,
        classes={name: "#123456"},
        caption="word " * 900,
        notice="n" * 5000,
        class_name=name,
    )
    pixels = np.asarray(opened(data)).astype(int)
    page = pixels[0, 0]
    for edge in (pixels[:MARGIN], pixels[-MARGIN:], pixels[:, :MARGIN], pixels[:, -MARGIN:]):
        assert (edge == page).all()
    height = card_height(1)
    width, cards_height = Grid(3, height).size
    notice = pixels[(pixels[:, MARGIN + 10] == rgb(COLOURS["notice"])).all(axis=1)]
    assert len(notice) > 100
    assert (notice[1:-1, MARGIN + width - 12 : MARGIN + width - 1] == rgb(COLOURS["notice"])).all()
    cards = pixels[-MARGIN - cards_height : -MARGIN]
    assert (cards[:, MARGIN + WELL[0] :][:, :GAP] == page).all()
    texts = cut(data, 3, classes=1)[1][WELL[1] + 1 : -1]
    assert (texts[:, 1:12] == 255).all()
    assert (texts[:, -12:-1] == 255).all()


def test_the_longest_rank_and_scores_keep_apart() -> None:
    result = card(score=None, mask_iou=0.444)
    entry = make_sheet(card(), *[result] * MAX_CARDS).entries[-1]
    assert entry.title == f"Rank {MAX_CARDS}"
    thumbnail = ThumbnailMaker(list(CLASSES.values()), WELL).make(result)
    title = np.asarray(draw_card(entry, thumbnail))[WELL[1] + 5 : WELL[1] + 30, 14:-14]
    ink = np.flatnonzero((title != 255).any(axis=(0, 2)))
    assert ink[0] < 5
    assert ink[-1] > title.shape[1] - 5
    gap = np.diff(ink).max()
    assert gap >= 5  # wider than between the letters of a word


def test_more_cards_than_an_image_can_show_are_an_error() -> None:
    with pytest.raises(InputError, match="501 cards are too many"):
        drawn(*[card(readable=False)] * (MAX_CARDS + 1))


def test_a_sheet_of_too_many_pixels_is_an_error() -> None:
    classes = dict.fromkeys(map(str, range(200)), "#123456")
    with pytest.raises(InputError, match="pixels is too large"):
        drawn(*[card(readable=False)] * MAX_CARDS, classes=classes)


def test_a_colour_not_of_the_form_rrggbb_is_an_error() -> None:
    with pytest.raises(ValueError, match="colour of class 'car'"):
        drawn(card(), classes={"car": "red"})
