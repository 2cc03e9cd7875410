"""The Arrow schemas of the index: `images`, `regions`, `descriptors` and `failures`.

Integers are signed, because Delta Lake has no unsigned types. A word is an int64 that holds 64
bits.
"""

from collections.abc import Sequence

import pyarrow as pa

from segrec_batch.common.errors import ModelError
from segrec_batch.model.names import BACKGROUND, check_class_names
from segrec_batch.sources.strict_json import shorten

TABLES = ("failures", "descriptors", "regions", "images")
"""The tables, in the order of commits."""
PARTITION = {"regions": "class", "descriptors": "descriptor"}

_VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))
_WORDS = pa.list_(pa.field("element", pa.int64(), nullable=False))
_TIME = pa.timestamp("us", tz="UTC")
BBOX = pa.struct(
    [pa.field(edge, pa.float32(), nullable=False) for edge in ("x0", "y0", "x1", "y1")]
)


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def coverage_column(name: str) -> str:
    """Return the column of `images` with the coverage σ of a class."""
    return f"coverage_{name}"


def images_schema(classes: Sequence[str]) -> pa.Schema:
    """Return the schema of `images`: one row per indexed image.

    classes: foreground classes.
    width, height: pixels of the upright image. coverage_*: σ in [0, 1] on the feature grid, sum 1.
    mask_grid: grid_h · grid_w labels, one byte each. mask: palette PNG at the image's size, long
    side at most 1024. feature: raw; the backbone determines its length.
    inv_norm: 1/‖feature − mean‖, NULL if constant. sign_bits: one bit for each value of a feature,
    in words.
    """
    names = (BACKGROUND, *classes)
    return pa.schema(
        [
            _required("image_id", pa.string()),
            _required("uri", pa.string()),
            _required("source_size", pa.int64()),
            _required("source_etag", pa.string()),
            _required("content_hash", pa.string()),
            _required("width", pa.int32()),
            _required("height", pa.int32()),
            _required("format", pa.string()),
            _required("dominant_class", pa.string()),
            *(_required(coverage_column(name), pa.float32()) for name in names),
            _required("grid_h", pa.int32()),
            _required("grid_w", pa.int32()),
            _required("mask_grid", pa.binary()),
            _required("mask", pa.binary()),
            _required("feature", _VECTOR),
            pa.field("inv_norm", pa.float32()),
            _required("sign_bits", _WORDS),
            _required("model_id", pa.string()),
            _required("run_id", pa.string()),
            _required("indexed_at", _TIME),
        ]
    )


def regions_schema() -> pa.Schema:
    """Return the schema of `regions`: one row per image and class in it, also the background.

    class: the partition, which is in the path, not in the files. bbox: box around the cells of the
    class, as fractions of width and height. feature, inv_norm: as in `images`, over the cells of
    the class. mask_bits: 16 words, the bitmap of the class on a 32 × 32 grid, row by row, lowest
    bit first.
    """
    return pa.schema(
        [
            _required("image_id", pa.string()),
            _required("uri", pa.string()),
            _required("class", pa.string()),
            _required("coverage", pa.float32()),
            _required("cells", pa.int32()),
            _required("bbox", BBOX),
            _required("feature", _VECTOR),
            pa.field("inv_norm", pa.float32()),
            _required("mask_bits", _WORDS),
            _required("content_hash", pa.string()),
            _required("run_id", pa.string()),
        ]
    )


def descriptors_schema() -> pa.Schema:
    """Return the schema of `descriptors`: one row per image and descriptor of the model.

    descriptor: the partition; `DescriptorSpec.id` in the path, the name in queries. category: value
    to which a search can be restricted; NULL for descriptors without categories. vector: NULL if
    the image could not be described; `reason` says why.
    """
    return pa.schema(
        [
            _required("image_id", pa.string()),
            _required("uri", pa.string()),
            _required("descriptor", pa.string()),
            pa.field("category", pa.string()),
            pa.field("vector", _VECTOR),
            pa.field("reason", pa.string()),
            _required("content_hash", pa.string()),
            _required("run_id", pa.string()),
        ]
    )


def failures_schema() -> pa.Schema:
    """Return the schema of `failures`: one row per source that could not be indexed.

    stage: `name` (an unsupported name), `read` or `decode`. A source that could not be read keeps
    the row that it has in `images`.
    """
    return pa.schema(
        [
            _required("image_id", pa.string()),
            _required("uri", pa.string()),
            _required("source_size", pa.int64()),
            _required("source_etag", pa.string()),
            _required("stage", pa.string()),
            _required("reason", pa.string()),
            _required("run_id", pa.string()),
            _required("failed_at", _TIME),
        ]
    )


def check_columns(table: str, schema: pa.Schema) -> None:
    """Check the columns of a file of a table, which lacks the partition column.

    Raises:
        pa.ArrowInvalid: Names, types, order or NULLs are not those of the table.
    """
    prefix = coverage_column("")
    covered = [name.removeprefix(prefix) for name in schema.names if name.startswith(prefix)]
    classes = tuple(name for name in covered if name != BACKGROUND) if table == "images" else ()
    try:
        check_class_names(classes)
    except ModelError as error:
        raise pa.ArrowInvalid(str(error)) from error
    fields = schemas(classes)[table]
    expected = pa.schema([field for field in fields if field.name != PARTITION.get(table)])
    if not schema.equals(expected):
        difference = _describe_difference(schema, expected)
        raise pa.ArrowInvalid(f"its columns are not those of {table}: {difference}")


def _describe_difference(schema: pa.Schema, expected: pa.Schema) -> str:
    for field in expected:
        if field.name not in schema.names:
            return f"{field.name} is missing"
        if schema.names.count(field.name) > 1:
            return f"{field.name} is there twice"
        if not schema.field(field.name).equals(field):
            return f"{field.name} is {shorten(str(schema.field(field.name).type))}"
    unknown = [name for name in schema.names if name not in expected.names]
    return f"{shorten(unknown[0])} is not among them" if unknown else "they are in another order"


def schemas(classes: Sequence[str]) -> dict[str, pa.Schema]:
    """Return the schema of each table of an index, in the order of commits."""
    return {
        "failures": failures_schema(),
        "descriptors": descriptors_schema(),
        "regions": regions_schema(),
        "images": images_schema(classes),
    }
