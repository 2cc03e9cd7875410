"""Descriptors: further vectors of an image, from its pixels, class map and features.

A descriptor is a module of this package with the name of the descriptor, `_` in place of `-`. A
name does not end in that of a metric, as `NAME-METRIC` is a method. The module has two members:

`fit(arguments, samples) -> Parameters` computes the parameters that the model bundle stores.
`arguments` are strings by name; `samples` gives access to the images of the index. It raises
InputError for unknown arguments.

`Descriptor(parameters, classes, device)` computes vectors, see the protocol below. `classes` counts
the background.
"""

import ast
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError

Vectors = NDArray[np.float32]
Prepare = Callable[[Vectors], NDArray[np.floating[Any]]]
"""Function of rows (n, C) that computes rows (n, C)."""


_NOT_DESCRIPTORS = ("inputs", "runtime")  # other modules of this package


@dataclass(frozen=True)
class ImageBatch:
    """B images of one shape, with their class maps and features.

    pixels: (B, H, W, 3) uint8 RGB. labels: (B, H, W) uint8, the class of each pixel, 0 background.
    feature: (B, C) of whole images. region_features: (B, K, C) of each class and the background,
    zero where it is absent. counts: (B, K) cells of each class.
    `pixels` and `labels` are empty for a descriptor that does not read pixels.
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
    """Vectors and categories of a batch.

    Attributes:
        vectors: (B, length); a row is NaN where the descriptor is not defined.
        categories: (B,) names by which a search can be restricted, or None.
    """

    vectors: Vectors
    categories: Sequence[str] | None = None


@dataclass(frozen=True)
class Parameters:
    """Parameters of a descriptor in a bundle: JSON values and NumPy arrays."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Descriptor(Protocol):
    """Operator that computes vectors: equal for equal images, up to rounding in batches.

    Attributes:
        reads_pixels: True if it needs `pixels` and `labels`.
        on_device: True if it computes on the device of the model, not on the host.
        length: length of its vectors.
    """

    reads_pixels: ClassVar[bool]
    on_device: ClassVar[bool]
    length: int

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images."""


@dataclass(frozen=True)
class Moments:
    """Mean (C,) and scatter Σ (x − x̄)(x − x̄)ᵀ (C, C) of n vectors, float64."""

    n: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]


Value = TypeVar("Value")
Result = TypeVar("Result")


class Samples(Protocol):
    """Images of an index from which a descriptor learns its parameters."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes by label; the background is the first."""

    @property
    def feature_length(self) -> int:
        """The length of a feature."""

    def compute_moments(self, prepare: Prepare | None = None) -> Moments:
        """Return the moments of the features of all images, computed in one pass.

        With `prepare`, a function of a module, they are those of `prepare(features)`.
        """

    def draw_images(self, count: int) -> Iterator[ImageBatch]:
        """Yield batches of random images: at most `count`, and no more than the user allows."""

    def draw_features(self, count: int) -> Iterator[tuple[Vectors, NDArray[np.uint8]]]:
        """Yield features (n, C) and hashes (n, 16) of the bytes of at most `count` images.

        Images are drawn by these hashes, and copies are one image.
        """

    def map_slices(
        self, function: Callable[[Value, slice], Result], value: Value, rows: int
    ) -> Iterator[Result]:
        """Yield `function(value, part)` for slices that make up `rows` rows, in their order."""

    def read_labelled_features(self, count: int) -> tuple[Vectors, Sequence[str]]:
        """Return features (n, C) of at most `count` random images and their folders."""


def parse_arguments(arguments: Mapping[str, str], **defaults: str) -> dict[str, str]:
    """Return the arguments with defaults for missing ones. Raises InputError for unknown ones.

    >>> parse_arguments({"bins": "8"}, bins="16", size="64")
    {'bins': '8', 'size': '64'}
    """
    unknown = sorted(set(arguments) - set(defaults))
    if unknown:
        known = ", ".join(defaults) or "none"
        raise InputError(f"unknown argument {unknown[0]!r}; known are {known}")
    return {**defaults, **arguments}


def parse_integers(arguments: Mapping[str, str], **defaults: int) -> dict[str, int]:
    """Return the arguments as integers of at least 1. Raises InputError."""
    values = parse_arguments(arguments, **{name: str(number) for name, number in defaults.items()})
    for name, text in values.items():
        if not (text.isascii() and text.isdecimal() and int(text)):
            raise InputError(f"{name}={text} is not a whole number of 1 or more")
    return {name: int(text) for name, text in values.items()}


def names() -> list[str]:
    """Return the names of all descriptors."""
    modules = pkgutil.iter_modules(__path__)
    files = [m.name for m in modules if not m.ispkg and m.name not in _NOT_DESCRIPTORS]
    return sorted(name.replace("_", "-") for name in files)


def summaries() -> dict[str, str]:
    """Return the first docstring line of each descriptor, without importing it."""
    (folder,) = __path__
    lines = {}
    for name in names():
        tree = ast.parse((Path(folder) / f"{_file(name)}.py").read_text())
        lines[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return lines


def module(name: str) -> Any:
    """Import the module of a descriptor. Raises InputError if there is none."""
    if name not in names():
        raise InputError(f"unknown descriptor {name!r}; known are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{_file(name)}")


def _file(name: str) -> str:
    return name.replace("-", "_")
