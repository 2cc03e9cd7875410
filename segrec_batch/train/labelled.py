"""Labelled pictures: images paired with masks, the meaning of mask values, and groups."""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch import sandbox, storage
from segrec_batch.errors import InputError, PictureError
from segrec_batch.listing import list_pictures
from segrec_batch.model.spec import check_class_names

VOID = -1


@dataclass(frozen=True)
class Classes:
    """`classes.json`: the mask values of each foreground class, and those to ignore (void).

    Class i (from 1) is the i-th name; every value that is not listed is background, class 0.
    """

    values: Mapping[str, tuple[int, ...]]
    ignore: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The foreground classes in the order of the file."""
        return tuple(self.values)

    def class_of(self, value: int) -> int:
        """The class of a mask value that is not void."""
        for i, values in enumerate(self.values.values(), start=1):
            if value in values:
                return i
        return 0

    def to_classes(self, labels: NDArray[np.int16]) -> NDArray[np.int16]:
        """Mask values with void at VOID → classes, void kept."""
        table = np.array(
            [self.class_of(v) for v in range(int(labels.max(initial=0)) + 1)], np.int16
        )
        return np.where(labels == VOID, np.int16(VOID), table[labels])


def load_classes(uri: str) -> Classes:
    """Read `{"car": [8], "ignore": [11], …}`. Raises InputError, ModelError for unusable names."""
    try:
        content = json.loads(storage.read_bytes(uri))
    except (OSError, ValueError) as error:
        raise InputError(f"{uri}: not a readable JSON file: {error}") from error
    if not isinstance(content, dict) or not all(_are_values(v) for v in content.values()):
        raise InputError(f'{uri}: expected {{"class name": [mask values 0 to 32767], …}}')
    ignore = tuple(content.pop("ignore", ()))
    if not content:
        raise InputError(f"{uri}: names no class")
    check_class_names(list(content))
    counts = Counter(value for values in [ignore, *content.values()] for value in values)
    twice = [value for value, n in counts.items() if n > 1]
    if twice:
        raise InputError(f"{uri}: mask values {twice} stand under more than one name")
    return Classes({name: tuple(values) for name, values in content.items()}, ignore)


def _are_values(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**15 for v in values)


@dataclass(frozen=True)
class LabelledImage:
    """URIs of an image and its mask; images of one `group` never straddle a split."""

    image: str
    mask: str
    group: str

    def load(self, classes: Classes) -> tuple[Image.Image, NDArray[np.int16]]:
        """The RGB image and its mask values (H, W), void at VOID. Raises InputError."""
        try:
            content = storage.read_bytes(self.image)
            with sandbox.borrowed() as decoder:  # several threads load
                picture = decoder.decode_whole(content)
        except (PictureError, OSError, ValueError) as error:
            raise InputError(f"{self.image}: {error}") from error
        image = Image.fromarray(picture.pixels)
        labels = load_mask(self.mask, classes)
        if labels.shape != (image.height, image.width):
            raise InputError(
                f"{self.mask} is {labels.shape} (rows, columns[, channels]), but its image is "
                f"{(image.height, image.width)}: masks are one value a pixel, of the image's size"
            )
        return image, labels


def load_mask(uri: str, classes: Classes) -> NDArray[np.int16]:
    """The values of a mask (H, W[, channels]), void at VOID. Raises InputError."""
    try:
        values = np.asarray(Image.open(io.BytesIO(storage.read_bytes(uri))))
    except Exception as error:  # as above
        raise InputError(f"{uri}: {error}") from error
    if values.size and not (values.min() >= 0 and values.max() < 2**15):
        raise InputError(f"{uri}: mask values must be 0 to 32767")
    labels = values.astype(np.int16)
    labels[np.isin(labels, classes.ignore)] = VOID
    return labels


def pair(images: str, masks: str, groups: str = "auto") -> list[LabelledImage]:
    """Pair images with masks by file stem, sorted. Raises InputError naming what has no partner.

    `groups`: `folder` (of the image), `prefix` (its name without the number at the end, as in video
    frames), `none` (each image for itself), or `auto`: the first of these that gives two groups.
    """
    image_of, mask_of = _by_stem(images), _by_stem(masks)
    lone = sorted(image_of.keys() ^ mask_of.keys())
    if lone:
        raise InputError(
            f"{len(lone)} stems have an image or a mask, not both: {', '.join(lone[:5])}"
        )
    stems = sorted(image_of)
    group_of = _groups([image_of[s] for s in stems], groups)
    return [LabelledImage(image_of[s], mask_of[s], g) for s, g in zip(stems, group_of, strict=True)]


def _by_stem(uri: str) -> dict[str, str]:
    uris = list_pictures(uri)["uri"].to_pylist()
    found = {storage.stem(u): u for u in uris}
    if len(found) < len(uris):
        twice = [s for s, n in Counter(map(storage.stem, uris)).items() if n > 1]
        raise InputError(f"{uri}: file stems must be unique, but {twice[0]} is there twice")
    return found


def _groups(uris: Sequence[str], rule: str) -> list[str]:
    rules = {
        "folder": [u.rpartition("/")[0] for u in uris],
        "prefix": [re.sub(r"[\W_]*\d*$", "", storage.stem(u)) for u in uris],
        "none": [storage.stem(u) for u in uris],
    }
    if rule == "auto":
        return next(g for g in rules.values() if len(set(g)) > 1 or g is rules["none"])
    return rules[rule]


def fingerprint(images: Sequence[LabelledImage], classes: Classes) -> str:
    """16 hex digits over names and content of images and masks, and the classes."""
    digest = hashlib.sha256(repr(classes).encode())
    for item in images:
        for uri in (item.image, item.mask):
            content = hashlib.sha256(storage.read_bytes(uri)).digest()
            digest.update(storage.name(uri).encode() + content)
    return digest.hexdigest()[:16]
