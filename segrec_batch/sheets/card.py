"""Content of a contact sheet as data; the HTML page and the PNG are drawn from it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

FULL_WINDOW = (0.0, 1.0)
"""Window of coverage σ that every image passes."""

HEADING = "Contact sheet"
NO_RESULTS = "No image passed the filters of this query."
MARK_TEXT = "coverage of the query"
MASK_OPACITY = 0.55


@dataclass(frozen=True)
class Card:
    """One image on a contact sheet."""

    uri: str
    image: bytes | None
    """Encoded source image, of any format and size that can be indexed; None if it could not be
    read."""
    mask: bytes
    """Palette PNG of class labels, 0 = background, i = the i-th class; any size, with the aspect
    of the image after EXIF orientation."""
    coverage: Mapping[str, float]
    """Class to σ in [0, 1]; 0 for classes that are not in it."""
    score: float | None
    """Similarity to the query by `measure`, e.g. Pearson correlation in [-1, 1]; None for the query
    and where undefined."""
    mask_iou: float | None = None
    """Intersection over union of its mask with that of the query, in [0, 1]; None if unknown."""
    measure: str = "Pearson"
    """Name of the metric."""
    is_withheld: bool = False
    """The source was not fetched, since it is below no root of its index."""

    @property
    def name(self) -> str:
        """The URI as text that can be encoded; file names that are not UTF-8 are escaped."""
        return self.uri.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Bar:
    """Coverage of one class on one card."""

    name: str
    label: int
    """Label of the class in masks, from 1."""
    colour: str
    share: float
    """Coverage σ in [0, 1]."""
    is_emphasised: bool
    """The class is that of the query's filters."""
    window: tuple[float, float] | None
    """The σ window of the filters; None where there is none to draw."""
    mark: float | None
    """Coverage of the query; None on the query's own card."""

    @property
    def percent(self) -> str:
        """The share as text."""
        return f"{100 * self.share:.1f} %"


@dataclass(frozen=True)
class Entry:
    """A card with its place on the sheet."""

    title: str
    card: Card
    bars: list[Bar]
    is_query: bool

    @property
    def scores(self) -> dict[str, str]:
        """Similarities to the query as texts; empty for the query.

        >>> card = Card("a.jpg", None, b"", {}, 0.98765, 0.5)
        >>> Entry("Rank 1", card, [], is_query=False).scores
        {'Pearson': '0.988', 'IoU': '0.500'}
        """
        if self.is_query:
            return {}
        texts = {self.card.measure: _format_score(self.card.score)}
        if self.card.mask_iou is not None and math.isfinite(self.card.mask_iou):
            texts["IoU"] = _format_score(self.card.mask_iou)
        return texts


@dataclass(frozen=True)
class Sheet:
    """A query and its results, best first. Raises ValueError for a colour that is not `#rrggbb`."""

    query: Card
    results: Sequence[Card]
    classes: Mapping[str, str]
    """Class, without background, to its colour; label i of a mask is the i-th key."""
    caption: str
    """Description of the ranking in plain words."""
    notice: str | None = None
    """Warning in plain words."""
    class_name: str | None = None
    """The class of the filters, which comes first and stands out if it has a colour."""
    window: tuple[float, float] = FULL_WINDOW
    """The σ window of the filters, in [0, 1]."""

    def __post_init__(self) -> None:
        for name, colour in self.classes.items():
            if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
                raise ValueError(f"colour of class {name!r} is {colour!r}, not of the form #rrggbb")

    @property
    def entries(self) -> list[Entry]:
        """The query, then the results."""
        return [
            Entry("Query", self.query, self._bars(self.query, {}), is_query=True),
            *(
                Entry(f"Rank {i}", card, self._bars(card, self._marks), is_query=False)
                for i, card in enumerate(self.results, start=1)
            ),
        ]

    @cached_property
    def labels(self) -> dict[str, int]:
        """Class to its label in masks, in the order of the legend and the bars.

        >>> classes = {"car": "#4363d8", "person": "#e6194b", "tree": "#3cb44b"}
        >>> Sheet(Card("a.jpg", None, b"", {}, None), [], classes, "", class_name="tree").labels
        {'tree': 3, 'car': 1, 'person': 2}
        """
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        return dict(sorted(labels.items(), key=lambda item: item[0] != self.class_name))

    @property
    def drawn_window(self) -> tuple[float, float] | None:
        """The σ window on the bars of `class_name`; None where there is none to draw."""
        has_window = self.class_name in self.classes and self.window != FULL_WINDOW
        return self.window if has_window else None

    @property
    def window_text(self) -> str | None:
        """Text of the σ window in the legend."""
        if self.drawn_window is None:
            return None
        return "filter: {:g} to {:g} %".format(*(100 * bound for bound in self.drawn_window))

    @property
    def summary(self) -> str:
        """Line below the heading: number of results and caption.

        >>> card = Card("a.jpg", None, b"", {}, None)
        >>> Sheet(card, [card], {}, "whole images").summary
        '1 recommendation: whole images'
        """
        count = len(self.results)
        return f"{count} recommendation{'' if count == 1 else 's'}: {self.caption}"

    @property
    def _marks(self) -> dict[str, float]:
        return {name: self.query.coverage.get(name, 0.0) for name in self.classes}

    def _bars(self, card: Card, marks: Mapping[str, float]) -> list[Bar]:
        return [
            Bar(
                name,
                label,
                self.classes[name],
                card.coverage.get(name, 0.0),
                is_emphasised := name == self.class_name,
                self.drawn_window if is_emphasised else None,
                marks.get(name),
            )
            for name, label in self.labels.items()
        ]


def _format_score(value: float | None) -> str:
    """Return three decimals, without the minus of a rounded zero.

    >>> _format_score(0.98765), _format_score(-0.0001), _format_score(None)
    ('0.988', '0.000', 'undefined')
    """
    return f"{value:z.3f}" if value is not None and math.isfinite(value) else "undefined"
