"""One image on a contact sheet, and what the page and the image of a sheet both say of it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

EVERYTHING = (0.0, 1.0)
"""The σ window that keeps every image."""

NO_RESULTS = "No image passed the filters of this query."


@dataclass(frozen=True)
class Card:
    """One image on the sheet."""

    uri: str
    image: bytes | None
    """The encoded source image, any format that an index takes and any size; None when it could
    not be read."""
    mask: bytes
    """Palette PNG of class labels, 0 = background and i = the i-th class; any size, the aspect
    of the image after EXIF orientation."""
    coverage: Mapping[str, float]
    """Class to σ in [0, 1]; a class left out counts as 0."""
    score: float | None
    """How alike it is to the query by a measure, e.g. Pearson correlation in [-1, 1]; None for the
    query and where undefined."""
    mask_iou: float | None = None
    """Intersection over union of its mask with that of the query, in [0, 1]; None: not said."""
    measure: str = "Pearson"
    """The name of the measure."""
    is_withheld: bool = False
    """Whether the source was not fetched, since it lies below no root of its index."""

    @property
    def name(self) -> str:
        """The URI as text that can be written; a file name may be no UTF-8."""
        return self.uri.encode("utf-8", "backslashreplace").decode()


def check_colours(classes: Mapping[str, str]) -> None:
    """Raises ValueError for a colour of a class that is not ``#rrggbb``."""
    for name, colour in classes.items():
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
            raise ValueError(f"colour of class {name!r} is {colour!r}, not of the form #rrggbb")


def asked_first(classes: Mapping[str, str], asked: str | None) -> dict[str, int]:
    """Class to its label in a mask, the class asked about before all others.

    >>> asked_first({"car": "#4363d8", "person": "#e6194b", "tree": "#3cb44b"}, "tree")
    {'tree': 3, 'car': 1, 'person': 2}
    """
    labels = {name: label for label, name in enumerate(classes, start=1)}
    return dict(sorted(labels.items(), key=lambda item: item[0] != asked))


def shown_window(
    asked: str | None, window: tuple[float, float], classes: Mapping[str, str]
) -> tuple[float, float] | None:
    """The σ window to draw on the bars of the class asked about; None where there is none.

    >>> shown_window("car", (0.29, 0.96), {"car": "#4363d8"})
    (0.29, 0.96)
    >>> shown_window("car", EVERYTHING, {"car": "#4363d8"})
    """
    return window if asked in classes and window != EVERYTHING else None


def figure(value: float | None) -> str:
    """Three decimals, without the minus of a rounded zero.

    >>> figure(0.98765), figure(-0.0001), figure(None)
    ('0.988', '0.000', 'undefined')
    """
    return f"{value:z.3f}" if value is not None and math.isfinite(value) else "undefined"


def scores(card: Card) -> dict[str, str]:
    """The measures of a result against the query, as texts.

    >>> scores(Card("a.jpg", None, b"", {}, 0.98765, 0.5))
    {'Pearson': '0.988', 'IoU': '0.500'}
    """
    shown = {card.measure: figure(card.score)}
    if card.mask_iou is not None and math.isfinite(card.mask_iou):
        shown["IoU"] = figure(card.mask_iou)
    return shown


def counted(results: int, caption: str) -> str:
    """The caption below the heading.

    >>> counted(1, "whole images")
    '1 recommendation: whole images'
    """
    return f"{results} recommendation{'' if results == 1 else 's'}: {caption}"
