"""The counts that every figure of a retrieval report follows from."""

import pyarrow as pa

FIRST = 100
"""How many of the first retrieved, and of the greatest gains, are kept with their gains."""

COUNTS = pa.schema(
    [
        ("query", pa.string()),
        ("uri", pa.string()),
        ("class", pa.string()),
        ("method", pa.string()),
        ("setting", pa.string()),
        ("candidates", pa.int32()),
        ("retrieved", pa.int32()),
        ("relevant", pa.int32()),
        ("ranks", pa.list_(pa.int32())),
        ("gains", pa.list_(pa.float32())),
        ("ideal", pa.list_(pa.float32())),
    ]
)
"""One row for each method, setting and query.

query: its image_id. class: label of the query, "" where the ground truth has no classes. setting:
"" (no filter, the query left out), or the one condition that differs from it, such as "query kept",
"σ 0.29–0.96", "ε 0.9". candidates: images that could be retrieved before any filter; the query
itself is among them in "query kept" only. retrieved: how many of them were ranked, after the
filter; a method leaves out those for which it is not defined. relevant: relevant ones among the
candidates. ranks: places, from 1, of the relevant ones that were retrieved, ascending. gains: gain,
in [0, 1], of the first 100 retrieved, in order. ideal: the 100 greatest gains among all candidates,
descending. Both are null where the ground truth has no masks.
"""
