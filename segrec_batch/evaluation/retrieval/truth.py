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
from scipy.sparse import csr_array

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.settings import Bools
from segrec_batch.search.similarity import mask_overlaps
from segrec_batch.sources import storage

log = logging.getLogger(__name__)

_HEADER = ["query", "relevant"]


@dataclass(frozen=True)
class GroundTruth:
    """The relevance of the images of an index to each other.

    Attributes:
        labels: (n,), number of the class of each image, below 0 for none. Images of one class are
            relevant to each other, unless there are `pairs`.
        description: a sentence for the report.
        fingerprint: 16 hex digits of all labels.
        classes: names of the classes by number; empty for classes without names.
        pairs: (n, n) bool, the images (columns) that are relevant to each (row), none to itself.
        masks: (n, W) words, label bitmaps of the foreground classes; None without masks.
        details: counts of images with and without a label, and the like.
    """

    labels: Ints
    description: str
    fingerprint: str
    classes: tuple[str, ...] = ()
    pairs: csr_array | None = None
    masks: Ints | None = None
    details: Mapping[str, int] = field(default_factory=dict)

    def relevant(self, rows: Ints) -> Bools:
        """Return which images are relevant to each query; a query is to itself: (q,) → (q, n)."""
        own = self.labels[rows][:, None]
        same_class = (own == self.labels) & (own >= 0)
        relevant: Bools = same_class if self.pairs is None else self.pairs[rows].toarray()
        relevant[np.arange(len(rows)), rows] = True
        return relevant

    def relevant_counts(self) -> Ints:
        """Return the number of images that are relevant to each image, without itself: (n,)."""
        if self.pairs is not None:
            return np.asarray(np.diff(self.pairs.indptr))
        has_class = self.labels >= 0
        sizes = np.bincount(self.labels[has_class], minlength=1)
        return np.where(has_class, sizes[self.labels] - 1, 0)

    def gains(self, rows: Ints) -> NDArray[np.float32] | None:
        """Return the IoU of label masks with those of the queries: (q,) → (q, n) in [0, 1]."""
        if self.masks is None:
            return None
        overlaps = mask_overlaps(self.masks[rows], self.masks)
        return np.nan_to_num(overlaps, nan=0.0).astype(np.float32)

    def class_name(self, row: int) -> str:
        """Return the class of an image, "" if it has none."""
        number = self.labels[row]
        return self.classes[number] if 0 <= number < len(self.classes) else ""

    def queries(self, count: int, seed: int) -> Ints:
        """Return the images that have a relevant image, sorted; a random sample of `count` of more.

        Raises:
            InputError: if there is no such image.
        """
        possible = np.flatnonzero(self.relevant_counts())
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
        folders, labels = np.unique(np.array(paths, object), return_inverse=True)
        return GroundTruth(
            labels,
            description="Images of the query's folder are relevant; "
            f"the images lie in {len(folders):,} folders.",
            fingerprint=digest("folder", *zip(images.ids.to_pylist(), paths, strict=True)),
            classes=tuple(path.rpartition("/")[2] for path in folders),
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
        names, n = _Names(images), len(images)
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
        class_names, ids = tuple(sorted(set(classes.values()))), images.ids.to_pylist()
        labels = np.full(n, -1)
        for row, name in classes.items():
            labels[row] = class_names.index(name)
        labelled = sorted((ids[row], name) for row, name in classes.items())
        details = {"images": n, "pairs": len(table), "queries": len(np.unique(table[:, 0]))}
        log_details(details)
        return GroundTruth(
            labels,
            description=f"{storage.name(self.uri)} names the relevant images of each query.",
            fingerprint=digest("csv", *((ids[a], ids[b]) for a, b in table), *labelled),
            classes=class_names,
            pairs=csr_array((np.ones(len(table), bool), table.T), shape=(n, n)),
            details=details,
        )


def _lines(uri: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the cells of each line below the header. Raises InputError."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{uri}: not a readable UTF-8 file: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if header not in (_HEADER, [*_HEADER, "class"]):
            raise InputError(
                f"{uri}, line 1: the first line is query,relevant[,class], not "
                f"{','.join(header) or 'empty'}"
            )
        for cells in filter(None, reader):
            where = f"{uri}, line {reader.line_num}"
            if len(cells) != len(header):
                raise InputError(f"{where}: {len(cells)} cells under {len(header)} headings")
            yield where, cells
    except csv.Error as error:
        raise InputError(f"{uri}, line {reader.line_num}: {error}") from error


class _Names:
    """Rows of images by image_id, URI and ends of URIs."""

    def __init__(self, images: Collection) -> None:
        self._uris = images.uris.to_pylist()
        self._ids = {name: i for i, name in enumerate(images.ids.to_pylist())}
        self._ends: dict[int, dict[str, list[int]]] = {}  # rows by end, by number of slashes

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
    """Return 16 hex digits that identify texts, numbers and tuples of them."""
    content = hashlib.sha256()
    for part in parts:
        content.update(repr(part).encode() + b"\0")
    return content.hexdigest()[:16]


def log_details(details: Mapping[str, int]) -> None:
    """Log the counts of a ground truth."""
    log.info("ground truth: %s", ", ".join(f"{name} {n:,}" for name, n in details.items()))
