"""What every figure of the retrieval report follows from."""

import pyarrow as pa

FIRST = 100
"""How many of the first retrieved, and of the greatest gains, are kept with their gains."""

COUNTS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),
        pa.field("candidates", pa.int32(), nullable=False),
        pa.field("retrieved", pa.int32(), nullable=False),
        pa.field("relevant", pa.int32(), nullable=False),
        pa.field("ranks", pa.list_(pa.int32()), nullable=False),
        pa.field("gains", pa.list_(pa.float32())),
        pa.field("ideal", pa.list_(pa.float32())),
    ]
)
"""One row per method, setting and query.

query: image_id. class: label of the query, empty where the truth has none. setting: see
`conditions`. candidates: images that could be retrieved before any filter; the query is not among
them unless it is kept. retrieved: how many of them were ranked; a method may leave out those for
which it is undefined. relevant: relevant ones among the candidates. ranks: 1-based places of the
relevant ones that were retrieved, ascending. gains: of the first 100 retrieved, in order. ideal:
the 100 greatest gains among all candidates, descending. Both are null where the truth has no masks.
"""
