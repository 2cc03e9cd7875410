"""A synthetic index, and the same rows in the formats of the peers.

Features scatter around 1,000 centres and are not negative, as averages behind a ReLU. An image has
the feature of its car, so that one matrix serves every peer; one image in 100 has a background
region, too. The cars of 13 % of the images fill 0.29 to 0.96 of the image, those of 1 % NARROW.
Row i is of the image `/synthetic/i.jpg`. The parts are as compaction leaves them, but the newest
1 % are one of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.common.stand_in import SPEC
from segrec_batch.index import column_values
from segrec_batch.index.parts import Rows
from segrec_batch.index.schema import images_schema, regions_schema
from segrec_batch.model.backbones import DEFAULT_BACKBONE

Vectors = NDArray[np.float32]
Window = tuple[float, float]

ALL: Window = (0.0, 1.0)
WIDE: Window = (0.29, 0.96)
NARROW: Window = (0.5, 0.5 + 0.67 / 13)
WINDOWS = {"all": ALL, "13 %": WIDE, "1 %": NARROW, "none": (0.98, 0.99)}
"""Windows of σ, by the share of cars that pass."""

_SHARE_WIDE = 0.13
_CENTRES = 1000
_NOISE = 0.5  # two features of one centre correlate by 0.8
_PART_ROWS = 65_536
_BACKGROUND = 100  # one image of so many has that region: 3 vectors an image would fill the disk
_CONSTANTS = {pa.string(): "text", pa.binary(): b"0" * 10, pa.int32(): 224, pa.int64(): 50_000}


@dataclass(frozen=True)
class Case:
    """An index of so many images, below a folder."""

    rows: int
    workdir: str

    @property
    def folder(self) -> str:
        """Folder of all files."""
        return f"{self.workdir}/{self.rows}"

    @property
    def index(self) -> str:
        """The index; versions 1 and the newest have the rows, one between them differs in 1 %."""
        return f"{self.folder}/index"

    @property
    def cache(self) -> str:
        """The query cache of the rows."""
        return f"{self.folder}/cache.duckdb"

    @property
    def unsorted(self) -> str:
        """The regions of class car as one Parquet file, in no order."""
        return f"{self.folder}/unsorted.parquet"

    @property
    def lance(self) -> str:
        """A LanceDB with the table `car`: row, coverage, vector (at unit length)."""
        return f"{self.folder}/lance"


def uri(row: int) -> str:
    """Return the URI of a row."""
    return f"/synthetic/{row}.jpg"


def row_of(uri: str) -> int:
    """Return the row of an image."""
    return int(Path(uri).stem)


def features(seed: int, start: int, rows: int) -> Vectors:
    """`rows` features (rows, 512); another seed or start, others."""
    rng = np.random.default_rng([seed, start])
    found = rng.standard_normal((rows, DEFAULT_BACKBONE.feature_length), np.float32)
    found *= _NOISE
    found += _centres()[rng.integers(_CENTRES, size=rows)]
    return np.maximum(found, 0, out=found)


def coverages(start: int, rows: int) -> Vectors:
    """σ of the cars of `rows` images."""
    rng = np.random.default_rng([1, start])
    wide = rng.random(rows) < _SHARE_WIDE
    return np.where(wide, rng.uniform(*WIDE, rows), rng.uniform(0.005, WIDE[0], rows)).astype("f4")


def standardised(vectors: Vectors) -> Vectors:
    """Centre vectors and scale them to unit length, so that Pearson is the inner product."""
    centred: Vectors = vectors - vectors.mean(axis=1, keepdims=True, dtype=np.float64).astype("f4")
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    return centred


def blocks(rows: int) -> list[tuple[int, int]]:
    """Return the first row and the number of rows of each part."""
    newest = rows - rows // 100
    edges = [*range(0, newest, _PART_ROWS), newest, rows]
    return [(a, b - a) for a, b in pairwise(edges)]


def part(seed: int, start: int, rows: int) -> Iterator[Rows]:
    """Yield the rows of a part of the index, by table and class."""
    found, shares = features(seed, start, rows), coverages(start, rows)
    columns = {
        "coverage_car": pa.array(shares),
        "coverage_background": pa.array(1 - shares),
        "sign_bits": _lists(_sign_bits(found)),
        **_common(found, start),
    }
    yield "images", None, table(images_schema(SPEC.classes), columns)
    schema = regions_schema()
    schema = schema.remove(schema.get_field_index("class"))
    yield "regions", "car", table(schema, region(found, "car", shares, start))
    some = table(schema, region(found, "background", 1 - shares, start))
    yield "regions", "background", some.take(pa.array(range(0, rows, _BACKGROUND)))


def region(found: Vectors, name: str, shares: Vectors, start: int) -> dict[str, pa.Array]:
    """Columns of the regions of class `name` in the images from `start` on."""
    return {
        "class": pa.array([name] * len(found)),
        "coverage": pa.array(shares),
        "mask_bits": _lists(np.ones((len(found), 16), np.int64)),
        **_common(found, start),
    }


def _common(found: Vectors, start: int) -> dict[str, pa.Array]:
    uris = [uri(row) for row in range(start, start + len(found))]
    ids = pa.array([column_values.image_id(name) for name in uris])
    return {
        "image_id": ids,
        "uri": pa.array(uris),
        "content_hash": ids,
        "feature": _lists(found),
        "inv_norm": pa.array(column_values.compute_inverse_norms(found)),
    }


def _sign_bits(found: Vectors) -> NDArray[np.int64]:
    import torch

    from segrec_batch.model.pooling import sign_bits

    centre, rotation = _signing()
    return np.asarray(sign_bits(torch.from_numpy(found), centre, rotation))


@cache
def _signing() -> tuple[Any, Any]:
    """Return the centre and the rotation that a bundle would have."""
    import torch

    from segrec_batch.model.pooling import centred_unit, random_rotation

    training = torch.from_numpy(features(3, 0, 5000))
    return centred_unit(training).mean(dim=0), random_rotation(DEFAULT_BACKBONE.feature_length)


@cache
def _centres() -> Vectors:
    return np.random.default_rng(0).standard_exponential(
        (_CENTRES, DEFAULT_BACKBONE.feature_length), np.float32
    )


def _lists(values: NDArray[Any]) -> pa.Array:
    rows, length = values.shape
    offsets = pa.array(np.arange(0, rows * length + 1, length, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))


def table(schema: pa.Schema, columns: dict[str, pa.Array]) -> pa.Table:
    """Rows with the columns that are given; in the others a constant."""
    rows = len(columns["image_id"])
    filled = [columns[f.name] if f.name in columns else _constant(f, rows) for f in schema]
    return pa.table([c.cast(f.type) for c, f in zip(filled, schema, strict=True)], schema)


def _constant(field: pa.Field, rows: int) -> pa.Array:
    if pa.types.is_struct(field.type):
        return pa.array([{edge.name: 0.5 for edge in field.type}] * rows, field.type)
    return pa.array([_CONSTANTS.get(field.type, 0)] * rows, field.type)
