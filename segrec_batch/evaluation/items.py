"""What a page of a report is made of: sections of texts, tables, plots and images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from segrec_batch.evaluation.statistics import Estimate
from segrec_batch.sheets.thumbnail import data_uri


@dataclass(frozen=True)
class Text:
    """A paragraph, in plain words."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of each names it. An Estimate shows its interval. `split` says
    which units it is about.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence["Estimate | str"]]
    split: str = ""

    def texts(self, interval: bool = True) -> list[list[str]]:
        """The cells as text, figures with their intervals if wanted."""
        return [
            [cell if isinstance(cell, str) else figure(cell, interval) for cell in row]
            for row in self.rows
        ]


@dataclass(frozen=True)
class Plot:
    """An SVG element of `plots`; `description` says in words what it shows."""

    caption: str
    svg: str
    description: str
    split: str = ""


@dataclass(frozen=True)
class GalleryImage:
    """An image with a label below it; `mark` is good, bad or nothing, told by a frame and a sign.

    `overlay` is a palette image of class labels over it, 0 transparent.
    """

    image: Image.Image | None
    label: str
    overlay: Image.Image | None = None
    mark: str = ""

    @property
    def image_uri(self) -> str | None:
        """A `data:` URI."""
        return data_uri(self.image, "JPEG", quality=80, optimize=True, comment="")

    @property
    def overlay_uri(self) -> str | None:
        """A `data:` URI."""
        return data_uri(self.overlay, "PNG", transparency=bytes([0]))


@dataclass(frozen=True)
class Gallery:
    """Strips of images: of each a title and what is in it. `legend`: classes and colours."""

    caption: str
    strips: Sequence[tuple[str, Sequence[GalleryImage]]]
    legend: Mapping[str, str] = field(default_factory=dict)
    split: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    items: Sequence[Text | Table | Plot | Gallery]


def figure(estimate: Estimate, interval: bool = True) -> str:
    """An estimate as text, three places.

    >>> from segrec_batch.evaluation.statistics import Key
    >>> figure(Estimate(Key("iou"), 0.5, 0.41, 0.588, 101))
    '0.500 [0.410, 0.588]'
    >>> figure(Estimate(Key("iou"), None, None, None, 0))
    'absent'
    """
    if estimate.value is None:
        return "absent"
    if not interval or estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
