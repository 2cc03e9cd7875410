"""Arrow schemas of the tables between the stages of the indexing job.

A failed row has `stage` and `reason`. After decoding, `donor` is an indexed image with the same
bytes, whose rows are copied. `tally` adds up `cost`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from segrec_batch.descriptors.inputs import DescriptorVector
from segrec_batch.model.segmented_image import FIELDS, PIXEL_FIELDS
from segrec_batch.sources.listing import SOURCES


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


DONOR = pa.struct(  # an indexed image with the same bytes; NULL in most rows
    [
        pa.field("image_id", pa.string()),
        pa.field("content_hash", pa.string()),
        pa.field("part", pa.string()),
    ]
)
COST = pa.struct(  # seconds of stages; starved: seconds in which the model waited for images
    [
        *(
            _required(name, pa.float64())
            for name in ("read", "decode", "segment", "describe", "write", "starved")
        ),
        _required("bytes_read", pa.int64()),
    ]
)
REASONS = pa.list_(  # counts of failures, see `tally.FailureReason`
    pa.struct(
        [
            _required("stage", pa.string()),
            _required("text", pa.string()),
            _required("images", pa.int64()),
        ]
    )
)
# old_part, failed_part: parts with the rows of the source in `images` and in `failures`
MANIFEST = pa.schema(
    [
        *SOURCES,
        pa.field("old_part", pa.string()),
        pa.field("failed_part", pa.string()),
        pa.field("donor", DONOR),
    ]
)

_SOURCE_FIELDS = [
    *(field for field in MANIFEST if field.name != "problem"),
    pa.field("cost", COST),
    pa.field("stage", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("content_hash", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("format", pa.string()),
]
VECTORS = pa.list_(  # of one image; vector: bytes of float32, or NULL with a reason
    pa.struct(
        [
            _required("descriptor", pa.string()),
            pa.field("category", pa.string()),
            pa.field("vector", pa.binary()),
            pa.field("reason", pa.string()),
        ]
    )
)
DECODED = pa.schema([*_SOURCE_FIELDS, *PIXEL_FIELDS])
SEGMENTED = pa.schema(
    [
        *_SOURCE_FIELDS,
        *FIELDS,
        *PIXEL_FIELDS,  # NULL unless a descriptor on the host needs them
        pa.field("described", VECTORS),
    ]
)
# one row per written file; the columns from `replaced` on are set in the first row only.
# replaced: rows to remove, by table (`images` stands for `regions` and `descriptors` too) and part;
# stale: number of sources that could not be read and keep their rows
RECEIPTS = pa.schema(
    [
        pa.field("table", pa.string()),
        pa.field("path", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("partition", pa.string()),
        pa.field("stats", pa.string()),
        pa.field(
            "replaced",
            pa.list_(pa.struct([_required(n, pa.string()) for n in ("image_id", "table", "part")])),
        ),
        pa.field("copied", pa.int64()),
        pa.field("stale", pa.int64()),
        pa.field("cost", COST),
        pa.field("reasons", REASONS),
    ]
)


def encode_vectors(vectors: Iterable[Sequence[DescriptorVector] | None]) -> pa.Array:
    """Return the vectors of images as a column VECTORS; NULL for None."""
    rows = [
        None
        if image_vectors is None
        else [
            {
                "descriptor": vector.descriptor,
                "category": vector.category,
                "vector": None if vector.vector is None else vector.vector.tobytes(),
                "reason": vector.reason,
            }
            for vector in image_vectors
        ]
        for image_vectors in vectors
    ]
    return pa.array(rows, VECTORS)


def decode_vectors(column: pa.ChunkedArray) -> list[list[DescriptorVector] | None]:
    """Return the vectors of images from a column VECTORS; None for NULL."""
    return [
        None
        if image_vectors is None
        else [
            DescriptorVector(
                vector["descriptor"],
                vector["category"],
                None if vector["vector"] is None else np.frombuffer(vector["vector"], np.float32),
                vector["reason"],
            )
            for vector in image_vectors
        ]
        for image_vectors in column.to_pylist()
    ]
