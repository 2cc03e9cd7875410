"""Grey images of RGB images."""

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]

# Processes share the cores, an image each; OpenCV's own threads would take all of them in each
# process. It is for this process as a whole, and changes no result.
cv2.setNumThreads(1)


def luma(pixels: NDArray[np.uint8]) -> Grey:
    """Grey images (B, H, W) uint8 of RGB images (B, H, W, 3) uint8: rounded
    0.299 R + 0.587 G + 0.114 B (ITU-R Rec. BT.601, E'Y).
    """
    batch, height, width, _ = pixels.shape
    rows = cv2.cvtColor(pixels.reshape(batch * height, width, 3), cv2.COLOR_RGB2GRAY)
    return np.asarray(rows, np.uint8).reshape(batch, height, width)
