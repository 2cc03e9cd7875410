"""What a run has to do: the listing, compared with the newest snapshot."""

from dataclasses import dataclass

import pyarrow as pa

from segrec_batch.pipeline.stages import MANIFEST
from segrec_batch.query.database import connect_snapshot, query
from segrec_batch.store.index import Snapshot

# `listed` are the sources; only what lies below the listed folder can be gone.
_STATUS = """
WITH old AS (
    SELECT uri, source_size, source_etag, false AS failed FROM images
    UNION ALL
    SELECT uri, source_size, source_etag, true FROM failures
)
SELECT
    coalesce(listed.uri, old.uri) AS uri,
    listed.source_size,
    listed.source_etag,
    old.uri IS NOT NULL AS known,
    CASE
        WHEN listed.uri IS NULL THEN 'gone'
        WHEN old.uri IS NULL THEN 'new'
        WHEN listed.source_size <> old.source_size
          OR listed.source_etag <> old.source_etag THEN 'changed'
        WHEN NOT old.failed THEN 'unchanged'
        WHEN $retry_failed THEN 'changed'
        ELSE 'skipped'
    END AS status
FROM listed
FULL JOIN old USING (uri)
WHERE listed.uri IS NOT NULL OR starts_with(old.uri, $below)
"""


@dataclass(frozen=True)
class Plan:
    """Counts of a comparison, the rows to process (MANIFEST) and the URIs that are gone."""

    listed: int
    new: int
    changed: int
    unchanged: int
    skipped: int
    manifest: pa.Table
    gone: tuple[str, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Whether the index is as the sources are."""
        return self.manifest.num_rows == 0 and not self.gone


def make_plan(sources: pa.Table, root: str, snapshot: Snapshot, retry_failed: bool) -> Plan:
    """Compare the sources listed below `root` with a snapshot.

    A source that failed before and has not changed since is skipped, unless `retry_failed`.
    """
    connection = connect_snapshot(snapshot)
    connection.register("listed", sources)
    parameters = {"retry_failed": retry_failed, "below": root.rstrip("/") + "/"}
    connection.execute(f"CREATE TEMP TABLE plan AS {_STATUS}", parameters)
    statuses = query(connection, "SELECT status, count(*) AS n FROM plan GROUP BY status")
    counts = {row["status"]: row["n"] for row in statuses.to_pylist()}
    work = query(
        connection,
        "SELECT uri, source_size, source_etag, known FROM plan "
        "WHERE status IN ('new', 'changed') ORDER BY known, uri",
    )
    gone = query(connection, "SELECT uri FROM plan WHERE status = 'gone' ORDER BY uri")
    return Plan(
        listed=sources.num_rows,
        new=counts.get("new", 0),
        changed=counts.get("changed", 0),
        unchanged=counts.get("unchanged", 0),
        skipped=counts.get("skipped", 0),
        manifest=work.cast(MANIFEST),
        gone=tuple(gone["uri"].to_pylist()),
    )
