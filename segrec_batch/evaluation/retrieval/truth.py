"""Ground truth: which images are relevant to which, and how much alike their labels are."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.kernels import overlaps

log = logging.getLogger(__name__)

Bools = NDArray[np.bool_]


class Relevance(Protocol):
    """Which of n images are relevant to which; each one is to itself."""

    def of(self, rows: Ints) -> Bools:
        """Those relevant to some images: (q,) → (q, n)."""
        ...

    def others(self) -> Ints:
        """How many others are relevant to each image: (n,)."""
        ...


@dataclass(frozen=True)
class Groups:
    """Images of one group are relevant to each other. group: (n,), below 0 where there is none."""

    group: Ints

    def of(self, rows: Ints) -> Bools:
        """(q,) → (q, n)."""
        mine = self.group[rows][:, None]
        found: Bools = (mine == self.group) & (mine >= 0)
        found[np.arange(len(rows)), rows] = True
        return found

    def others(self) -> Ints:
        """(n,)."""
        known = self.group >= 0
        sizes = np.bincount(self.group[known], minlength=1)
        return np.where(known, sizes[self.group] - 1, 0)


@dataclass(frozen=True)
class Lists:
    """images[starts[i] : starts[i + 1]] are relevant to image i; starts: (n + 1,)."""

    starts: Ints
    images: Ints

    def of(self, rows: Ints) -> Bools:
        """(q,) → (q, n)."""
        found = np.zeros((len(rows), len(self.starts) - 1), bool)
        for line, row in zip(found, rows, strict=True):
            line[self.images[self.starts[row] : self.starts[row + 1]]] = True
            line[row] = True
        return found

    def others(self) -> Ints:
        """(n,)."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class Truth:
    """What is relevant to what. words: that in words. fingerprint: 16 hex digits over all labels.
    labels: (n,), the number of each image's class among `classes`, below 0 where it has none.
    masks: (n, W) words, labelled bitmaps of the foreground classes, None if there are no masks.
    details: how many images there are with and without a label, and the like.
    """

    relevance: Relevance
    words: str
    fingerprint: str
    classes: tuple[str, ...] = ()
    labels: Ints | None = None
    masks: Ints | None = None
    details: Mapping[str, int] = field(default_factory=dict)

    def relevant(self, rows: Ints) -> Bools:
        """Those relevant to some images, each to itself: (q,) → (q, n)."""
        return self.relevance.of(rows)

    def gains(self, rows: Ints) -> NDArray[np.float32] | None:
        """Overlap of the labelled masks with those of some images (q,) → (q, n) in [0, 1]."""
        if self.masks is None:
            return None
        found = overlaps(self.masks[rows], self.masks)
        return np.nan_to_num(found, nan=0.0).astype(np.float32)

    def name(self, row: int) -> str:
        """The class of an image, "" if it has none."""
        number = -1 if self.labels is None else int(self.labels[row])
        return self.classes[number] if number >= 0 else ""

    def queries(self, count: int, seed: int) -> Ints:
        """Images to which another one is relevant, by image_id: all, or `count` of them, drawn.

        Raises InputError if there is none.
        """
        possible = np.flatnonzero(self.relevance.others())
        if not len(possible):
            raise InputError(f"no query has anything relevant: {self.words}")
        if len(possible) <= count:
            return possible
        return np.sort(np.random.default_rng(seed).choice(possible, count, replace=False))


@dataclass(frozen=True)
class Folders:
    """Relevant is what lies in the same folder; the class is the folder's name."""

    def find(self, images: Collection) -> Truth:
        """The ground truth for the images of an index."""
        paths = [uri.rpartition("/")[0] for uri in images.uris.to_pylist()]
        folders = sorted(set(paths))
        numbers = {path: i for i, path in enumerate(folders)}
        group = np.array([numbers[path] for path in paths], np.int64)
        return Truth(
            relevance=Groups(group),
            words=f"Relevant is what lies in the folder of the query, one of {len(folders):,}.",
            fingerprint=digest("folder", *zip(images.ids.to_pylist(), paths, strict=True)),
            classes=tuple(path.rpartition("/")[2] for path in folders),
            labels=group,
            details={"images": len(images), "folders": len(folders)},
        )


def digest(*parts: object) -> str:
    """16 hex digits over texts, numbers and tuples of them."""
    found = hashlib.sha256()
    for part in parts:
        found.update(repr(part).encode() + b"\0")
    return found.hexdigest()[:16]


def said(details: Mapping[str, int]) -> Mapping[str, int]:
    """The same counts, said on stderr."""
    log.info("ground truth: " + ", ".join(f"{name} {count:,}" for name, count in details.items()))
    return details
