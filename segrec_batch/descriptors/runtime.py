"""Descriptors of a bundle, loaded and applied to segmented images."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch import descriptors
from segrec_batch.common.errors import ModelError, SegrecError
from segrec_batch.descriptors import Descriptor, Parameters
from segrec_batch.descriptors.inputs import (
    UNDEFINED,
    DescriptorVector,
    assemble,
    group_by_shape,
)
from segrec_batch.model.bundle import load_descriptor
from segrec_batch.model.segmented_image import SegmentedImage
from segrec_batch.model.spec import ModelSpec, read_spec
from segrec_batch.sources.strict_json import shorten

_BATCH = 32  # images


@dataclass(frozen=True)
class LoadedDescriptor:
    """A descriptor of a bundle under the id of its vectors."""

    id: str
    descriptor: Descriptor

    def __call__(
        self, images: Sequence[SegmentedImage], lock: AbstractContextManager[Any] | None = None
    ) -> list[DescriptorVector]:
        """Return the vectors of images, in their order.

        Args:
            images: with pixels if the descriptor reads them.
            lock: held during the computation if other threads use the device too.
        """
        vectors: list[DescriptorVector | None] = [None] * len(images)
        for positions in self._split(images):
            batch = assemble([images[i] for i in positions], self.descriptor.reads_pixels)
            with lock or nullcontext():
                result = self.descriptor(batch)
            categories: Sequence[str | None] = result.categories or [None] * len(positions)
            for i, vector, category in zip(positions, result.vectors, categories, strict=True):
                vectors[i] = self._to_result(vector, category)
        return [vector for vector in vectors if vector is not None]

    def without_image(self, reason: str | None) -> DescriptorVector:
        """Return the result for an image whose pixels could not be read."""
        return DescriptorVector(self.id, reason=reason)

    def _split(self, images: Sequence[SegmentedImage]) -> Iterator[Sequence[int]]:
        if self.descriptor.reads_pixels:
            yield from group_by_shape(images, _BATCH)
        elif images:
            yield range(len(images))

    def _to_result(self, vector: NDArray[np.float32], category: str | None) -> DescriptorVector:
        if np.isnan(vector).any():
            return DescriptorVector(self.id, category, reason=UNDEFINED)
        return DescriptorVector(self.id, category, vector.astype(np.float32))


def on_device(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of the descriptors that compute on the device of the model."""
    return tuple(d.name for d in spec.descriptors if _load_class(d.name).on_device)


def on_host(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of the descriptors that compute on the host."""
    return tuple(d.name for d in spec.descriptors if not _load_class(d.name).on_device)


def read_pixels(names: Sequence[str]) -> bool:
    """Return True if any of the descriptors reads pixels."""
    return any(_load_class(name).reads_pixels for name in names)


@lru_cache(maxsize=2)
def load(
    bundle: str, names: tuple[str, ...], device: str, precision: str = "float32"
) -> list[LoadedDescriptor]:
    """Load descriptors of a bundle, once per process.

    Args:
        precision: arithmetic of descriptors that are networks.

    Raises:
        ModelError: the bundle is damaged.
    """
    spec = read_spec(bundle)[0]
    classes = len(spec.all_classes)
    loaded = []
    for d in spec.descriptors:
        if d.name in names:
            kind = _load_class(d.name)
            options = {"precision": precision} if kind.on_device else {}
            parameters = Parameters(d.settings, load_descriptor(bundle, d))
            try:
                descriptor = kind(parameters, classes, device, **options)
            except SegrecError:
                raise
            except Exception as error:  # any library can fail on impossible settings
                raise ModelError(f"{bundle}: descriptor {d.name}: {shorten(error)}") from error
            loaded.append(LoadedDescriptor(d.id, descriptor))
    return loaded


def _load_class(name: str) -> Any:
    return descriptors.module(name).Descriptor
