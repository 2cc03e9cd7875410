"""Rebuilds: an index is made anew beside the published one, and put in its place when complete."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from segrec_batch.common.errors import InputError, SourceError
from segrec_batch.index import snapshot as store
from segrec_batch.index import staging
from segrec_batch.index.files import DataFile
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.pipeline.plan import Plan, Request
from segrec_batch.pipeline.run_stats import RunStats
from segrec_batch.search.database import open_database, reading
from segrec_batch.search.sql.views import select_with_part

log = logging.getLogger(__name__)

_UNREAD = """
SELECT count(*) FROM ({failures}) SEMI JOIN ({images}) USING (image_id)
ANTI JOIN ({staged}) USING (image_id) WHERE stage = 'read'
"""


def refuse_to_lose(plan: Plan, request: Request, published: Snapshot) -> None:
    """A rebuild replaces everything, so it must have been asked for everything."""
    if plan.left_out:
        raise InputError(
            f"--rebuild replaces all of {published.index}, but {plan.left_out:,} of its images "
            f"are not below {request.images} or excluded; name a folder that holds them all"
        )


def stage(
    base: Snapshot, add: Sequence[DataFile], remove: Sequence[DataFile], info: Mapping[str, Any]
) -> Snapshot:
    """What commits a rebuild: `info` is kept with its last commit only."""
    return staging.stage(base, add, remove)


def finish(published: Snapshot, staged: Snapshot, stats: RunStats, request: Request) -> Snapshot:
    """Put a rebuild in place of the published snapshot, if it is complete; the newest one then.

    Raises:
        SourceError: if sources of published images cannot be read now, and the caller has not
            accepted as many: their rows would be lost.
    """
    if stats.postponed:
        log.info(f"{stats.postponed:,} images are left; run again with --rebuild to go on")
        return published
    unread, limit = _count_unread(published, staged), request.max_read_failures
    if unread and (limit is None or limit.is_exceeded(unread, published.rows("images"))):
        raise SourceError(
            f"{unread:,} of {published.rows('images'):,} images of {published.index} cannot be "
            "read now, and would lose their rows: the rebuild is kept, but not put in place; mend "
            "the cause and run again with --rebuild to go on, or accept the loss: "
            f"--max-read-failures {unread}"
        )
    after = store.replace(published, staged, {"segrec": {**stats.summary(), "rebuild": True}})
    staging.discard(published.index, staged.bundle_id)
    return after


def _count_unread(published: Snapshot, staged: Snapshot) -> int:
    """Return how many images of a snapshot have sources that the other one could not read."""
    failures = select_with_part(staged, "failures", "image_id, stage")
    images = select_with_part(published, "images", "image_id")
    if not failures or not images:
        return 0
    kept = select_with_part(staged, "images", "image_id") or "SELECT NULL AS image_id WHERE false"
    with reading(published), open_database(":memory:", [published, staged]) as connection:
        sql = _UNREAD.format(failures=failures, images=images, staged=kept)
        ((count,),) = connection.execute(sql).fetchall()
    return int(count)
