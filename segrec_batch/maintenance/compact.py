"""Compaction: merge small parts into large parts, in which σ filters skip most row groups.

Rows do not change. Old files stay for readers of older snapshots until vacuum deletes them.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from segrec_batch.common.console import ProgressMeter
from segrec_batch.distributed import cluster
from segrec_batch.distributed.tasks import run_tasks
from segrec_batch.index.files import DataFile, group_by_part
from segrec_batch.index.parts import merge_parts
from segrec_batch.index.snapshot import Snapshot, commit

PART_ROWS = 65_536
"""Images of a merged part: 32 row groups; a task that writes such a part needs about 2 GB."""

_COMMIT = 64  # merged parts per commit; a crash undoes no more than these


def compact(snapshot: Snapshot, part_rows: int = PART_ROWS) -> Snapshot:
    """Merge parts of at most half of `part_rows` images, and return the newest snapshot.

    Raises IndexStateError if another job publishes meanwhile; earlier commits remain.
    """
    groups = list(_groups(snapshot, part_rows))
    if not groups:
        return snapshot
    index = snapshot.index
    with cluster.join(), ProgressMeter("parts merged", sum(map(len, groups))) as meter:
        jobs = [(index, [f for part in group for f in part]) for group in groups]
        merged = run_tasks(_merge, jobs, cpus=1)
        while done := list(islice(merged, _COMMIT)):
            remove = [file for (_, files), _ in done for file in files]
            add = [file for _, files in done for file in files]
            counts = {"operation": "compact", "files": len(remove), "into": len(add)}
            snapshot = commit(snapshot, add, remove, {"segrec": counts})
            meter.advance(len(group_by_part(remove)))
    return snapshot


def _merge(job: tuple[str, list[DataFile]]) -> list[DataFile]:
    return merge_parts(*job)


def _groups(snapshot: Snapshot, part_rows: int) -> Iterator[Sequence[list[DataFile]]]:
    """Yield groups of two or more small parts with at most `part_rows` sources.

    Parts of failures have separate groups: merged with others, they would again be two parts.
    """
    parts = group_by_part(snapshot.all_files).values()
    for is_failures in (False, True):
        members = (p for p in parts if all(f.table == "failures" for f in p) == is_failures)
        yield from _grouped(members, part_rows)


def _grouped(parts: Iterable[list[DataFile]], part_rows: int) -> Iterator[Sequence[list[DataFile]]]:
    group: list[list[DataFile]] = []
    size = 0
    for part in parts:
        rows = _sources(part)
        if rows > part_rows // 2:
            continue
        if size + rows > part_rows:
            if len(group) > 1:
                yield group
            group, size = [], 0
        group.append(part)
        size += rows
    if len(group) > 1:
        yield group


def _sources(part: Sequence[DataFile]) -> int:
    return sum(file.rows for file in part if file.table in ("images", "failures"))
