"""The images of a snapshot as arrays, to rank all of them for many queries."""

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
    numbered = list(enumerate(spec.classes, start=1))
    masks = [reader.masks(name) for name in spec.classes if MASKS in parts]
    return Collection(
        ids=ids,
        uris=uris,
        contents=contents,
        classes=spec.classes,
        coverages=np.stack([share.to_numpy() for share in shares], axis=1),
        features=reader.images("feature", np.float32, FEATURE in parts),
        sign_bits=reader.images("sign_bits", np.int64, SIGN_BITS in parts),
        masks=np.hstack([np.zeros((len(ids), 0), np.int64), *masks]),
        regions={k: reader.regions(name) for k, name in numbered if REGIONS in parts},
        foreground=~reader.masks(BACKGROUND, _WORDS)
        if FOREGROUND in parts
        else np.zeros((0, _WORDS), np.int64),
        vectors={name: reader.vectors(name) for name in descriptors},
        categories={name: reader.categories(name) for name in descriptors},
    )


@dataclass(frozen=True)
class _Reader:
    """Reads columns of a database into arrays; `ids` are the image_ids in order."""

    database: Database
    ids: pa.Array

    def images(self, column: str, dtype: type[T], is_requested: bool) -> NDArray[T]:
        """Return a list column of `images`: (n, C), without columns unless requested."""
        sql = f"SELECT image_id, {identifier(column)} FROM images"  # noqa: S608
        if not is_requested:
            return np.empty((len(self.ids), 0), dtype)
        return self._matrix(sql, {}, np.empty((len(self.ids), 0), dtype))

    def masks(self, cls: str, width: int = 0) -> Ints:
        """Return the bitmaps of a class: (n, M), or (n, width) if no image has it."""
        sql = "SELECT image_id, mask_bits FROM regions WHERE class = $class"
        return self._matrix(sql, {"class": cls}, np.zeros((len(self.ids), width), np.int64))

    def vectors(self, descriptor: str) -> Features:
        """Return the vectors of a descriptor: (n, L)."""
        sql = (
            "SELECT image_id, vector FROM descriptors "
            "WHERE descriptor = $name AND vector IS NOT NULL"
        )
        nothing = np.full((len(self.ids), 1), np.nan, np.float32)
        return self._matrix(sql, {"name": descriptor}, nothing)

    def categories(self, descriptor: str) -> Ints:
        """Return the numbers of the categories of a descriptor: (n,)."""
        sql = (
            "SELECT image_id, dense_rank() OVER (ORDER BY category) AS number FROM descriptors "
            "WHERE descriptor = $name AND category IS NOT NULL"
        )
        rows = query(self.database.connection, sql, {"name": descriptor}).combine_chunks()
        numbers = np.full(len(self.ids), -1)
        numbers[pc.index_in(rows["image_id"], value_set=self.ids).to_numpy()] = rows[
            "number"
        ].to_numpy()
        return numbers

    def regions(self, cls: str) -> Regions:
        """Return the regions of a class."""
        where = {"class": cls}
        sql = "SELECT count(*) AS n FROM regions WHERE class = $class"
        count = query(self.database.connection, sql, where)["n"][0].as_py()
        rows, features, done = np.empty(count, np.int64), np.empty((count, 0), np.float32), 0
        sql = "SELECT image_id, feature FROM regions WHERE class = $class"
        for places, vectors in self._lists(sql, where):
            if not done:
                features = np.empty((count, vectors.shape[1]), np.float32)
            part = slice(done, done + len(places))
            rows[part], features[part] = places, vectors
            done += len(places)
        return Regions(rows, features)

    def _matrix(self, sql: str, parameters: Mapping[str, object], empty: NDArray[T]) -> NDArray[T]:
        """Return rows of (image_id, list) as a matrix; without any rows, `empty`.

        Images without a row keep the value that fills `empty`, 0 if it has no column.
        """
        matrix = empty
        for i, (rows, values) in enumerate(self._lists(sql, parameters)):
            if not i:
                fill = empty[0, 0] if empty.size else 0
                matrix = np.full((len(self.ids), values.shape[1]), fill, empty.dtype)
            matrix[rows] = values
        return matrix

    def _lists(
        self, sql: str, parameters: Mapping[str, object]
    ) -> Iterator[tuple[Ints, NDArray[Any]]]:
        """Yield batches of rows of (image_id, list): places (b,) and values (b, C)."""
        for batch in read_batches(self.database.connection, sql, parameters, _BATCH_ROWS):
            if not len(batch):
                continue
            rows = pc.index_in(batch.column(0), value_set=self.ids).to_numpy()
            values = batch.column(1).flatten().to_numpy().reshape(len(batch), -1)
            yield np.asarray(rows, np.int64), values
