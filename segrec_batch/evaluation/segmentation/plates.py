"""Images of the segmentation page: the best and the worst, with labels and class maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.evaluation.items import Gallery, GalleryImage
from segrec_batch.evaluation.segmentation.counts import SEGREC, SegrecMethod, Tally
from segrec_batch.evaluation.segmentation.ratios import Pixels
from segrec_batch.labels.labelled import Classes, LabelledImage
from segrec_batch.sources import storage

SHOWN = 6
SIDE = 320  # pixels at most


def image_iou(tally: Tally) -> NDArray[np.float64]:
    """(n,) mean IoU of each image over the foreground classes it has; NaN if it has none."""
    pixels = Pixels.of(tally.confusion)
    hit, labelled = pixels.hit[:, 1:], pixels.labelled[:, 1:]
    either = labelled + pixels.predicted[:, 1:] - hit
    iou = np.divide(hit, either, out=np.zeros_like(hit), where=either > 0)
    present = (labelled > 0).sum(axis=1)
    total = np.where(labelled > 0, iou, 0).sum(axis=1)
    nothing = np.full(len(total), np.nan)
    return np.asarray(np.divide(total, present, out=nothing, where=present > 0))


def galleries(
    tally: Tally,
    images: Sequence[LabelledImage],
    classes: Classes,
    method: SegrecMethod,
    colours: Mapping[str, str],
) -> list[Gallery]:
    """The best and the worst images by `image_iou`; of equal ones the name that comes first."""
    found = image_iou(tally)
    order = [i for i in np.argsort(-found, kind="stable") if not np.isnan(found[i])]
    best, worst = order[: min(SHOWN, (len(order) + 1) // 2)], order[(len(order) + 1) // 2 :]
    item_of = {storage.name(item.image): item for item in images}
    return [
        Gallery(
            caption,
            [
                _plate(item_of[tally.images[i]], float(found[i]), classes, method, colours)
                for i in chosen
            ],
            colours,
            tally.split,
        )
        for caption, chosen in (
            ("Best images, by mean IoU of the classes they have", best),
            ("Worst images", worst[::-1][:SHOWN]),
        )
        if chosen
    ]


def _plate(
    item: LabelledImage,
    iou: float,
    classes: Classes,
    method: SegrecMethod,
    colours: Mapping[str, str],
) -> tuple[str, list[GalleryImage]]:
    image, labels = item.load(classes)
    truth = np.maximum(classes.to_classes(labels), 0).astype(np.uint8)  # void like background
    predicted = method(image)[SEGREC].labels
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    title = f"{storage.name(item.image)}: mean IoU {iou:.2f}"
    return title, [
        GalleryImage(small, "image"),
        GalleryImage(small, "by the labels", _overlay(truth, small.size, colours)),
        GalleryImage(small, "by the model", _overlay(predicted, small.size, colours)),
    ]


def _overlay(
    labels: NDArray[np.uint8], size: tuple[int, int], colours: Mapping[str, str]
) -> Image.Image:
    overlay = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    overlay.putpalette(bytes.fromhex("000000" + "".join(c[1:] for c in colours.values())))
    return overlay
