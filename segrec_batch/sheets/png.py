"""A contact sheet as one image, for reports and slides: what `sheet` puts on a page, as PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil, sqrt

from PIL import Image

from segrec_batch.common.errors import InputError
from segrec_batch.images.decode import MAX_PIXELS
from segrec_batch.sheets.card import EVERYTHING, Card, check_colours, shown_window
from segrec_batch.sheets.card_png import WELL, Look, draw_card
from segrec_batch.sheets.header_png import PAGE, header
from segrec_batch.sheets.thumbnail import Size, ThumbnailMaker

MOST_CARDS = 500

MARGIN, GAP = 36, 20
"""Around the sheet and between the cards, in pixels."""


@dataclass(frozen=True)
class Grid:
    """Where the cards of a sheet lie: in rows of equal cards, read like text."""

    cards: int

    @property
    def columns(self) -> int:
        """About as many as rows, 2 to 8."""
        return min(max(ceil(sqrt(self.cards)), 2), 8)

    @property
    def width(self) -> int:
        """Of all columns, in pixels."""
        return self.columns * (WELL[0] + GAP) - GAP

    def height(self, card_height: int) -> int:
        """Of all rows, in pixels."""
        return ceil(self.cards / self.columns) * (card_height + GAP) - GAP

    def corner(self, i: int, card_height: int) -> Size:
        """Left and top of the i-th card within the grid."""
        row, column = divmod(i, self.columns)
        return column * (WELL[0] + GAP), row * (card_height + GAP)


def render_png(
    query: Card,
    results: Sequence[Card],
    *,
    classes: Mapping[str, str],
    caption: str,
    notice: str | None = None,
    asked: str | None = None,
    window: tuple[float, float] = EVERYTHING,
) -> bytes:
    """A PNG, RGB, of a query and its recommendations, best first; arguments as of `render_sheet`.

    The same cards give the same bytes, with the same Pillow and fonts. Texts that are too long end
    in an ellipsis. Raises InputError for more than `MOST_CARDS` cards or for a sheet of more pixels
    than an index takes, ValueError for a colour that is not ``#rrggbb``.
    """
    check_colours(classes)
    cards = [query, *results]
    if len(cards) > MOST_CARDS:
        raise InputError(f"{len(cards)} cards are too many for a PNG ({MOST_CARDS}); use html")
    look = Look(classes, query.coverage, asked, shown_window(asked, window, classes))
    grid, maker = Grid(len(cards)), ThumbnailMaker(list(classes.values()), WELL)
    top = header(grid.width, look, len(results), caption, notice)
    sheet = _page(grid.width, top.height + grid.height(look.card_height))
    sheet.paste(top, (MARGIN, MARGIN))
    for i, card in enumerate(cards):
        x, y = grid.corner(i, look.card_height)
        corner = (x + MARGIN, y + MARGIN + top.height)
        draw_card(sheet, corner, card, maker.make(card), f"Rank {i}" if i else "Query", look)
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _page(width: int, height: int) -> Image.Image:
    """An empty sheet with margins around what is as large as given."""
    size = (width + 2 * MARGIN, height + 2 * MARGIN)
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"a PNG of {size[0]}×{size[1]} pixels is too large; use html")
    return Image.new("RGB", size, PAGE)
