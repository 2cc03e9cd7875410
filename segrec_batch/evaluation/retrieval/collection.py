"""The images of a snapshot as arrays, to rank them all for many queries."""

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
from segrec_batch.model.spec import BACKGROUND, COMMON_GRID
from segrec_batch.search.database import Database, query
from segrec_batch.search.sql.batches import batches
from segrec_batch.search.sql.views import identifier

Ints = NDArray[np.int64]
Features = NDArray[np.float32]

FEATURE, REGIONS, SIGN_BITS, MASKS, FOREGROUND = PARTS = (
    "feature",
    "regions",
    "sign_bits",
    "masks",
    "foreground",
)
"""What can be read beside identity and coverages, which always are, and descriptors."""

T = TypeVar("T", np.float32, np.int64)

_ROWS = 8192  # of a batch
_WORDS = COMMON_GRID**2 // 64  # of a bitmap


@dataclass(frozen=True)
class Regions:
    """The regions of one class. rows: (m,), their images in the collection, each once and in no
    particular order. features: (m, C) raw.
    """

    rows: Ints
    features: Features


@dataclass(frozen=True)
class Collection:
    """n images, sorted by image_id: equal scores go in this order.

    ids, uris, contents: (n,) strings; contents are hashes of bytes. classes: the K foreground
    classes. coverages: (n, K + 1) in [0, 1], background first. features: (n, C) raw. sign_bits:
    (n, W) words of 64 bits. masks: (n, K · M) words, the bitmaps of the foreground classes one
    after the other on the common grid; 0 where an image has no such region. regions: by the number
    of a foreground class, from 1. What was not asked for is empty.

    foreground: (n, 16) words, the bitmap of all that is not background; all of an image that has no
    such region. vectors: of each descriptor (n, L), rows of NaN where an image has none; L is 1 if
    no image has. categories: by the same names, (n,) numbers, equal for equal categories, below 0
    where an image has none.

    In memory an image takes some 100 bytes, and with 512 values a vector: 2 KB for its feature,
    2 KB for each foreground region, 64 bytes for sign bits, 128 · K for masks, 128 for its
    foreground, 4 · L for each descriptor.
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
        """The foreground class with the most coverage, the first of equal ones; 0 if an image has
        no foreground: (n,).
        """
        foreground = self.coverages[:, 1:]
        return np.where(foreground.max(axis=1) > 0, foreground.argmax(axis=1) + 1, 0)

    @property
    def copies(self) -> int:
        """How many images have the bytes of one before them."""
        return len(self) - len(self.contents.unique())

    def rows(self, ids: pa.Array) -> Ints:
        """Where images are. Raises InputError for one that is not there."""
        found = pc.index_in(ids, value_set=self.ids)
        if found.null_count:
            missing = ids.filter(found.is_null())[0].as_py()
            raise InputError(f"{missing} is not an image_id of this index")
        return np.asarray(found.to_numpy(), np.int64)


def load(database: Database, parts: Names[str], descriptors: Names[str] = ()) -> Collection:
    """All images of an index or a query cache, with some of PARTS and of its descriptors. Raises
    InputError if it is empty.
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
    return Collection(
        ids=ids,
        uris=uris,
        contents=contents,
        classes=spec.classes,
        coverages=np.stack([share.to_numpy() for share in shares], axis=1),
        features=_vectors(database, ids, "feature", np.float32, FEATURE in parts),
        sign_bits=_vectors(database, ids, "sign_bits", np.int64, SIGN_BITS in parts),
        masks=_masks(database, ids, MASKS in parts),
        regions={
            k: _regions(database, ids, name)
            for k, name in enumerate(spec.classes, start=1)
            if REGIONS in parts
        },
        foreground=_foreground(database, ids, FOREGROUND in parts),
        vectors={name: _described(database, ids, name) for name in descriptors},
        categories={name: _categories(database, ids, name) for name in descriptors},
    )


def _vectors(
    database: Database, ids: pa.Array, column: str, kind: type[T], wanted: bool
) -> NDArray[T]:
    """A list column of `images` as (n, C)."""
    values = np.empty((len(ids), 0), kind)
    sql = f"SELECT image_id, {identifier(column)} FROM images"  # noqa: S608
    for rows, vectors in _lists(database, sql, {}, ids) if wanted else ():
        if not values.shape[1]:
            values = np.empty((len(ids), vectors.shape[1]), kind)
        values[rows] = vectors
    return values


def _masks(database: Database, ids: pa.Array, wanted: bool) -> Ints:
    sql = "SELECT image_id, mask_bits FROM regions WHERE class = $class"
    classes = database.spec.classes if wanted else ()
    bitmaps: list[Ints] = [np.zeros((len(ids), 0), np.int64)]
    for name in classes:
        bitmap = np.zeros((len(ids), 0), np.int64)
        for rows, words in _lists(database, sql, {"class": name}, ids):
            if not bitmap.shape[1]:
                bitmap = np.zeros((len(ids), words.shape[1]), np.int64)
            bitmap[rows] = words
        bitmaps.append(bitmap)
    return np.hstack(bitmaps)


def _foreground(database: Database, ids: pa.Array, wanted: bool) -> Ints:
    words = np.full((len(ids) if wanted else 0, _WORDS), -1)  # every bit
    sql = "SELECT image_id, mask_bits FROM regions WHERE class = $class"
    for rows, found in _lists(database, sql, {"class": BACKGROUND}, ids) if wanted else ():
        words[rows] = ~found
    return words


def _described(database: Database, ids: pa.Array, name: str) -> Features:
    sql = "SELECT image_id, vector FROM descriptors WHERE descriptor = $name AND vector IS NOT NULL"
    values = np.full((len(ids), 1), np.nan, np.float32)
    for i, (rows, vectors) in enumerate(_lists(database, sql, {"name": name}, ids)):
        if not i:
            values = np.full((len(ids), vectors.shape[1]), np.nan, np.float32)
        values[rows] = vectors
    return values


def _categories(database: Database, ids: pa.Array, name: str) -> Ints:
    sql = (
        "SELECT image_id, dense_rank() OVER (ORDER BY category) AS number FROM descriptors "
        "WHERE descriptor = $name AND category IS NOT NULL"
    )
    found = query(database.connection, sql, {"name": name}).combine_chunks()
    numbers = np.full(len(ids), -1)
    numbers[pc.index_in(found["image_id"], value_set=ids).to_numpy()] = found["number"].to_numpy()
    return numbers


def _regions(database: Database, ids: pa.Array, name: str) -> Regions:
    sql = "SELECT image_id, feature FROM regions WHERE class = $class"
    count = query(
        database.connection,
        "SELECT count(*) AS n FROM regions WHERE class = $class",
        {"class": name},
    )["n"][0].as_py()
    places, features, done = np.empty(count, np.int64), np.empty((count, 0), np.float32), 0
    for rows, vectors in _lists(database, sql, {"class": name}, ids):
        if not done:
            features = np.empty((count, vectors.shape[1]), np.float32)
        part = slice(done, done + len(rows))
        places[part], features[part] = rows, vectors
        done += len(rows)
    return Regions(places, features)


def _lists(
    database: Database, sql: str, parameters: Mapping[str, object], ids: pa.Array
) -> Iterator[tuple[Ints, NDArray[Any]]]:
    """Rows of (image_id, list), some at a time: places among `ids` (b,) and values (b, C)."""
    for batch in batches(database.connection, sql, parameters, _ROWS):
        if not len(batch):
            continue
        rows = pc.index_in(batch.column(0), value_set=ids).to_numpy()
        yield (
            np.asarray(rows, np.int64),
            batch.column(1).flatten().to_numpy().reshape(len(batch), -1),
        )
