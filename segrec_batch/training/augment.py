"""Augmentations of labelled images: flip, rotation, crop, zoom, scale (Abdullah 2026, sec. 3)."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.labels.labelled import VOID

Labels = NDArray[np.int16]

KINDS = ("flip", "rotate", "crop", "zoom", "scale")


def augment(
    image: Image.Image, labels: Labels, kind: str, rng: np.random.Generator
) -> tuple[Image.Image, Labels]:
    """Return a random variant of an RGB image and its mask values (H, W).

    Added borders are void. Kinds: `flip` mirrors; `rotate` turns by up to ±15°; `crop` takes a
    random window of 60 to 90 % of each side; `zoom` takes the central window of 50 to 80 %; `scale`
    shrinks to 50 to 80 % on a grey canvas.
    """
    mask = Image.fromarray(labels.astype(np.int32))  # mode I keeps VOID, which is negative
    if kind == "flip":
        flip = Image.Transpose.FLIP_LEFT_RIGHT
        return image.transpose(flip), _to_labels(mask.transpose(flip))
    if kind == "rotate":
        angle = rng.uniform(-15, 15)
        rotated = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
        return rotated, _to_labels(mask.rotate(angle, fillcolor=VOID))
    if kind == "crop":
        return _crop(image, mask, rng.uniform(0.6, 0.9), rng.uniform(size=2))
    if kind == "zoom":
        return _crop(image, mask, rng.uniform(0.5, 0.8), np.array([0.5, 0.5]))
    if kind == "scale":
        return _shrink(image, mask, rng.uniform(0.5, 0.8))
    raise ValueError(f"no augmentation {kind!r}; there are {', '.join(KINDS)}")


def _to_labels(mask: Image.Image) -> Labels:
    return np.asarray(mask).astype(np.int16)


def _crop(
    image: Image.Image, mask: Image.Image, share: float, position: NDArray[np.float64]
) -> tuple[Image.Image, Labels]:
    w, h = max(1, round(image.width * share)), max(1, round(image.height * share))
    x, y = round((image.width - w) * position[0]), round((image.height - h) * position[1])
    box = (x, y, x + w, y + h)
    return image.crop(box), _to_labels(mask.crop(box))


def _shrink(image: Image.Image, mask: Image.Image, share: float) -> tuple[Image.Image, Labels]:
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    corner = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    canvas = Image.new("RGB", image.size, (128, 128, 128))
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR), corner)
    labels = Image.new("I", image.size, VOID)
    labels.paste(mask.resize(size, Image.Resampling.NEAREST), corner)
    return canvas, _to_labels(labels)
