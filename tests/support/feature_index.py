"""An index with features, coverages and contents of a test."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.index import snapshot as store
from segrec_batch.index.column_values import compute_inverse_norms, image_id
from segrec_batch.index.files import DataFile
from segrec_batch.index.parts import write_part
from segrec_batch.index.schema import images_schema, regions_schema
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.spec import ModelSpec

SPEC = ModelSpec(
    ("car", "person"),
    ("conv5_3",),
    (0, 1, 2),
    ((64, 64),),
    (0.0,) * 3,
    (1.0,) * 3,
    "none",
    "0" * 64,
)
_CONSTANTS = {
    pa.string(): "text", pa.binary(): b"", pa.int32(): 1, pa.int64(): 1, pa.float32(): 0.5,
    pa.timestamp("us", tz="UTC"): 0,
}  # fmt: skip


class Bundle:
    """A model bundle without tensors, which suffices for an index."""

    spec = SPEC
    model_id = bundle_id = f"{1:016x}"

    def save(self, uri: str) -> None:
        Path(uri).mkdir(parents=True, exist_ok=True)
        values = {**self.spec.to_json(), "model_id": self.model_id}
        Path(uri, "model.json").write_text(json.dumps(values))


def names(count: int, first: int = 0) -> list[str]:
    """Return the URIs of the images of `write_index`."""
    return [f"/images/{i:06}.jpg" for i in range(first, first + count)]


def write_index(
    index: str,
    features: NDArray[np.float32],
    coverage: NDArray[np.float32] | None = None,
    contents: Sequence[str] | None = None,
) -> Snapshot:
    """Write an index with one image for each of `features` (N, C).

    An image has a car if its `coverage` (N,) is above 0; the feature of the car is that of the
    image, backwards.
    """
    return add_images(store.create(index, Bundle()), features, coverage, contents)  # type: ignore[arg-type]


def add_images(
    base: Snapshot,
    features: NDArray[np.float32],
    coverage: NDArray[np.float32] | None = None,
    contents: Sequence[str] | None = None,
) -> Snapshot:
    """Add images and return the next snapshot."""
    uris = names(len(features), base.rows("images"))
    return store.commit(base, image_files(base.index, uris, features, coverage, contents))


def image_files(
    index: str,
    uris: Sequence[str],
    features: NDArray[np.float32],
    coverage: NDArray[np.float32] | None = None,
    contents: Sequence[str] | None = None,
) -> list[DataFile]:
    """Write a part with images, without a commit."""
    share = np.full(len(uris), 0.5, np.float32) if coverage is None else coverage
    ids = [image_id(uri) for uri in uris]
    known = {"image_id": ids, "uri": uris, "content_hash": list(contents or ids)}
    norms = [None if np.isnan(n) else n for n in compute_inverse_norms(features)]
    dominant = ["car" if s > 0 else "background" for s in share]
    images = known | {"coverage_car": share, "feature": list(features), "inv_norm": norms}
    has = np.flatnonzero(share > 0)
    shared = known | {"inv_norm": norms}
    regions = {name: [column[i] for i in has] for name, column in shared.items()}
    regions |= {"coverage": share[has], "feature": list(features[has, ::-1])}
    return write_part(
        index,
        [
            (
                "images",
                None,
                _table(images | {"dominant_class": dominant}, images_schema(SPEC.classes)),
            ),
            ("regions", "car", _table(regions, regions_schema()).drop(["class"])),
        ],
    )


def _table(columns: dict[str, object], schema: pa.Schema) -> pa.Table:
    """Return a table of some columns; the others have a value that their type allows."""
    n = len(columns["uri"])  # type: ignore[arg-type]
    others = {}
    for field in schema:
        if field.name in columns:
            continue
        value = _CONSTANTS.get(field.type, [0] if pa.types.is_list(field.type) else None)
        if pa.types.is_struct(field.type):
            value = dict.fromkeys(("x0", "y0", "x1", "y1"), 0.5)
        others[field.name] = pa.array([value] * n, field.type)
    arrays = {name: pa.array(v, schema.field(name).type) for name, v in columns.items()}
    return pa.table({name: (arrays | others)[name] for name in schema.names}, schema=schema)
