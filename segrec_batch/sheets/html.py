"""A contact sheet: the query image and its recommendations on one self-contained HTML page.

Images become JPEG thumbnails and masks transparent PNG overlays, both as ``data:`` URIs, so
that one file can be mailed, archived or printed. `sheet.html.j2` beside this module holds the
page; all text that comes from outside passes through its autoescaping. `sheet_png` draws the same
sheet as one image.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import FileSystemLoader, Template

from segrec_batch.common.encoding import html_environment
from segrec_batch.sheets.card import (
    EVERYTHING,
    NO_RESULTS,
    Card,
    asked_first,
    check_colours,
    counted,
    scores,
    shown_window,
)
from segrec_batch.sheets.thumbnail import ThumbnailMaker, data_uri

LONG_SIDE = 480
"""The longest side of a thumbnail, in pixels."""

_TAIL = 22  # characters at the end of a URI that the page never hides


@dataclass(frozen=True)
class _View:
    """What the template shows of one card: texts and data URIs, nothing left to compute."""

    name: str
    description: str
    uri_head: str
    uri_tail: str
    thumbnail: str | None
    overlay: str | None
    missing: str | None
    size: tuple[int, int]
    scores: dict[str, str]
    coverage: dict[str, float]


def render_sheet(
    query: Card,
    results: Sequence[Card],
    *,
    classes: Mapping[str, str],
    caption: str,
    notice: str | None = None,
    asked: str | None = None,
    window: tuple[float, float] = EVERYTHING,
) -> str:
    """One HTML page that shows a query and its recommendations, best first.

    ``classes`` maps each class name, without background, to its colour ``#rrggbb``; label i of a
    mask is its i-th key. ``caption`` says how the ranking came about and ``notice`` warns, both in
    plain words. The class ``asked`` about comes first and stands out, with the ``window`` of σ in
    [0, 1] that was asked for; a class without a colour, like the background, does not. Where a
    image or a mask cannot be decoded, takes too long (see `ThumbnailMaker`), or is larger than an
    index takes, the card says so and shows the rest.

    Raises ValueError for a colour that is not ``#rrggbb``.
    """
    check_colours(classes)
    maker = ThumbnailMaker(list(classes.values()), (LONG_SIDE, LONG_SIDE))
    return _template().render(
        query=_view(query, "Query", classes, maker),
        results=[_view(card, f"Rank {i}", classes, maker) for i, card in enumerate(results, 1)],
        classes=classes,
        labels=asked_first(classes, asked),
        asked=asked,
        window=shown_window(asked, window, classes),
        caption=counted(len(results), caption),
        title=caption,
        no_results=NO_RESULTS,
        notice=notice,
    )


@cache
def _template() -> Template:
    environment = html_environment(FileSystemLoader(Path(__file__).parent))
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template("sheet.html.j2")


def _csp_hash(text: str) -> str:
    """The Content-Security-Policy source that allows exactly this inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _view(card: Card, name: str, classes: Mapping[str, str], maker: ThumbnailMaker) -> _View:
    coverage = {label: card.coverage.get(label, 0.0) for label in classes}
    small = maker.make(card)
    return _View(
        name=name,
        description=_description(coverage),
        uri_head=card.name[:-_TAIL],
        uri_tail=card.name[-_TAIL:],
        thumbnail=data_uri(small.image, "JPEG", quality=80, optimize=True, comment=""),
        overlay=data_uri(small.overlay, "PNG", transparency=bytes([0])),
        missing=small.missing,
        size=small.size,
        scores=scores(card),
        coverage=coverage,
    )


def _description(coverage: Mapping[str, float]) -> str:
    """The alternative text: dominant class, then the coverage of each class."""
    dominant = max(coverage, key=lambda label: coverage[label], default=None)
    if dominant is None or coverage[dominant] <= 0:
        return "no class present"
    shares = ", ".join(f"{label} {share:.1%}" for label, share in coverage.items())
    return f"dominant class {dominant}; coverage {shares}"
