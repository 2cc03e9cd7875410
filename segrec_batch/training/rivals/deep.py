"""What the networks that learn from whole images share."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segrec_batch.model.head import resize
from segrec_batch.training.sample import cell_labels


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Torch's random numbers repeat inside, and are as if nothing had happened afterwards."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield


def shrink(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """An RGB image with its long side at most `side`: uint8 (h, w, 3)."""
    scale = min(1.0, side / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return np.array(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0), np.uint8)


def shrink_both(
    image: Image.Image, labels: NDArray[np.int16], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """`shrink`, and the labels (H, W) at the centres of the new pixels: (h, w)."""
    pixels = shrink(image, side)
    return pixels, cell_labels(labels, (pixels.shape[0], pixels.shape[1]))


def class_map(scores: Tensor, image: Image.Image) -> NDArray[np.uint8]:
    """Class scores (1, K, h, w) of an image → its class map (H, W): resized, then argmax."""
    size = image.height, image.width
    labels: NDArray[np.uint8] = resize(scores, size).argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
    return labels
