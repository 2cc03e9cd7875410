"""Ground truth from labelled masks: the class that fills most of an image, and where it is."""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.console import track
from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.conditions import Window
from segrec_batch.evaluation.retrieval.truth import Groups, Truth, digest, said
from segrec_batch.index.encode import bitmap_words
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
    """Relevant is what has the same dominant foreground class, if that fills a share of both
    images that lies in the window, all by their masks. masks: a folder with a mask for each
    image, see `pair_indexed`. classes: the file that names the mask values.

    Shares are of the pixels that are not void; of equal classes the first in the file is dominant.
    An image without a mask, without foreground or outside the window is relevant to nothing, but
    stays a candidate.
    """

    masks: str
    classes: str
    window: Window = (0.0, 1.0)

    def find(self, images: Collection) -> Truth:
        """The ground truth for the images of an index. Raises InputError."""
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise InputError(
                f"the window of the labels is {low:g} {high:g}; give 0 <= LOW <= HIGH <= 1"
            )
        classes = load_classes(self.classes)
        files = list_files(self.masks)
        pairs = pair_indexed(Files("", tuple(images.uris.to_pylist()), {}), files).pairs
        words = np.zeros((len(images), len(classes.names) * COMMON_GRID**2 // 64), np.int64)
        labels = np.full(len(images), -1)
        content = hashlib.sha256(repr(classes).encode())
        pixels: Counter[int] = Counter()
        for row, number in track(pairs, "masks read"):
            files.check(number)
            values = load_mask(files.uris[number], classes)
            pixels.update(count_values(values))
            found = classes.to_classes(values)
            content.update(images.ids[row].as_py().encode() + found.tobytes())
            words[row] = _bitmaps(found, len(classes.names))
            labels[row] = _dominant(found, classes, self.window)
        if unnamed := describe_unnamed(pixels, classes):
            log.info(unnamed)
        used = {
            "images": len(images),
            "labelled": len(pairs),
            "without a mask": len(images) - len(pairs),
            "masks without an image": len(files.uris) - len(pairs),
            "outside the window or without foreground": len(pairs) - int((labels >= 0).sum()),
        }
        return Truth(
            relevance=Groups(labels),
            words="Relevant is what has the dominant class of the query, where that fills "
            f"{low:g} to {high:g} of both images, by labelled masks.",
            fingerprint=digest("masks", content.hexdigest(), self.window),
            classes=classes.names,
            labels=labels,
            masks=words,
            details=said(used),
        )


def _bitmaps(found: NDArray[np.int16], count: int) -> Ints:
    """A class map (H, W) as bitmaps of `count` foreground classes on the common grid, whose cells
    have the class at their centre.
    """
    y, x = (((np.arange(COMMON_GRID) + 0.5) * n / COMMON_GRID).astype(int) for n in found.shape)
    cells = found[np.ix_(y, x)].ravel()
    return bitmap_words(cells == np.arange(1, count + 1)[:, None]).ravel()


def _dominant(found: NDArray[np.int16], classes: Classes, window: Window) -> int:
    """The number of the dominant foreground class, from 0; -1 for none, or outside the window."""
    pixels = np.bincount(found[found != VOID], minlength=len(classes.names) + 1)
    largest = int(pixels[1:].argmax())
    share = pixels[largest + 1] / max(int(pixels.sum()), 1)
    low, high = window
    return largest if share > 0 and low <= share <= high else -1
