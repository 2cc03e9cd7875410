"""Images of the segmentation page: the best and the worst, with labels and class maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.evaluation.items import Gallery, GalleryImage
from segrec_batch.evaluation.segmentation.counts import SEGREC, MethodCounts
from segrec_batch.evaluation.segmentation.figures import Pixels
from segrec_batch.evaluation.segmentation.study import SegrecMethod
from segrec_batch.labels.labelled import Classes, LabelledImage
from segrec_batch.sources import storage

IMAGES = 6  # in a gallery
SIDE = 320  # pixels at most


def image_iou(tally: MethodCounts) -> NDArray[np.float64]:
    """Return the mean IoU of each image over its foreground classes, (n,); NaN without any."""
    pixels = Pixels.of(tally.confusion)
    hit, union = pixels.ratios()["iou"]
    iou = np.ma.masked_where(pixels.labelled == 0, hit / np.maximum(union, 1))
    return np.asarray(iou[:, 1:].mean(axis=1).filled(np.nan))


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
    results = []
    for caption, chosen in (
        ("Best images, by mean IoU of their classes", order[: min(IMAGES, half)]),
        ("Worst images", order[half:][::-1][:IMAGES]),
    ):
        strips = []
        for i in chosen:
            title = f"{tally.images[i]}: mean IoU {iou[i]:.2f}"
            strips.append((title, _strip(by_name[tally.images[i]], classes, method, colours)))
        if strips:
            results.append(Gallery(caption, strips, colours))
    return results


def _strip(
    item: LabelledImage, classes: Classes, method: SegrecMethod, colours: Mapping[str, str]
) -> list[GalleryImage]:
    """Return an image without and with its labels and its prediction; void is background."""
    image, labels = item.load(classes)
    truth = np.maximum(classes.to_classes(labels), 0).astype(np.uint8)
    predicted = method(image)[SEGREC].labels
    image.thumbnail((SIDE, SIDE))
    return [
        GalleryImage(image, "image"),
        GalleryImage(image, "by the labels", _overlay(truth, image.size, colours)),
        GalleryImage(image, "by the model", _overlay(predicted, image.size, colours)),
    ]


def _overlay(
    labels: NDArray[np.uint8], size: tuple[int, int], colours: Mapping[str, str]
) -> Image.Image:
    overlay = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    overlay.putpalette(bytes.fromhex("000000" + "".join(c[1:] for c in colours.values())))
    return overlay
