"""Images of the segmentation page: the best and the worst, with labels and class maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.evaluation.items import Gallery, GalleryImage
from segrec_batch.evaluation.segmentation.counts import SEGREC, MethodCounts, SegrecMethod
from segrec_batch.evaluation.segmentation.figures import Pixels
from segrec_batch.labels.labelled import Classes, LabelledImage
from segrec_batch.sources import storage

IMAGES = 6  # in a gallery
SIDE = 320  # pixels at most


def image_iou(tally: MethodCounts) -> NDArray[np.float64]:
    """Return the mean IoU of each image over its foreground classes, (n,); NaN without any."""
    pixels = Pixels.of(tally.confusion)
    hit, labelled = pixels.hit[:, 1:], pixels.labelled[:, 1:]
    either = labelled + pixels.predicted[:, 1:] - hit
    iou = np.divide(hit, either, out=np.zeros_like(hit), where=either > 0)
    present = (labelled > 0).sum(axis=1)
    total = np.where(labelled > 0, iou, 0).sum(axis=1)
    return np.asarray(np.divide(total, present, out=np.full(len(total), np.nan), where=present > 0))


def galleries(
    tally: MethodCounts,
    images: Sequence[LabelledImage],
    classes: Classes,
    method: SegrecMethod,
    colours: Mapping[str, str],
) -> list[Gallery]:
    """Return the best and the worst images by `image_iou`, equal ones by name."""
    iou = image_iou(tally)
    order = [int(i) for i in np.argsort(-iou, kind="stable") if not np.isnan(iou[i])]
    half = (len(order) + 1) // 2
    by_name = {storage.name(item.image): item for item in images}
    return [
        Gallery(
            caption,
            [_strip(by_name[tally.images[i]], iou[i], classes, method, colours) for i in chosen],
            colours,
        )
        for caption, chosen in (
            ("Best images, by mean IoU of their classes", order[: min(IMAGES, half)]),
            ("Worst images", order[half:][::-1][:IMAGES]),
        )
        if chosen
    ]


def _strip(
    item: LabelledImage,
    iou: float,
    classes: Classes,
    method: SegrecMethod,
    colours: Mapping[str, str],
) -> tuple[str, list[GalleryImage]]:
    image, labels = item.load(classes)
    truth = np.maximum(classes.to_classes(labels), 0).astype(np.uint8)  # void as background
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    return f"{storage.name(item.image)}: mean IoU {iou:.2f}", [
        GalleryImage(small, "image"),
        GalleryImage(small, "by the labels", _overlay(truth, small.size, colours)),
        GalleryImage(
            small, "by the model", _overlay(method(image)[SEGREC].labels, small.size, colours)
        ),
    ]


def _overlay(
    labels: NDArray[np.uint8], size: tuple[int, int], colours: Mapping[str, str]
) -> Image.Image:
    overlay = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    overlay.putpalette(bytes.fromhex("000000" + "".join(c[1:] for c in colours.values())))
    return overlay
