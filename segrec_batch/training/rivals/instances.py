"""Objects in labelled images: connected regions of one class, as instance segmentation wants."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Instances:
    """n objects of an image.

    labels: (n,) int64 classes, 1 and up. boxes: (n, 4) float32 x0, y0, x1, y1 in pixels, the last
    two exclusive. masks: (n, H, W) bool.
    """

    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_]


def connected_instances(labels: NDArray[np.int16], classes: int, min_pixels: int) -> Instances:
    """The 4-connected regions of each class 1 to `classes` in a class map (H, W) that have
    `min_pixels` or more, class by class. Void belongs to none.
    """
    owners, boxes, masks = [], [], []
    for k in range(1, classes + 1):
        regions, _ = ndimage.label(labels == k)
        sizes = np.bincount(regions.ravel())
        for i, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
            if sizes[i] >= min_pixels:
                owners.append(k)
                boxes.append((columns.start, rows.start, columns.stop, rows.stop))
                masks.append(regions == i)
    return Instances(
        np.array(owners, np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(masks, np.bool_).reshape(-1, *labels.shape),
    )
