"""Parts of a report page: sections of texts, tables, plots and galleries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from segrec_batch.evaluation.statistics import Estimate
from segrec_batch.sheets.thumbnail import data_uri


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell names its row. An Estimate is shown with its interval."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Estimate | str]]

    def texts(self, interval: bool = True) -> list[list[str]]:
        """Return the cells as text, metric values with or without intervals."""
        return [
            [cell if isinstance(cell, str) else figure(cell, interval) for cell in row]
            for row in self.rows
        ]


@dataclass(frozen=True)
class Plot:
    """An SVG element of `plots`; `description` states its content in words."""

    caption: str
    svg: str
    description: str


@dataclass(frozen=True)
class GalleryImage:
    """An image with a label below it.

    overlay: palette image of class labels over the image, 0 transparent. mark: "good", "bad" or
    empty, shown as a frame and a sign.
    """

    image: Image.Image | None
    label: str
    overlay: Image.Image | None = None
    mark: str = ""

    @property
    def image_uri(self) -> str | None:
        """The image as a `data:` URI."""
        return data_uri(self.image, "JPEG", quality=80, optimize=True, comment="")

    @property
    def overlay_uri(self) -> str | None:
        """The overlay as a `data:` URI."""
        return data_uri(self.overlay, "PNG", transparency=bytes([0]))


@dataclass(frozen=True)
class Gallery:
    """Strips of images, each with a title. legend: colours by class."""

    caption: str
    strips: Sequence[tuple[str, Sequence[GalleryImage]]]
    legend: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    items: Sequence[Text | Table | Plot | Gallery]


@dataclass(frozen=True)
class Lead:
    """First screen of a page: the question, its answer, three numbers and one plot.

    numbers: label, value and explanation of each.
    """

    question: str
    answer: str
    numbers: Sequence[tuple[str, Estimate | str, str]]
    plot: Plot | None = None


def figure(estimate: Estimate, interval: bool = True) -> str:
    """Return an estimate as text with three decimals.

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
