"""The images of a snapshot as arrays, for rankings of all images for many queries."""

from collections.abc import Collection as Names
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.index.schema import coverage_column
from segrec_batch.model.names import BACKGROUND
from segrec_batch.model.spec import COMMON_GRID
from segrec_batch.search.database import Database
from segrec_batch.search.sql.connection import query, read_batches
from segrec_batch.search.sql.views import identifier

Ints = NDArray[np.int64]
Features = NDArray[np.float32]
T = TypeVar("T", np.float32, np.int64)

FEATURE, REGIONS, SIGN_BITS, MASKS, FOREGROUND = PARTS = (
    "feature",
    "regions",
    "sign_bits",
    "masks",
    "foreground",
)
"""Parts of a collection that are read on request, like the vectors of descriptors."""

_BATCH_ROWS = 8192
_WORDS = COMMON_GRID**2 // 64  # of a bitmap


@dataclass(frozen=True)
class Regions:
    """The regions of one class.

    rows: (m,), their images in the collection, each once, in no particular order. features: (m, C),
    raw.
    """

    rows: Ints
    features: Features


@dataclass(frozen=True)
class Collection:
    """The n images of an index, sorted by image_id, which breaks ties.

    In memory an image takes about 100 bytes, and with 512 values a vector: 2 KB for its feature,
    2 KB for each foreground region, 64 bytes for sign bits, 128 · K for masks, 128 for its
    foreground, 4 · L for each descriptor. Parts that were not requested are empty.

    Attributes:
        ids, uris, contents: (n,) strings; contents are hashes of bytes.
        classes: the K foreground classes.
        coverages: (n, K + 1) in [0, 1], background first.
        features: (n, C), raw.
        sign_bits: (n, W) words of 64 bits.
        masks: (n, K · M) words, the bitmaps of the foreground classes one after the other on the
            common grid; 0 where an image has no such region.
        regions: by the number of a foreground class, from 1.
        foreground: (n, M) words, the bitmap of everything but the background; all bits are set for
            an image without background.
        vectors: by descriptor (n, L), rows of NaN where an image has none; L is 1 if no image has.
        categories: by descriptor (n,), equal numbers for equal categories, below 0 for none.
    """

    ids: pa.Array
    uris: pa.Array
    contents: pa.Array
    classes: tuple[str, ...]
    coverages: NDArray[np.float32]
    features: Features
    sign_bits: Ints
    masks: Ints
    regions: Mapping[int, Regions]
    foreground: Ints = field(default_factory=lambda: np.zeros((0, _WORDS), np.int64))
    vectors: Mapping[str, Features] = field(default_factory=dict)
    categories: Mapping[str, Ints] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def dominant(self) -> Ints:
        """The foreground class with the greatest coverage, 0 without foreground: (n,).

        The first class wins a tie.
        """
        foreground = self.coverages[:, 1:]
        return np.where(foreground.max(axis=1) > 0, foreground.argmax(axis=1) + 1, 0)

    @property
    def copies(self) -> int:
        """The number of images that have the bytes of an earlier one."""
        return len(self) - len(self.contents.unique())

    def rows(self, ids: pa.Array) -> Ints:
        """Return the rows of images. Raises InputError for an unknown image_id."""
        rows = pc.index_in(ids, value_set=self.ids)
        if rows.null_count:
            missing = ids.filter(rows.is_null())[0].as_py()
            raise InputError(f"{missing} is not an image_id of this index")
        return np.asarray(rows.to_numpy(), np.int64)


def load(database: Database, parts: Names[str], descriptors: Names[str] = ()) -> Collection:
    """Read all images of an index or a query cache, with some of PARTS and descriptors.

    Raises:
        InputError: if the index is empty.
    """
    spec = database.spec
    coverages = ", ".join(identifier(coverage_column(name)) for name in spec.all_classes)
    images = query(
        database.connection,
        f"SELECT image_id, uri, content_hash, {coverages} FROM images ORDER BY image_id",  # noqa: S608
    ).combine_chunks()
    if not len(images):
        raise InputError(f"{database.index} has no images")
    ids, uris, contents, *shares = (column.combine_chunks() for column in images.columns)
    reader = _Reader(database, ids)
    nothing, no_words = np.empty((len(ids), 0), np.float32), np.empty((len(ids), 0), np.int64)
    no_vectors, no_numbers = np.full((len(ids), 1), np.nan, np.float32), np.full((len(ids), 1), -1)
    no_masks = np.zeros((len(ids), _WORDS), np.int64)
    return Collection(
        ids=ids,
        uris=uris,
        contents=contents,
        classes=spec.classes,
        coverages=np.stack([share.to_numpy() for share in shares], axis=1),
        features=reader.matrix(_FEATURES, nothing) if FEATURE in parts else nothing,
        sign_bits=reader.matrix(_SIGN_BITS, no_words) if SIGN_BITS in parts else no_words,
        masks=np.hstack(
            [
                no_words,
                *(reader.matrix(_MASKS, no_words, c) for c in spec.classes if MASKS in parts),
            ]
        ),
        regions={
            k: reader.regions(name)
            for k, name in enumerate(spec.classes, start=1)
            if REGIONS in parts
        },
        foreground=~reader.matrix(_MASKS, no_masks, BACKGROUND)
        if FOREGROUND in parts
        else no_masks[:0],
        vectors={name: reader.matrix(_VECTORS, no_vectors, name) for name in descriptors},
        categories={
            name: reader.matrix(_CATEGORIES, no_numbers, name)[:, 0] for name in descriptors
        },
    )


_FEATURES = "SELECT image_id, feature FROM images"
_SIGN_BITS = "SELECT image_id, sign_bits FROM images"
_MASKS = "SELECT image_id, mask_bits FROM regions WHERE class = $name"
_REGIONS = "SELECT image_id, feature FROM regions WHERE class = $name"
_VECTORS = (
    "SELECT image_id, vector FROM descriptors WHERE descriptor = $name AND vector IS NOT NULL"
)
_CATEGORIES = """
SELECT image_id, [dense_rank() OVER (ORDER BY category)] FROM descriptors
WHERE descriptor = $name AND category IS NOT NULL
"""


@dataclass(frozen=True)
class _Reader:
    """Reads rows of (image_id, list) into arrays; `ids` are the image_ids in order."""

    database: Database
    ids: pa.Array

    def matrix(self, sql: str, empty: NDArray[T], name: str = "") -> NDArray[T]:
        """Return the lists as a matrix; without any rows, `empty`.

        Images without a row have the value that fills `empty`, 0 if it has no column.
        """
        matrix = empty
        for i, (rows, values) in enumerate(self._lists(sql, name)):
            if not i:
                fill = empty[0, 0] if empty.size else 0
                matrix = np.full((len(self.ids), values.shape[1]), fill, empty.dtype)
            matrix[rows] = values
        return matrix

    def regions(self, cls: str) -> Regions:
        """Return the regions of a class."""
        rows: list[Ints] = [np.empty(0, np.int64)]
        features: list[Features] = []
        for places, vectors in self._lists(_REGIONS, cls):
            rows.append(places)
            features.append(vectors)
        nothing = np.empty((0, 0), np.float32)
        return Regions(np.concatenate(rows), np.concatenate(features) if features else nothing)

    def _lists(self, sql: str, name: str) -> Iterator[tuple[Ints, NDArray[Any]]]:
        """Yield batches: places (b,) and values (b, C)."""
        parameters = {"name": name} if name else {}
        for batch in read_batches(self.database.connection, sql, parameters, _BATCH_ROWS):
            if not len(batch):
                continue
            rows = pc.index_in(batch.column(0), value_set=self.ids).to_numpy()
            values = batch.column(1).flatten().to_numpy().reshape(len(batch), -1)
            yield np.asarray(rows, np.int64), values
