"""A contact sheet: the query image and its recommendations on one self-contained HTML page.

Pictures become JPEG thumbnails and masks transparent PNG overlays, both as ``data:`` URIs, so
that one file can be mailed, archived or printed. `sheet.html.j2` beside this module holds the
page; all text that comes from outside passes through its autoescaping.
"""

import base64
import hashlib
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image, ImageOps

LONG_SIDE = 480
"""The longest side of a thumbnail, in pixels."""

_TAIL = 22  # characters at the end of a URI that the page never hides


@dataclass(frozen=True)
class Card:
    """One image on the sheet."""

    uri: str
    picture: bytes | None
    """The encoded source picture, any Pillow format and size; None when it could not be read."""
    mask: bytes
    """Palette PNG of class labels, 0 = background and i = the i-th class; any size, the aspect
    of the picture after EXIF orientation."""
    coverage: Mapping[str, float]
    """Class to σ in [0, 1]; a class left out counts as 0."""
    pearson: float | None
    """Pearson correlation with the query in [-1, 1]; None for the query and where undefined."""


@dataclass(frozen=True)
class _View:
    """What the template shows of one card: texts and data URIs, nothing left to compute."""

    name: str
    description: str
    uri_head: str
    uri_tail: str
    thumbnail: str | None
    overlay: str | None
    size: tuple[int, int]
    pearson: str
    coverage: dict[str, float]


def render_sheet(
    query: Card,
    results: Sequence[Card],
    *,
    classes: Mapping[str, str],
    caption: str,
    notice: str | None = None,
) -> str:
    """One HTML page that shows a query and its recommendations, best first.

    ``classes`` maps each class name, without background, to its colour ``#rrggbb``; label i of a
    mask is its i-th key. ``caption`` says how the ranking came about and ``notice`` warns, both in
    plain words. Where a picture or a mask cannot be decoded, or is over Pillow's pixel limit, the
    card says so and shows the rest. Raises ValueError for a colour that is not ``#rrggbb``.
    """
    for name, colour in classes.items():
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
            raise ValueError(f"colour of class {name!r} is {colour!r}, not of the form #rrggbb")
    return _template().render(
        query=_view(query, "Query", classes),
        results=[_view(card, f"Rank {i}", classes) for i, card in enumerate(results, start=1)],
        classes=classes,
        caption=caption,
        notice=notice,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template("sheet.html.j2")


def _csp_hash(text: str) -> str:
    """The Content-Security-Policy source that allows exactly this inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _view(card: Card, name: str, classes: Mapping[str, str]) -> _View:
    coverage = {label: card.coverage.get(label, 0.0) for label in classes}
    thumbnail = _attempt(_thumbnail, card.picture)
    size = thumbnail.size if thumbnail else None
    overlay = _attempt(partial(_overlay, size=size, colours=list(classes.values())), card.mask)
    shown = thumbnail or overlay
    uri = card.uri.encode("utf-8", "backslashreplace").decode()  # file names may be no UTF-8
    return _View(
        name=name,
        description=_description(coverage),
        uri_head=uri[:-_TAIL],
        uri_tail=uri[-_TAIL:],
        thumbnail=_data_uri(thumbnail, "JPEG", quality=80, optimize=True, comment="")
        if thumbnail
        else None,
        overlay=_data_uri(overlay, "PNG", transparency=bytes([0])) if overlay else None,
        size=shown.size if shown else (0, 0),
        pearson=_pearson_text(card.pearson),
        coverage=coverage,
    )


def _description(coverage: Mapping[str, float]) -> str:
    """The alternative text: dominant class, then the coverage of each class."""
    dominant = max(coverage, key=lambda label: coverage[label], default=None)
    if dominant is None or coverage[dominant] <= 0:
        return "no class present"
    shares = ", ".join(f"{label} {share:.1%}" for label, share in coverage.items())
    return f"dominant class {dominant}; coverage {shares}"


def _pearson_text(pearson: float | None) -> str:
    """Three decimals, without the minus of a rounded zero.

    >>> _pearson_text(0.98765), _pearson_text(-0.0001), _pearson_text(None)
    ('0.988', '0.000', 'undefined')
    """
    return f"{pearson:z.3f}" if pearson is not None and math.isfinite(pearson) else "undefined"


def _attempt(
    render: Callable[[bytes], Image.Image | None], data: bytes | None
) -> Image.Image | None:
    """What ``render`` makes of the data; None without data or where Pillow cannot read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return render(data) if data is not None else None
    except Exception:  # on broken bytes Pillow's readers raise a dozen different types
        return None


def _thumbnail(picture: bytes) -> Image.Image:
    """RGB, upright, long side <= LONG_SIDE; transparent parts become white."""
    image: Image.Image = Image.open(BytesIO(picture))
    image.draft("RGB", (2 * LONG_SIDE, 2 * LONG_SIDE))  # lets a JPEG decode at a coarser scale
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Wide grey values stretched to [0, 255]; Pillow's own conversion would clip them."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    span = np.ptp(values) or 1.0
    return Image.fromarray(((values - values.min()) * (255 / span)).astype(np.uint8))


def _overlay(
    mask: bytes, *, size: tuple[int, int] | None, colours: Sequence[str]
) -> Image.Image | None:
    """The mask as a palette image of ``size``: 0 = background, i = the i-th colour.

    Without a ``size`` it keeps its aspect, long side LONG_SIDE. Labels beyond the classes count
    as background. None when it is no image of labels.
    """
    image = Image.open(BytesIO(mask))
    if image.mode not in ("P", "L", "1"):
        return None
    labels = np.asarray(image, dtype=np.uint8)
    overlay = Image.fromarray(np.where(labels <= len(colours), labels, np.uint8(0)))
    overlay.putpalette(bytes.fromhex("000000" + "".join(colour[1:] for colour in colours)))
    if size is None:
        return ImageOps.contain(overlay, (LONG_SIDE, LONG_SIDE), Image.Resampling.NEAREST)
    return overlay.resize(size, Image.Resampling.NEAREST)


def _data_uri(image: Image.Image, kind: str, **options: object) -> str:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
