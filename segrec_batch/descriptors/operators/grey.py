"""Conversion of RGB images to grey images."""

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]

# Each process computes one image at a time and processes share the cores, so OpenCV must not start
# its own threads. The setting applies to the whole process and changes no result.
cv2.setNumThreads(1)


def luma(pixels: NDArray[np.uint8]) -> Grey:
    """Return grey images (B, H, W) uint8 of RGB images (B, H, W, 3) uint8.

    The value is round(0.299 R + 0.587 G + 0.114 B).

    Source: ITU-R Rec. BT.601, E'Y.
    """
    batch, height, width, _ = pixels.shape
    rows = cv2.cvtColor(pixels.reshape(batch * height, width, 3), cv2.COLOR_RGB2GRAY)
    return np.asarray(rows, np.uint8).reshape(batch, height, width)
