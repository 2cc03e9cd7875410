"""Ground truth: the images that are relevant to each image, by folders or pairs."""

import csv
import hashlib
import io
import logging
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.settings import Bools
from segrec_batch.search.similarity import mask_overlaps
from segrec_batch.sources import storage

log = logging.getLogger(__name__)

_HEADER = ["query", "relevant"]


@dataclass(frozen=True)
class Groups:
    """Images of one group are relevant to each other. group: (n,), below 0 for none."""

    group: Ints

    def matrix(self, rows: Ints) -> Bools:
        """Return the images that are relevant to some, each to itself: (q,) → (q, n)."""
        own = self.group[rows][:, None]
        relevant: Bools = (own == self.group) & (own >= 0)
        relevant[np.arange(len(rows)), rows] = True
        return relevant

    def counts(self) -> Ints:
        """Return the number of images that are relevant to each, without itself: (n,)."""
        known = self.group >= 0
        sizes = np.bincount(self.group[known], minlength=1)
        return np.where(known, sizes[self.group] - 1, 0)


@dataclass(frozen=True)
class Lists:
    """Images images[starts[i] : starts[i + 1]] are relevant to image i. starts: (n + 1,)."""

    starts: Ints
    images: Ints

    def matrix(self, rows: Ints) -> Bools:
        """Return the images that are relevant to some, each to itself: (q,) → (q, n)."""
        relevant = np.zeros((len(rows), len(self.starts) - 1), bool)
        for line, row in zip(relevant, rows, strict=True):
            line[self.images[self.starts[row] : self.starts[row + 1]]] = True
            line[row] = True
        return relevant

    def counts(self) -> Ints:
        """Return the number of images that are relevant to each, without itself: (n,)."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class GroundTruth:
    """The relevance of the images of an index.

    Attributes:
        relevance: of each image to each other.
        description: a sentence for the report.
        fingerprint: 16 hex digits of all labels.
        classes: names of the classes of queries.
        labels: (n,), the number of each image's class among `classes`, below 0 for none.
        masks: (n, W) words, label bitmaps of the foreground classes; None without masks.
        details: counts of images with and without a label, and the like.
    """

    relevance: Groups | Lists
    description: str
    fingerprint: str
    classes: tuple[str, ...] = ()
    labels: Ints | None = None
    masks: Ints | None = None
    details: Mapping[str, int] = field(default_factory=dict)

    def gains(self, rows: Ints) -> NDArray[np.float32] | None:
        """Return the overlaps of label masks with those of some images: (q,) → (q, n) in [0, 1]."""
        if self.masks is None:
            return None
        overlaps = mask_overlaps(self.masks[rows], self.masks)
        return np.nan_to_num(overlaps, nan=0.0).astype(np.float32)

    def class_name(self, row: int) -> str:
        """Return the class of an image, "" if it has none."""
        number = -1 if self.labels is None else int(self.labels[row])
        return self.classes[number] if number >= 0 else ""

    def queries(self, count: int, seed: int) -> Ints:
        """Return the images that have a relevant one, sorted; a random sample if over `count`.

        Raises:
            InputError: if there is none.
        """
        possible = np.flatnonzero(self.relevance.counts())
        if not len(possible):
            raise InputError(f"no image has a relevant image: {self.description}")
        if len(possible) <= count:
            return possible
        return np.sort(np.random.default_rng(seed).choice(possible, count, replace=False))


@dataclass(frozen=True)
class Folders:
    """Ground truth by folders: images of one folder are relevant, its name is their class."""

    def read(self, images: Collection) -> GroundTruth:
        """Return the ground truth for the images of an index."""
        paths = [uri.rpartition("/")[0] for uri in images.uris.to_pylist()]
        folders = sorted(set(paths))
        numbers = {path: i for i, path in enumerate(folders)}
        group = np.array([numbers[path] for path in paths], np.int64)
        return GroundTruth(
            relevance=Groups(group),
            description="Images of the query's folder are relevant; "
            f"the images lie in {len(folders):,} folders.",
            fingerprint=digest("folder", *zip(images.ids.to_pylist(), paths, strict=True)),
            classes=tuple(path.rpartition("/")[2] for path in folders),
            labels=group,
            details={"images": len(images), "folders": len(folders)},
        )


@dataclass(frozen=True)
class Pairs:
    """Ground truth by a CSV file with the header query,relevant or query,relevant,class.

    A cell names an image by its image_id, its URI, or the last parts of its URI if only one image
    of the index has them (a.jpg, place_00/a.jpg); accents may be composed or decomposed. The class
    is that of the query.
    """

    uri: str

    def read(self, images: Collection) -> GroundTruth:
        """Return the ground truth for the images of an index.

        Raises:
            InputError: with line and cell, for a cell that names no image.
        """
        names = _Names(images)
        pairs: set[tuple[int, int]] = set()
        classes: dict[int, str] = {}
        for where, (query, relevant, *cls) in _lines(self.uri):
            row = names.row(query, where)
            pairs.add((row, names.row(relevant, where)))
            if cls and classes.setdefault(row, cls[0]) != cls[0]:
                raise InputError(
                    f"{where}: {query!r} has class {classes[row]!r} above, {cls[0]!r} here"
                )
        table = np.array(sorted(p for p in pairs if p[0] != p[1]), np.int64).reshape(-1, 2)
        counts = np.bincount(table[:, 0], minlength=len(images))
        class_names, ids = tuple(sorted(set(classes.values()))), images.ids.to_pylist()
        labels = np.full(len(images), -1)
        for row, name in classes.items():
            labels[row] = class_names.index(name)
        labelled = sorted((ids[row], name) for row, name in classes.items())
        details = {"images": len(images), "pairs": len(table), "queries": int((counts > 0).sum())}
        log_details(details)
        return GroundTruth(
            relevance=Lists(np.concatenate([[0], np.cumsum(counts)]), table[:, 1]),
            description=f"{storage.name(self.uri)} names the relevant images of each query.",
            fingerprint=digest("csv", *((ids[a], ids[b]) for a, b in table), *labelled),
            classes=class_names,
            labels=labels,
            details=details,
        )


def _lines(uri: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the cells of each line. Raises InputError."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{uri}: not a readable UTF-8 file: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            where = f"{uri}, line {reader.line_num}"
            if not header:
                header = cells
                if header not in (_HEADER, [*_HEADER, "class"]):
                    raise InputError(
                        f"{where}: the first line is query,relevant[,class], not {','.join(header)}"
                    )
            elif len(cells) == len(header):
                yield where, cells
            elif cells:
                raise InputError(f"{where}: {len(cells)} cells under {len(header)} headings")
    except csv.Error as error:
        raise InputError(f"{uri}, line {reader.line_num}: {error}") from error
    if not header:
        raise InputError(f"{uri} is empty; its first line is query,relevant[,class]")


class _Names:
    """Rows of images by image_id, URI and ends of URIs."""

    def __init__(self, images: Collection) -> None:
        self._uris = images.uris.to_pylist()
        self._ids = {name: i for i, name in enumerate(images.ids.to_pylist())}
        self._ends: dict[int, dict[str, list[int]]] = {}

    def row(self, cell: str, where: str) -> int:
        """Return the image that a cell names. Raises InputError."""
        if cell in self._ids:
            return self._ids[cell]
        slashes = cell.count("/")
        if slashes not in self._ends:
            ends = self._ends[slashes] = {}
            for i, uri in enumerate(self._uris):
                ends.setdefault(_composed(_end(uri, slashes)), []).append(i)
        rows = self._ends[slashes].get(_composed(cell), [])
        if len(rows) > 1:
            rows = [row for row in rows if _end(self._uris[row], slashes) == cell] or rows
        if len(rows) > 1:
            raise InputError(f"{where}: {cell!r} is the end of more than one URI; give more of it")
        if not rows:
            raise InputError(
                f"{where}: {cell!r} is no image_id and no URI, or end of one, of the index"
            )
        return rows[0]


def _end(uri: str, slashes: int) -> str:
    return "/".join(uri.split("/")[-slashes - 1 :])


def _composed(text: str) -> str:
    """Return a text with composed accents (NFC); macOS stores names decomposed."""
    return unicodedata.normalize("NFC", text)


def digest(*parts: object) -> str:
    """Return 16 hex digits of texts, numbers and tuples of them."""
    content = hashlib.sha256()
    for part in parts:
        content.update(repr(part).encode() + b"\0")
    return content.hexdigest()[:16]


def log_details(details: Mapping[str, int]) -> None:
    """Log the counts of a ground truth."""
    log.info("ground truth: %s", ", ".join(f"{name} {n:,}" for name, n in details.items()))
