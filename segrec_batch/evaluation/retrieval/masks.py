"""Ground truth by label masks: the class that fills most of an image, and its place."""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.console import track
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.settings import Window, check_window
from segrec_batch.evaluation.retrieval.truth import GroundTruth, digest, log_details
from segrec_batch.index.column_values import pack_bitmaps
from segrec_batch.labels.labelled import (
    VOID,
    Classes,
    count_values,
    describe_unnamed,
    load_classes,
    load_mask,
)
from segrec_batch.labels.pairing import Files, list_files, pair_indexed
from segrec_batch.model.spec import COMMON_GRID

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Masks:
    """Ground truth by label masks: images of one dominant foreground class are relevant.

    The class must fill a share of both images that lies in the window. Shares are of the pixels
    that are not void; the first class of the file wins a tie. An image without a mask, without
    foreground or outside the window is relevant to nothing, but stays a candidate.

    Attributes:
        masks: folder with a mask for each image, see `pair_indexed`.
        classes: file that names the mask values.
        window: least and greatest share, in [0, 1].
    """

    masks: str
    classes: str
    window: Window = (0.0, 1.0)

    def read(self, images: Collection) -> GroundTruth:
        """Return the ground truth for the images of an index. Raises InputError."""
        check_window("the window of the labels", self.window)
        classes, files = load_classes(self.classes), list_files(self.masks)
        pairs = pair_indexed(Files("", tuple(images.uris.to_pylist()), {}), files).pairs
        words = np.zeros((len(images), len(classes.names) * COMMON_GRID**2 // 64), np.int64)
        labels = np.full(len(images), -1)
        content = hashlib.sha256(repr(classes).encode())
        pixels: Counter[int] = Counter()
        for row, number in track(pairs, "masks read"):
            files.check(number)
            values = load_mask(files.uris[number], classes)
            pixels.update(count_values(values))
            class_map = classes.to_classes(values)
            content.update(images.ids[row].as_py().encode() + class_map.tobytes())
            words[row] = _bitmaps(class_map, len(classes.names))
            labels[row] = _dominant(class_map, classes, self.window)
        if unnamed := describe_unnamed(pixels, classes):
            log.info(unnamed)
        details = {
            "images": len(images),
            "labelled": len(pairs),
            "without a mask": len(images) - len(pairs),
            "masks without an image": len(files.uris) - len(pairs),
            "outside the window or without foreground": len(pairs) - int((labels >= 0).sum()),
        }
        log_details(details)
        return GroundTruth(
            labels,
            description="Images with the query's dominant class are relevant, where it fills "
            "{:g} to {:g} of both images by the label masks.".format(*self.window),
            fingerprint=digest("masks", content.hexdigest(), self.window),
            classes=classes.names,
            masks=words,
            details=details,
        )


def _bitmaps(class_map: NDArray[np.int16], count: int) -> Ints:
    """Return a class map (H, W) as bitmaps of `count` foreground classes on the common grid.

    A cell has the class at its centre.
    """
    y, x = (((np.arange(COMMON_GRID) + 0.5) * n / COMMON_GRID).astype(int) for n in class_map.shape)
    cells = class_map[np.ix_(y, x)].ravel()
    return pack_bitmaps(cells == np.arange(1, count + 1)[:, None]).ravel()


def _dominant(class_map: NDArray[np.int16], classes: Classes, window: Window) -> int:
    """Return the number of the dominant foreground class, from 0; -1 outside the window."""
    pixels = np.bincount(class_map[class_map != VOID], minlength=len(classes.names) + 1)
    largest = int(pixels[1:].argmax())
    share = pixels[largest + 1] / max(int(pixels.sum()), 1)
    low, high = window
    return largest if share > 0 and low <= share <= high else -1
