"""Ground truth from a CSV file of pairs: a query and an image that is relevant to it."""

import csv
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import Collection
from segrec_batch.evaluation.retrieval.truth import Lists, Truth, digest, said
from segrec_batch.sources import storage

_HEADER = ["query", "relevant"]
_MORE = -2  # more than one image has this name


@dataclass(frozen=True)
class Pairs:
    """A file with the header query,relevant or query,relevant,class.

    A cell names an image by its image_id, its URI, or the last parts of its URI as far as only one
    image of the index has them (a.jpg, place_00/a.jpg); accents may be stored in either of
    Unicode's ways. The class is that of the query.
    """

    uri: str

    def find(self, images: Collection) -> Truth:
        """The ground truth. Raises InputError, with line and cell, for what names no image."""
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
        found = np.array(sorted(p for p in pairs if p[0] != p[1]), np.int64).reshape(-1, 2)
        return self._truth(images, found, classes)

    def _truth(self, images: Collection, pairs: np.ndarray, classes: dict[int, str]) -> Truth:
        names = tuple(sorted(set(classes.values())))
        labels = np.full(len(images), -1)
        for row, name in classes.items():
            labels[row] = names.index(name)
        ids = images.ids.to_pylist()
        told = sorted((ids[row], name) for row, name in classes.items())
        counts = np.bincount(pairs[:, 0], minlength=len(images))
        used = {"images": len(images), "pairs": len(pairs), "queries": int((counts > 0).sum())}
        return Truth(
            relevance=Lists(np.concatenate([[0], np.cumsum(counts)]), pairs[:, 1]),
            words=f"Relevant is what {storage.name(self.uri)} names for the query.",
            fingerprint=digest("csv", *((ids[a], ids[b]) for a, b in pairs), *told),
            classes=names,
            labels=labels,
            details=said(used),
        )


def _lines(uri: str) -> Iterator[tuple[str, list[str]]]:
    """Where a line is, and its cells. Raises InputError."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{uri}: not a readable UTF-8 file: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            where = f"{uri}, line {reader.line_num}"
            if header is None:
                header = _checked(cells, where)
            elif len(cells) == len(header):
                yield where, cells
            elif cells:
                raise InputError(f"{where}: {len(cells)} cells under {len(header)} headings")
    except csv.Error as error:
        raise InputError(f"{uri}, line {reader.line_num}: {error}") from error
    if header is None:
        raise InputError(f"{uri} is empty; its first line is query,relevant[,class]")


def _checked(header: list[str], where: str) -> list[str]:
    if header not in (_HEADER, [*_HEADER, "class"]):
        raise InputError(
            f"{where}: the first line is query,relevant[,class], not {','.join(header)}"
        )
    return header


class _Names:
    """Images by whatever names them."""

    def __init__(self, images: Collection) -> None:
        uris = images.uris.to_pylist()
        self._uris = (uris, list(map(_composed, uris)))
        self._ids = {name: i for i, name in enumerate(images.ids.to_pylist())}
        self._ends: dict[tuple[int, bool], dict[str, int]] = {}

    def row(self, cell: str, where: str) -> int:
        """The image that a cell names. Raises InputError."""
        if cell in self._ids:
            return self._ids[cell]
        slashes = cell.count("/")
        found = self._with(slashes, composed=False).get(cell, -1)
        if found == -1:
            found = self._with(slashes, composed=True).get(_composed(cell), -1)
        if found == _MORE:
            raise InputError(f"{where}: {cell!r} is the end of more than one URI; give more of it")
        if found < 0:
            raise InputError(
                f"{where}: {cell!r} is no image_id and no URI, or end of one, of the index"
            )
        return found

    def _with(self, slashes: int, *, composed: bool) -> dict[str, int]:
        """Images by the last parts of their URIs, with so many slashes between them."""
        if (slashes, composed) not in self._ends:
            ends: dict[str, int] = {}
            for i, uri in enumerate(self._uris[composed]):
                end = "/".join(uri.split("/")[-slashes - 1 :])
                ends[end] = _MORE if end in ends else i
            self._ends[slashes, composed] = ends
        return self._ends[slashes, composed]


def _composed(text: str) -> str:
    """Return a text with its accents composed (NFC), as few systems but macOS store names."""
    return unicodedata.normalize("NFC", text)
