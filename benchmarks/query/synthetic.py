"""A synthetic index, and the same rows in the formats of the peers.

Features scatter around 1,000 centres and are not negative, like averages after a ReLU. An image
has the feature of its car, so that one matrix serves every peer; one image in 100 also has a
background region. The cars of 13 % of the images fill 0.29 to 0.96 of the image, those of 1 %
NARROW. Row i is the image `/synthetic/i.jpg`. The parts have the size that compaction gives them;
the newest 1 % of the rows are a separate part.
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
_BACKGROUND = 100  # one image in 100 has a background region, which saves space on disk
_CONSTANTS = {pa.string(): "text", pa.binary(): b"0" * 10, pa.int32(): 224, pa.int64(): 50_000}


@dataclass(frozen=True)
class Case:
    """An index of `rows` images, below a folder."""

    rows: int
    workdir: str

    @property
    def folder(self) -> str:
        """Folder of all files."""
        return f"{self.workdir}/{self.rows}"

    @property
    def index(self) -> str:
        """The index; its versions 1 and newest have the same rows, those between differ in 1 %."""
        return f"{self.folder}/index"

    @property
    def cache(self) -> str:
        """The query cache of the rows."""
        return f"{self.folder}/cache.duckdb"

    @property
    def unsorted(self) -> str:
        """The regions of class car as one unsorted Parquet file."""
        return f"{self.folder}/unsorted.parquet"

    @property
    def lance(self) -> str:
        """A LanceDB database with the table `car`: row, coverage, vector (at unit length)."""
        return f"{self.folder}/lance"


def uri(row: int) -> str:
    """Return the URI of a row."""
    return f"/synthetic/{row}.jpg"


def row_of(uri: str) -> int:
    """Return the row of an image."""
    return int(Path(uri).stem)


def draw_features(seed: int, start: int, rows: int) -> Vectors:
    """Return random features (rows, 512), which depend on seed and start."""
    rng = np.random.default_rng([seed, start])
    vectors = rng.standard_normal((rows, DEFAULT_BACKBONE.feature_length), np.float32)
    vectors *= _NOISE
    vectors += _centres()[rng.integers(_CENTRES, size=rows)]
    return np.maximum(vectors, 0, out=vectors)


def draw_coverages(start: int, rows: int) -> Vectors:
    """Return the random σ of the cars of `rows` images, (rows,)."""
    rng = np.random.default_rng([1, start])
    wide = rng.random(rows) < _SHARE_WIDE
    return np.where(wide, rng.uniform(*WIDE, rows), rng.uniform(0.005, WIDE[0], rows)).astype("f4")


def standardise(vectors: Vectors) -> Vectors:
    """Centre vectors and scale them to unit length, so that Pearson is the inner product."""
    centred: Vectors = vectors - vectors.mean(axis=1, keepdims=True, dtype=np.float64).astype("f4")
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    return centred


def blocks(rows: int) -> list[tuple[int, int]]:
    """Return the first row and the number of rows of each part."""
    newest = rows - rows // 100
    edges = [*range(0, newest, _PART_ROWS), newest, rows]
    return [(a, b - a) for a, b in pairwise(edges)]


def make_part(seed: int, start: int, rows: int) -> Iterator[Rows]:
    """Yield the rows of a part of the index, by table and class."""
    vectors, shares = draw_features(seed, start, rows), draw_coverages(start, rows)
    columns = {
        "coverage_car": pa.array(shares),
        "coverage_background": pa.array(1 - shares),
        "sign_bits": _to_lists(_sign_bits(vectors)),
        **_common(vectors, start),
    }
    yield "images", None, make_table(images_schema(SPEC.classes), columns)
    schema = regions_schema()
    schema = schema.remove(schema.get_field_index("class"))
    yield "regions", "car", make_table(schema, make_region(vectors, "car", shares, start))
    backgrounds = make_table(schema, make_region(vectors, "background", 1 - shares, start))
    yield "regions", "background", backgrounds.take(pa.array(range(0, rows, _BACKGROUND)))


def make_region(vectors: Vectors, name: str, shares: Vectors, start: int) -> dict[str, pa.Array]:
    """Return columns of the regions of class `name` in the images from `start` on."""
    return {
        "class": pa.array([name] * len(vectors)),
        "coverage": pa.array(shares),
        "mask_bits": _to_lists(np.ones((len(vectors), 16), np.int64)),
        **_common(vectors, start),
    }


def _common(vectors: Vectors, start: int) -> dict[str, pa.Array]:
    uris = [uri(row) for row in range(start, start + len(vectors))]
    ids = pa.array([column_values.image_id(name) for name in uris])
    return {
        "image_id": ids,
        "uri": pa.array(uris),
        "content_hash": ids,
        "feature": _to_lists(vectors),
        "inv_norm": pa.array(column_values.compute_inverse_norms(vectors)),
    }


def _sign_bits(vectors: Vectors) -> NDArray[np.int64]:
    import torch

    from segrec_batch.model.pooling import sign_bits

    centre, rotation = _sign_parameters()
    return np.asarray(sign_bits(torch.from_numpy(vectors), centre, rotation))


@cache
def _sign_parameters() -> tuple[Any, Any]:
    """Return the centre and the rotation that a bundle would have."""
    import torch

    from segrec_batch.model.pooling import centred_unit, random_rotation

    training = torch.from_numpy(draw_features(3, 0, 5000))
    return centred_unit(training).mean(dim=0), random_rotation(DEFAULT_BACKBONE.feature_length)


@cache
def _centres() -> Vectors:
    return np.random.default_rng(0).standard_exponential(
        (_CENTRES, DEFAULT_BACKBONE.feature_length), np.float32
    )


def _to_lists(values: NDArray[Any]) -> pa.Array:
    rows, length = values.shape
    offsets = pa.array(np.arange(0, rows * length + 1, length, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))


def make_table(schema: pa.Schema, columns: dict[str, pa.Array]) -> pa.Table:
    """Return rows with `columns`; all other columns of the schema are constant."""
    rows = len(columns["image_id"])
    arrays = [columns[f.name] if f.name in columns else _constant(f, rows) for f in schema]
    return pa.table([c.cast(f.type) for c, f in zip(arrays, schema, strict=True)], schema)


def _constant(field: pa.Field, rows: int) -> pa.Array:
    if pa.types.is_struct(field.type):
        return pa.array([{edge.name: 0.5 for edge in field.type}] * rows, field.type)
    return pa.array([_CONSTANTS.get(field.type, 0)] * rows, field.type)
