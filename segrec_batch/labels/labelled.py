"""Labelled images: pairs of image and mask, classes of mask values, groups."""

import hashlib
import json
import logging
import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.common.errors import ImageError, InputError, ModelError
from segrec_batch.images import sandbox
from segrec_batch.labels.pairing import describe_unpaired, list_files, pair_folders
from segrec_batch.model.names import check_class_names
from segrec_batch.sources import storage

log = logging.getLogger(__name__)

VOID = -1
MAX_VALUE = 2**15 - 1  # highest mask value
_MAX_SHOWN = 10  # maximum number of mask values in a message


@dataclass(frozen=True)
class Classes:
    """Content of `classes.json`: mask values of each foreground class and values to ignore.

    Class i (from 1) is the i-th name. Values that are not listed are background, class 0.
    """

    values: Mapping[str, tuple[int, ...]]
    ignore: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Foreground classes in the order of the file."""
        return tuple(self.values)

    def class_of(self, value: int) -> int:
        """Return the class of a mask value that is not void."""
        for i, values in enumerate(self.values.values(), start=1):
            if value in values:
                return i
        return 0

    def to_classes(self, labels: NDArray[np.int16]) -> NDArray[np.int16]:
        """Map mask values to classes; VOID stays VOID."""
        table = np.array(
            [self.class_of(v) for v in range(int(labels.max(initial=0)) + 1)], np.int16
        )
        return np.where(labels == VOID, np.int16(VOID), table[labels])


def load_classes(uri: str) -> Classes:
    """Read `{"car": [8], "ignore": [11], …}`. Raises InputError, and ModelError for bad names."""
    try:
        content = json.loads(storage.read_bytes(uri), object_pairs_hook=_Pairs)
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{uri}: not a readable JSON file: {reason}") from error
    if not isinstance(content, _Pairs):
        raise InputError(f'{uri}: expected {{"class name": [mask values 0 to {MAX_VALUE}], …}}')
    names = [name for name, _ in content]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(
                f"{uri}: {name!r} occurs {count} times; write all its values into one list"
            )
    for name, values in content:
        _check_values(uri, name, values)
    named = dict(content)
    ignore = tuple(named.pop("ignore", ()))
    if not named:
        raise InputError(f'{uri}: names no class; write {{"class name": [mask values], …}}')
    try:
        check_class_names(list(named))
    except ModelError as error:
        raise ModelError(f"{uri}: {error}") from error
    owner: dict[int, str] = {}
    for name, values in content:
        for value in values:
            if value in owner:
                raise InputError(
                    f"{uri}: mask value {value} is listed under {owner[value]!r} and {name!r}; "
                    "remove it from one of them"
                )
            owner[value] = name
    return Classes({name: tuple(values) for name, values in named.items()}, ignore)


class _Pairs(list[tuple[str, Any]]):
    """Names and values of a JSON object in order, including repeated names."""


def _check_values(uri: str, name: str, values: object) -> None:
    """Raise InputError if these are not the mask values of a class."""
    if not isinstance(values, list) or isinstance(values, _Pairs):
        raise InputError(f"{uri}: {name!r} needs a list of mask values, such as [8] or [8, 9]")
    for value in values:
        if type(value) is not int or not 0 <= value <= MAX_VALUE:
            raise InputError(
                f"{uri}: {name!r} has {reprlib.repr(value)}, which is not a mask value: write "
                f"whole numbers from 0 to {MAX_VALUE}"
            )
    for value, count in Counter(values).items():
        if count > 1:
            raise InputError(f"{uri}: mask value {value} is listed {count} times under {name!r}")


@dataclass(frozen=True)
class LabelledImage:
    """URIs of an image and its mask; a split never divides the images of one `group`."""

    image: str
    mask: str
    group: str

    def load(self, classes: Classes) -> tuple[Image.Image, NDArray[np.int16]]:
        """Return the RGB image and its mask values (H, W), void as VOID. Raises InputError."""
        try:
            content = storage.read_bytes(self.image)
            with sandbox.borrowed() as decoder:  # several threads call this method
                decoded = decoder.decode_whole(content)
        except (OSError, ImageError) as error:
            raise InputError(f"{self.image}: {_describe(error)}") from error
        image = Image.fromarray(decoded.pixels)
        labels = load_mask(self.mask, classes)
        height, width = labels.shape
        if (width, height) != image.size:
            raise InputError(
                f"{self.mask} has {width}×{height} pixels, its image {image.width}×{image.height} "
                f"({self.image}): give it a mask with one value per pixel of "
                "the upright image"
            )
        return image, labels


def load_mask(uri: str, classes: Classes) -> NDArray[np.int16]:
    """Return the values of a mask (H, W), void as VOID. Raises InputError."""
    try:
        content = storage.read_bytes(uri)
        with sandbox.borrowed() as decoder:
            values = decoder.decode_mask(content)
    except (OSError, ImageError) as error:
        raise InputError(f"{uri}: {_describe(error)}") from error
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > MAX_VALUE:
        raise InputError(
            f"{uri}: the mask has the value {low if low < 0 else high}; number the labels from 0 "
            f"to {MAX_VALUE}"
        )
    labels = values.astype(np.int16)
    labels[np.isin(labels, classes.ignore)] = VOID
    return labels


def _describe(error: OSError | ImageError) -> str:
    return error.reason if isinstance(error, ImageError) else str(error)


def pair_images(images: str, masks: str, groups: str = "auto") -> list[LabelledImage]:
    """Pair images with masks, see `pair_folders`, sorted by image.

    Files without a partner are left out and logged.

    Args:
        groups: rule for the group of an image: `folder`, `prefix` (its name without a trailing
            number, as in video frames), `none` (each image is a group), or `auto`: the first of
            these that gives two groups.

    Raises:
        InputError: nothing pairs, or a file has two possible partners.
    """
    files = list_files(images), list_files(masks)
    pairing = pair_folders(*files)
    if message := describe_unpaired(*files, pairing):
        log.info(message)
    uris = [(files[0].uris[i], files[1].uris[j]) for i, j in pairing.pairs]
    group_names = _name_groups([image for image, _ in uris], groups)
    return [LabelledImage(*pair, name) for pair, name in zip(uris, group_names, strict=True)]


def _name_groups(uris: Sequence[str], rule: str) -> list[str]:
    rules = {
        "folder": [u.rpartition("/")[0] for u in uris],
        "prefix": [re.sub(r"[\W_]*\d*$", "", storage.stem(u)) for u in uris],
        "none": [storage.stem(u) for u in uris],
    }
    if rule == "auto":
        return next(g for g in rules.values() if len(set(g)) > 1 or g is rules["none"])
    return rules[rule]


def fingerprint(images: Sequence[LabelledImage], classes: Classes) -> str:
    """Return 16 hex digits of a hash of names and contents of images and masks, and classes."""
    digest = hashlib.sha256(repr(classes).encode())
    for item in images:
        for uri in (item.image, item.mask):
            content = hashlib.sha256(storage.read_bytes(uri)).digest()
            digest.update(storage.name(uri).encode() + content)
    return digest.hexdigest()[:16]


def count_values(labels: NDArray[np.int16]) -> dict[int, int]:
    """Return the number of pixels of a mask (H, W) by value, VOID included."""
    counts = np.zeros(int(labels.max()) + 2, np.int64)
    for block in np.array_split(labels.ravel(), 1 + labels.size // 2**22):  # the cast needs memory
        counts += np.bincount(block.astype(np.int32) + 1, minlength=len(counts))
    return {int(i) - 1: int(counts[i]) for i in np.flatnonzero(counts)}


def describe_unnamed(pixels: Mapping[int, int], classes: Classes) -> str | None:
    """Return a message on the mask values that count as background, with their shares.

    Args:
        pixels: number of pixels by value, see `count_values`.

    Returns:
        None if every value has a class.
    """
    unnamed = {v: n for v, n in pixels.items() if v != VOID and classes.class_of(v) == 0}
    if not unnamed:
        return None
    total = sum(pixels.values())
    frequent = sorted(unnamed, key=lambda v: (-unnamed[v], v))
    shown, rest = sorted(frequent[:_MAX_SHOWN]), frequent[_MAX_SHOWN:]
    parts = [
        f"{value} ({_format_percent(unnamed[value] / total)} of all pixels)" for value in shown[:1]
    ]
    parts += [f"{value} ({_format_percent(unnamed[value] / total)})" for value in shown[1:]]
    if rest:
        share = sum(unnamed[value] for value in rest) / total
        parts.append(f"{len(rest):,} more ({_format_percent(share)})")
    advice = "" if set(unnamed) == {0} else '; list void values under "ignore"'
    return f"mask values that no class names count as background: {', '.join(parts)}{advice}"


def _format_percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %") if share >= 0.001 else "less than 0.1 %"
