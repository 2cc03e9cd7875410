"""Counts of two snapshots of one index, in one DuckDB database.

Files of an index never change, so rows of files in both snapshots are unchanged without a
comparison. Only rows of other files are joined, on disk where memory does not suffice.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from segrec_batch.evaluation.drift.figures import BINS
from segrec_batch.index.schema import coverage_column, schemas
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.search.database import open_database
from segrec_batch.search.sql.connection import query, run
from segrec_batch.search.sql.views import identifier, quoted, schema_file, select

REASONS = 200  # counted one by one; all others of a stage are counted together
OTHERS = "(other reasons)"
_MEMORY = "4GB"  # of DuckDB, which spills to disk beyond it

_COUNTS = """
CREATE TABLE counts (
    what VARCHAR,                 -- images, failures, coverage: over all rows; stale: images that
                                  -- are failures too; golden: a value of one golden image
    name VARCHAR,                 -- images, coverage: new, gone, changed, unchanged; failures: new,
                                  -- still, mended (indexed now), gone; stale: stale; golden: metric
    side VARCHAR DEFAULT '',      -- before, after; empty for images and golden
    class VARCHAR DEFAULT '',
    stage VARCHAR DEFAULT '',     -- of failures
    reason VARCHAR DEFAULT '',    -- of failures
    image_id VARCHAR DEFAULT '',  -- of golden images
    setting VARCHAR DEFAULT '',   -- of an overlap: compared vectors
    k INTEGER DEFAULT 0,          -- of an overlap: number of recommendations
    bin INTEGER,                  -- of coverage, see BINS
    count BIGINT,                 -- images or failures
    value DOUBLE,                 -- coverage: sum of σ in the bin; golden: metric value
)
"""
"""Columns of `counts.parquet`."""
_CHANGES = """
CREATE TEMP TABLE changes AS
SELECT image_id,
       CASE WHEN a.content_hash IS NULL THEN 'gone'
            WHEN b.content_hash IS NULL THEN 'new'
            WHEN a.content_hash = b.content_hash THEN 'unchanged'
            ELSE 'changed' END AS name
FROM (SELECT image_id, content_hash FROM before_images) AS b
FULL JOIN (SELECT image_id, content_hash FROM after_images) AS a USING (image_id)
"""
_IMAGES = """
SELECT 'images' AS what, name, sum(n) AS count
FROM (SELECT name, 1 AS n FROM changes UNION ALL SELECT 'unchanged', count(*) FROM common_images)
GROUP BY name HAVING sum(n) > 0 ORDER BY name
"""
_FAILURES = f"""
WITH failures AS (
    SELECT 'before' AS side, b.stage, b.reason,
           CASE WHEN a.image_id IS NOT NULL THEN 'still'
                WHEN i.image_id IS NOT NULL THEN 'mended' ELSE 'gone' END AS name
    FROM before_failures AS b LEFT JOIN after_failures AS a USING (image_id)
    LEFT JOIN (SELECT image_id FROM after_images) AS i USING (image_id)
    UNION ALL
    SELECT 'after', a.stage, a.reason, if(b.image_id IS NULL, 'new', 'still')
    FROM after_failures AS a LEFT JOIN before_failures AS b USING (image_id)
    UNION ALL
    SELECT s.side, c.stage, c.reason, 'still'
    FROM common_failures AS c, (VALUES ('before'), ('after')) AS s(side)
),
common_reasons AS (
    SELECT stage, reason FROM failures GROUP BY ALL
    ORDER BY count(*) DESC, stage, reason LIMIT {REASONS}
)
SELECT 'failures' AS what, name, side, stage,
       if(c.reason IS NULL, {quoted(OTHERS)}, reason) AS reason, count(*) AS count
FROM failures LEFT JOIN (SELECT stage, reason, reason AS common FROM common_reasons) AS c
    USING (stage, reason)
GROUP BY ALL ORDER BY ALL
"""  # noqa: S608
_STALE = """
SELECT 'stale' AS what, 'stale' AS name, 'after' AS side, count(*) AS count
FROM (SELECT image_id FROM after_failures UNION ALL SELECT image_id FROM common_failures)
SEMI JOIN (SELECT image_id FROM after_images UNION ALL SELECT image_id FROM common_images)
    USING (image_id)
"""
_COVERAGE = """
WITH shares AS (
    SELECT 'before' AS side, name, {columns} FROM before_images JOIN changes USING (image_id)
    UNION ALL SELECT 'after', name, {columns} FROM after_images JOIN changes USING (image_id)
    UNION ALL SELECT 'both', 'unchanged', {columns} FROM common_images
),
binned AS (
    SELECT side, name, class, ceil(share * {bins})::INTEGER AS bin, count(*) AS n,
           sum(share::DOUBLE) AS total
    FROM (UNPIVOT shares ON {classes} INTO NAME class VALUE share)
    GROUP BY ALL
)
SELECT 'coverage' AS what, name, s.side, class, bin, sum(n) AS count, sum(total) AS value
FROM binned JOIN (VALUES ('before'), ('after')) AS s(side) ON binned.side IN (s.side, 'both')
GROUP BY ALL ORDER BY ALL
"""
_GOLDEN = """
CREATE TEMP TABLE golden AS
WITH old AS (FROM before_images UNION ALL BY NAME FROM common_images),
     new AS (FROM after_images UNION ALL BY NAME FROM common_images),
ids AS (
    SELECT image_id
    FROM (SELECT image_id FROM common_images
          UNION ALL SELECT image_id FROM changes WHERE name IN ('changed', 'unchanged'))
    WHERE {condition} ORDER BY md5(image_id), image_id LIMIT {size}
)
SELECT image_id, new.uri, old.dominant_class AS class,
       old.content_hash <> new.content_hash AS new_content, {features},
       [{changes}]::DOUBLE[] AS changes
FROM ids JOIN old USING (image_id) JOIN new USING (image_id)
"""
_FEATURES = """old.feature <> new.feature AS new_feature,
       1 - pearson(old.feature, new.feature) AS distance"""
_NO_FEATURES = "NULL::BOOLEAN AS new_feature, NULL::DOUBLE AS distance"
_GOLDEN_COUNTS = """
SELECT 'golden' AS what, image_id, unnest(v)
FROM golden, unnest([
    {{'name': 'feature_distance', 'class': '', 'value': distance}},
    {{'name': 'feature_changed', 'class': '', 'value': new_feature::DOUBLE}},
    {{'name': 'content_changed', 'class': '', 'value': new_content::DOUBLE}},
    {changes}
]) WITH ORDINALITY AS u(v, position)
ORDER BY image_id, position
"""


class Pair:
    """Two snapshots of one index, older and newer, and the classes of both.

    folder: receives data that does not fit in memory.
    """

    def __init__(self, before: Snapshot, after: Snapshot, folder: Path) -> None:
        self.before, self.after = before, after
        self.classes = [c for c in after.spec.classes if c in before.spec.classes]
        self._connection = open_database(":memory:", [before, after], memory_limit=_MEMORY)
        self._run(f"SET temp_directory = {quoted(str(folder / 'spill'))}")
        self._run("SET preserve_insertion_order = false")  # saves memory
        self._run(schema_file("functions.sql"))
        for table in ("images", "failures"):
            self._split(table)
        self._run(_COUNTS)
        self._run(_CHANGES)

    def _run(self, sql: str) -> None:
        run(self._connection, sql)

    def _split(self, table: str) -> None:
        """Create views of a table: rows of common files, and other rows of either snapshot."""
        before, after = ({f.path for f in s.files[table]} for s in (self.before, self.after))
        for name, snapshot, paths in (
            ("common", self.after, before & after),
            ("before", self.before, before - after),
            ("after", self.after, after - before),
        ):
            files = tuple(f for f in snapshot.files[table] if f.path in paths)
            scan = select(replace(snapshot, files={**snapshot.files, table: files}), table)
            view = f"{name}_{table}"
            if scan is None:
                empty = schemas(snapshot.spec.classes)[table].empty_table()
                self._connection.register(f"empty_{view}", empty)
            self._run(f"CREATE TEMP VIEW {view} AS {scan or f'FROM empty_{view}'}")

    def choose_golden(self, size: int, ids: Sequence[str] | None) -> int:
        """Select golden images among the images of both snapshots and return their number.

        They are those with `ids`, or without ids the `size` images with the lowest md5(image_id).
        """
        shares = [identifier(coverage_column(c)) for c in self.classes]
        golden_ids = pa.table({"image_id": pa.array(ids or [], pa.string())})
        self._connection.register("golden_ids", golden_ids)
        sql = _GOLDEN.format(
            condition="true" if ids is None else "image_id IN (FROM golden_ids)",
            size=size if ids is None else len(ids),
            features=_FEATURES if self.before.model_id == self.after.model_id else _NO_FEATURES,
            changes=", ".join(f"new.{s}::DOUBLE - old.{s}" for s in shares),
        )
        self._run(sql)
        return len(self.golden())

    def golden(self) -> pa.Table:
        """Return a row for each golden image, sorted by image_id.

        image_id, uri, class: the dominant one before. new_content, new_feature: booleans. distance:
        1 - Pearson of the features, in [0, 2]. changes: increase of σ of each class. With two
        models new_feature and distance are NULL.
        """
        return query(self._connection, "FROM golden ORDER BY image_id")

    def counts(self, overlaps: pa.Table) -> pa.Table:
        """Return all counts; overlaps: those of `compare_recommendations`."""
        names = {c: identifier(c) for c in self.classes}
        columns = (f"{identifier(coverage_column(c))} AS {name}" for c, name in names.items())
        coverage = _COVERAGE.format(
            columns=", ".join(columns), classes=", ".join(names.values()), bins=BINS
        )
        changes = (
            f"{{'name': 'coverage_change', 'class': {quoted(c)}, 'value': changes[{i}]}}"
            for i, c in enumerate(names, start=1)
        )
        golden = _GOLDEN_COUNTS.format(changes=", ".join(changes))
        self._connection.register("overlap_rows", overlaps)
        parts = [_IMAGES, _FAILURES, _STALE, *([coverage] if names else []), golden]
        for sql in (*parts, "SELECT 'golden' AS what, * FROM overlap_rows"):
            self._run(f"INSERT INTO counts BY NAME {sql}")
        return query(self._connection, "FROM counts ORDER BY rowid")

    def close(self) -> None:
        """Close the database."""
        self._connection.close()
