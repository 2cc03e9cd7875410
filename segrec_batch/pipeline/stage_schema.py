"""What flows between the stages of the indexing job, as Arrow schemas.

A row that fails in one stage carries `stage` and `reason` from then on. A row with a `donor` after
decoding has the bytes of an image that is indexed already, whose rows are copied. What `cost` is
says tally.py.
"""

import pyarrow as pa

from segrec_batch.sources.listing import SOURCES


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


DONOR = pa.struct(  # a donor has them all; most rows have no donor
    [
        pa.field("image_id", pa.string()),
        pa.field("content_hash", pa.string()),
        pa.field("part", pa.string()),
    ]
)
COST = pa.struct(  # seconds of stages, and in which the model waited between calls; bytes read
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
# old_part, failed_part: where the rows are that this source has in the index already, in `images`
# and what belongs to it, and in `failures`
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
DESCRIBED = pa.list_(  # of an image, by descriptor id; vector: float32, NULL for a reason
    pa.struct(
        [
            _required("descriptor", pa.string()),
            pa.field("category", pa.string()),
            pa.field("vector", pa.binary()),
            pa.field("reason", pa.string()),
        ]
    )
)
_PIXELS = [pa.field("shape", pa.list_(pa.int32(), 2)), pa.field("pixels", pa.binary())]
DECODED = pa.schema([*_KNOWN, *_PIXELS])
SEGMENTED = pa.schema(
    [
        *_KNOWN,
        pa.field("grid", pa.list_(pa.int32(), 2)),
        pa.field("labels", pa.binary()),
        pa.field("common", pa.binary()),
        pa.field("counts", pa.list_(pa.int64())),
        pa.field("feature", pa.list_(pa.float32())),
        pa.field("region_features", pa.list_(pa.float32())),
        pa.field("sign_bits", pa.list_(pa.int64())),
        pa.field("mask_shape", pa.list_(pa.int32(), 2)),
        pa.field("mask", pa.binary()),
        *_PIXELS,  # where a descriptor still needs them
        pa.field("described", DESCRIBED),
    ]
)
# of written parts; from `replaced` on in the first of the rows only. replaced: rows that leave, by
# the table (`images` stands for all that belongs to it) and part; stale: sources that were not read
# and keep their rows
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
