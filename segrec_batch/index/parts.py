"""Parts: what is written, thinned out and merged as one. Sorted, so that σ filters prune.

Row groups are skipped whole or not at all, so the order of rows decides what a filter on coverage
costs: regions lie by coverage, images along a Z-curve of all coverages.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.index.encode import z_order
from segrec_batch.index.files import DataFile, new_part, read_file, write_file

Rows = tuple[str, str | None, pa.Table]  # table, partition, rows


def write_part(index: str, contents: Iterable[Rows]) -> list[DataFile]:
    """Write one part; contents without rows are left out. At most one of them is held at a time.

    Rows of `failures` make a part of their own: they come and go without those of other tables.
    """
    part, failed = new_part(), new_part()
    return [
        write_file(
            index,
            failed if table == "failures" else part,
            table,
            _sorted(table, rows),
            partition,
        )
        for table, partition, rows in contents
        if rows.num_rows
    ]


def rewrite_part(
    index: str, files: Sequence[DataFile], dropped: Sequence[str], mended: Sequence[str] = ()
) -> list[DataFile]:
    """Write a part again without the rows of some image_ids, under a new name.

    Args:
        index: The index.
        files: All files of the part.
        dropped: image_ids whose rows leave all tables but `failures`.
        mended: image_ids whose rows leave `failures`.
    """
    ids = {failed: pa.array(mended if failed else dropped, pa.string()) for failed in (True, False)}
    return write_part(
        index,
        (
            (f.table, f.partition, _without(read_file(index, f), ids[f.table == "failures"]))
            for f in files
        ),
    )


def merge_parts(index: str, files: Iterable[DataFile]) -> list[DataFile]:
    """Write the files of several parts again as one part, see `write_part`."""
    alike: dict[tuple[str, str | None], list[DataFile]] = {}
    for file in files:
        alike.setdefault((file.table, file.partition), []).append(file)
    return write_part(
        index,
        (
            (table, partition, pa.concat_tables([read_file(index, f) for f in members]))
            for (table, partition), members in alike.items()
        ),
    )


def _without(rows: pa.Table, ids: pa.Array) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows["image_id"], ids)))


def _sorted(table: str, rows: pa.Table) -> pa.Table:
    if table == "failures":
        return rows.sort_by("image_id")
    if table == "descriptors":
        return rows.sort_by([("category", "ascending"), ("image_id", "ascending")])
    if table == "regions":
        return rows.sort_by([("coverage", "ascending"), ("image_id", "ascending")])
    rows = rows.sort_by("image_id")
    names = [n for n in rows.column_names if n.startswith("coverage_")]
    coverages = np.stack([rows[n].to_numpy() for n in names], axis=1)
    return rows.take(pa.array(z_order(coverages)))
