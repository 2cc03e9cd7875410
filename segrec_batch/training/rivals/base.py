"""Interface and shared parts of the methods that the segmentation report compares."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segrec_batch.model.head import resize
from segrec_batch.training.sampling import cell_labels


class NotRun(Exception):  # noqa: N818 - an outcome that reports list, not a fault
    """A method cannot be fitted or applied here; the text gives the reason."""


class ClassMap(NamedTuple):
    """Prediction of a method for one image.

    Attributes:
        labels: (H, W) uint8 at the resolution of the image; 0 is the background.
        cells: (K,) int64, number of cells of each class on the feature grid, from which coverage σ̂
            is computed; None for a method without such a grid.
    """

    labels: NDArray[np.uint8]
    cells: NDArray[np.int64] | None


class Methods(Protocol):
    """Fitted methods that share the computation of features of an image."""

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Settings of each method, by name, as JSON values."""

    def __call__(self, image: Image.Image) -> Mapping[str, ClassMap]:
        """Return the class map of an RGB image by each method, by name."""


@contextmanager
def seed_torch(seed: int, device: str) -> Iterator[None]:
    """Seed torch's random numbers within the block and restore their state afterwards."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield


def shrink(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Return an RGB image with its long side at most `side`, uint8 (h, w, 3)."""
    scale = min(1.0, side / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return np.array(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0), np.uint8)


def shrink_both(
    image: Image.Image, labels: NDArray[np.int16], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Return the shrunk image and its labels (h, w), read at the centres of the new pixels."""
    pixels = shrink(image, side)
    return pixels, cell_labels(labels, (pixels.shape[0], pixels.shape[1]))


def class_map(scores: Tensor, image: Image.Image) -> NDArray[np.uint8]:
    """Return the class map (H, W) of an image from class scores (1, K, h, w)."""
    size = image.height, image.width
    labels: NDArray[np.uint8] = resize(scores, size).argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
    return labels
