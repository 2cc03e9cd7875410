"""Arrow schemas of the tables between the stages of the indexing job.

A row that failed has `stage` and `reason`. A row with a `donor` after decoding has the same bytes
as an indexed image, whose rows are copied. tally.py defines `cost`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from segrec_batch.descriptors.inputs import DescriptorVector
from segrec_batch.model.segmented_image import FIELDS, PIXEL_FIELDS
from segrec_batch.sources.listing import SOURCES


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


DONOR = pa.struct(  # NULL in most rows
    [
        pa.field("image_id", pa.string()),
        pa.field("content_hash", pa.string()),
        pa.field("part", pa.string()),
    ]
)
COST = pa.struct(  # seconds by stage; starved: seconds in which the model waited; bytes read
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
# old_part, failed_part: parts of the rows that the source has in `images` (with its companions) and
# in `failures`
MANIFEST = pa.schema(
    [
        *SOURCES,
        pa.field("old_part", pa.string()),
        pa.field("failed_part", pa.string()),
        pa.field("donor", DONOR),
    ]
)

_KNOWN = [
    *(field for field in MANIFEST if field.name != "problem"),
    pa.field("cost", COST),
    pa.field("stage", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("content_hash", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("format", pa.string()),
]
DESCRIBED = pa.list_(  # vectors of an image; vector: bytes of float32, NULL if there is a reason
    pa.struct(
        [
            _required("descriptor", pa.string()),
            pa.field("category", pa.string()),
            pa.field("vector", pa.binary()),
            pa.field("reason", pa.string()),
        ]
    )
)
DECODED = pa.schema([*_KNOWN, *PIXEL_FIELDS])
SEGMENTED = pa.schema(
    [
        *_KNOWN,
        *FIELDS,
        *PIXEL_FIELDS,  # pixels: where a descriptor still needs them
        pa.field("described", DESCRIBED),
    ]
)
# one row per written file; the columns from `replaced` on are set in the first row only.
# replaced: rows that leave, by table (`images` includes its companions) and part;
# stale: sources that could not be read and keep their rows
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


def to_described(vectors: Iterable[Sequence[DescriptorVector] | None]) -> pa.Array:
    """Return a column DESCRIBED of the vectors of images; NULL for None."""
    rows = [
        None
        if entries is None
        else [
            {
                "descriptor": entry.descriptor,
                "category": entry.category,
                "vector": None if entry.vector is None else entry.vector.tobytes(),
                "reason": entry.reason,
            }
            for entry in entries
        ]
        for entries in vectors
    ]
    return pa.array(rows, DESCRIBED)


def from_described(column: pa.ChunkedArray) -> list[list[DescriptorVector] | None]:
    """Return the vectors of images from a column DESCRIBED; None for NULL."""
    return [
        None
        if entries is None
        else [
            DescriptorVector(
                entry["descriptor"],
                entry["category"],
                None if entry["vector"] is None else np.frombuffer(entry["vector"], np.float32),
                entry["reason"],
            )
            for entry in entries
        ]
        for entries in column.to_pylist()
    ]
