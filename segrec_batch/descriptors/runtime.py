"""The descriptors of a bundle at work: vectors for rows of images (see `images`)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from segrec_batch import descriptors
from segrec_batch.common.errors import ModelError, SegrecError
from segrec_batch.descriptors import Described, Descriptor, Parameters
from segrec_batch.descriptors.inputs import UNDEFINED, Row, assemble, by_shape
from segrec_batch.model.bundle import load_descriptor
from segrec_batch.model.spec import DescriptorSpec, ModelSpec, read_spec
from segrec_batch.sources.strict_json import shorten

_TOGETHER = 32  # images


@dataclass(frozen=True)
class Loaded:
    """One descriptor, under the id of its vectors; `classes` counts the background."""

    id: str
    descriptor: Descriptor
    classes: int

    def __call__(
        self, rows: Sequence[Row], alone: AbstractContextManager[Any] | None = None
    ) -> None:
        """Add a vector to `described` of each row, or the `reason` why it has no image.

        It computes inside `alone`, a lock on the device where others use it, too.
        """
        for batch in self._batches(rows):
            seen = assemble(batch, self.classes, self.descriptor.reads_pixels)
            with alone or nullcontext():
                found = self.descriptor(seen)
            for row, entry in zip(batch, self._entries(found), strict=True):
                row["described"].append(entry)
        if self.descriptor.reads_pixels:
            for row in rows:
                if not row["shape"]:
                    row["described"].append(self._entry(None, None, row["reason"]))

    def _batches(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        if self.descriptor.reads_pixels:
            yield from by_shape(rows, _TOGETHER)
        elif rows:
            yield rows

    def _entries(self, found: Described) -> Iterator[dict[str, Any]]:
        categories: Sequence[str | None] = found.categories or [None] * len(found.vectors)
        for vector, category in zip(found.vectors, categories, strict=True):
            if np.isnan(vector).any():
                yield self._entry(None, category, UNDEFINED)
            else:
                yield self._entry(vector.astype(np.float32).tobytes(), category, None)

    def _entry(self, vector: bytes | None, category: str | None, reason: str | None) -> Row:
        return {"descriptor": self.id, "category": category, "vector": vector, "reason": reason}


def on_device(spec: ModelSpec) -> tuple[str, ...]:
    """The names of the descriptors that compute on the model's device."""
    return tuple(d.name for d in spec.descriptors if _kind(d.name).on_device)


def on_host(spec: ModelSpec) -> tuple[str, ...]:
    """The names of the others."""
    return tuple(d.name for d in spec.descriptors if not _kind(d.name).on_device)


def read_pixels(names: Sequence[str]) -> bool:
    """Whether any of some descriptors needs the image itself."""
    return any(_kind(name).reads_pixels for name in names)


@lru_cache(maxsize=2)
def load(
    bundle: str, names: tuple[str, ...], device: str, precision: str = "float32"
) -> list[Loaded]:
    """Load some descriptors of a bundle, once in a process. Raises ModelError.

    precision: of those that are networks.
    """
    spec = read_spec(bundle)[0]
    classes = len(spec.all_classes)
    loaded = []
    for d in spec.descriptors:
        if d.name in names:
            kind = _kind(d.name)
            more = {"precision": precision} if kind.on_device else {}
            parameters = _parameters(bundle, d)
            try:
                descriptor = kind(parameters, classes, device, **more)
            except SegrecError:
                raise
            except Exception as error:  # of whatever library meets settings that cannot be
                raise ModelError(f"{bundle}: descriptor {d.name}: {shorten(error)}") from error
            loaded.append(Loaded(d.id, descriptor, classes))
    return loaded


def _parameters(bundle: str, descriptor: DescriptorSpec) -> Parameters:
    return Parameters(descriptor.settings, load_descriptor(bundle, descriptor))


def _kind(name: str) -> Any:
    return descriptors.module(name).Descriptor
