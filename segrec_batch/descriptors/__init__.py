"""Descriptors: further vectors of an image, from its pixels, its class map and its features.

Each module of this package is one descriptor, and is named as it is. It has two names:

`fit(arguments, samples) -> Parameters`: what goes into the model bundle. `arguments` are the
user's, texts by name, `samples` is what the index has of its images. InputError for arguments it
does not know.

`Descriptor(parameters, classes, device)`: what computes vectors, as the protocol below says.
`classes` counts the background.
"""

import ast
import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError

Vectors = NDArray[np.float32]


_NOT_DESCRIPTORS = ("inputs", "runtime")  # modules of this package


@dataclass(frozen=True)
class ImageBatch:
    """B images of one shape, and what the model found in them.

    pixels: (B, H, W, 3) uint8 RGB. labels: (B, H, W) uint8, the class of each pixel, 0 background.
    feature: (B, C) of whole images. region_features: (B, K, C) of each class and the background,
    zero where it is absent. counts: (B, K) cells of each class.
    Of a descriptor that does not read pixels, `pixels` and `labels` are empty.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    feature: Vectors
    region_features: Vectors
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.feature)


@dataclass(frozen=True)
class Described:
    """vectors: (B, length); a row of NaN where the descriptor is not defined. categories: (B,),
    names to which a search can be narrowed, or None.
    """

    vectors: Vectors
    categories: Sequence[str] | None = None


@dataclass(frozen=True)
class Parameters:
    """What a bundle holds of a descriptor: JSON values and tensors, as NumPy arrays."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Descriptor(Protocol):
    """What computes vectors. Equal images have equal vectors, up to how batches round.

    reads_pixels: whether `pixels` and `labels` are needed. on_device: whether it computes on the
    device that it was given, rather than on the host.
    """

    reads_pixels: ClassVar[bool]
    on_device: ClassVar[bool]
    length: int

    def __call__(self, images: ImageBatch) -> Described:
        """Describe images."""


@dataclass(frozen=True)
class Moments:
    """Of n vectors: their mean (C,) and scatter Σ (x − x̄)(x − x̄)ᵀ (C, C), float64."""

    n: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]


class Samples(Protocol):
    """The images of an index, for what a descriptor has to learn."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, of which position is label; the background is the first."""

    @property
    def feature_length(self) -> int:
        """Values of a feature."""

    def moments(self) -> Moments:
        """Of the features of all images, in one pass."""

    def draw_images(self, count: int) -> Iterator[ImageBatch]:
        """At most `count` images, and no more than the user allows, drawn at random, a few at a
        time.
        """

    def labelled(self, count: int) -> tuple[Vectors, Sequence[str]]:
        """Features (n, C) of at most `count` images, drawn at random, and the names of the folders
        that the images lie in.
        """


def chosen(arguments: Mapping[str, str], **defaults: str) -> dict[str, str]:
    """The user's arguments over the defaults of all that there are. Raises InputError for others.

    >>> chosen({"bins": "8"}, bins="16", size="64")
    {'bins': '8', 'size': '64'}
    """
    unknown = sorted(set(arguments) - set(defaults))
    if unknown:
        known = ", ".join(defaults) or "none"
        raise InputError(f"no argument {unknown[0]!r} here; there are {known}")
    return {**defaults, **arguments}


def whole_numbers(arguments: Mapping[str, str], **defaults: int) -> dict[str, int]:
    """The same where all are whole numbers, of 1 or more."""
    given = chosen(arguments, **{name: str(number) for name, number in defaults.items()})
    for name, text in given.items():
        if not (text.isascii() and text.isdecimal() and int(text)):
            raise InputError(f"{name}={text} is not a whole number of 1 or more")
    return {name: int(text) for name, text in given.items()}


def names() -> list[str]:
    """The descriptors that there are."""
    modules = pkgutil.iter_modules(__path__)
    return sorted(m.name for m in modules if not m.ispkg and m.name not in _NOT_DESCRIPTORS)


def summaries() -> dict[str, str]:
    """What each descriptor is, in a line. Imports none of them."""
    (folder,) = __path__
    found = {}
    for name in names():
        tree = ast.parse((Path(folder) / f"{name}.py").read_text())
        found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def module(name: str) -> Any:
    """The module of a descriptor. Raises InputError."""
    if name not in names():
        raise InputError(f"no descriptor {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
