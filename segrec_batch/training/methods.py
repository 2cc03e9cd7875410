"""What can be judged on labelled images: methods that turn an image into class maps."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class NotRun(Exception):  # noqa: N818 - it is an outcome
    """A method cannot be fitted or applied here; the text says why."""


class ClassMap(NamedTuple):
    """What a method says of an image.

    labels: (H, W) uint8 at the image's resolution, 0 the background.
    cells: (K,) int64, cells of each class on the feature grid, of which coverage σ̂ is made; None
    for a method that has no such grid.
    """

    labels: NDArray[np.uint8]
    cells: NDArray[np.int64] | None


class Methods(Protocol):
    """Fitted methods that share what they compute of an image."""

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """How each was made, by its name, as plain JSON values."""

    def __call__(self, image: Image.Image) -> Mapping[str, ClassMap]:
        """The class map of an RGB image for each method, by its name."""
