"""Contact sheets as self-contained HTML pages.

Images become JPEG thumbnails and masks transparent PNG overlays, both as `data:` URIs, so that the
page is one file. `sheet.html.j2` is the template; it escapes all text from outside.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import FileSystemLoader, Template

from segrec_batch.common.encoding import make_html_environment
from segrec_batch.sheets.card import (
    HEADING,
    MARK_TEXT,
    MASK_OPACITY,
    NO_RESULTS,
    Bar,
    Entry,
    Sheet,
)
from segrec_batch.sheets.thumbnail import ThumbnailMaker, data_uri

LONG_SIDE = 480
"""The longest side of a thumbnail, in pixels."""

_TAIL_LENGTH = 22  # characters at the end of a URI that are always visible


@dataclass(frozen=True)
class _CardView:
    """One card for the template: texts, bars and data URIs."""

    name: str
    description: str
    uri_head: str
    uri_tail: str
    thumbnail: str | None
    overlay: str | None
    missing: str | None
    size: tuple[int, int]
    scores: dict[str, str]
    bars: list[Bar]


def render_html(sheet: Sheet) -> str:
    """Return a contact sheet as one HTML page.

    The card of an image or mask that cannot be decoded, takes too long (see `ThumbnailMaker`) or is
    larger than an index accepts says so and shows the rest.
    """
    maker = ThumbnailMaker(list(sheet.classes.values()), (LONG_SIDE, LONG_SIDE))
    query, *results = (_to_view(entry, maker) for entry in sheet.entries)
    return _template().render(
        sheet=sheet,
        query=query,
        results=results,
        heading=HEADING,
        mark_text=MARK_TEXT,
        mask_opacity=MASK_OPACITY,
        no_results=NO_RESULTS,
    )


@cache
def _template() -> Template:
    environment = make_html_environment(FileSystemLoader(Path(__file__).parent))
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template("sheet.html.j2")


def _csp_hash(text: str) -> str:
    """Return the Content-Security-Policy source of an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _to_view(entry: Entry, maker: ThumbnailMaker) -> _CardView:
    thumbnail = maker.make(entry.card)
    return _CardView(
        name=entry.title,
        description=_describe(entry.bars),
        uri_head=entry.card.name[:-_TAIL_LENGTH],
        uri_tail=entry.card.name[-_TAIL_LENGTH:],
        thumbnail=data_uri(thumbnail.image, "JPEG", quality=80, optimize=True, comment=""),
        overlay=data_uri(thumbnail.overlay, "PNG", transparency=bytes([0])),
        missing=thumbnail.missing,
        size=thumbnail.size,
        scores=entry.scores,
        bars=entry.bars,
    )


def _describe(bars: Sequence[Bar]) -> str:
    """Return the alternative text: dominant class, then the coverage of each class."""
    bars = sorted(bars, key=lambda bar: bar.label)
    dominant = max(bars, key=lambda bar: bar.share, default=None)
    if dominant is None or dominant.share <= 0:
        return "no class present"
    shares = ", ".join(f"{bar.name} {bar.share:.1%}" for bar in bars)
    return f"dominant class {dominant.name}; coverage {shares}"
