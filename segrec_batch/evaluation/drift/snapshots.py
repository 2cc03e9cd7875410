"""Two snapshots of one index in one DuckDB database, and what is counted there.

Files of an index never change, so what both snapshots share is unchanged without being compared:
only the rows of the other files are joined, on disk where memory does not do.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from segrec_batch.evaluation.drift.counts import COUNTS, as_counts
from segrec_batch.evaluation.drift.coverage import BINS
from segrec_batch.index.schema import coverage_column, schemas
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.search.database import open_database
from segrec_batch.search.sql.connection import query, run
from segrec_batch.search.sql.views import identifier, quoted, schema_file, select

REASONS = 200  # that are told apart; the others of a stage are counted together
OTHERS = "(other reasons)"
_MEMORY = "4GB"  # of DuckDB, which goes to disk beyond it

_FATES = """
CREATE TEMP TABLE fates AS
SELECT image_id,
       CASE WHEN a.content_hash IS NULL THEN 'gone'
            WHEN b.content_hash IS NULL THEN 'new'
            WHEN a.content_hash = b.content_hash THEN 'unchanged'
            ELSE 'changed' END AS fate
FROM (SELECT image_id, content_hash FROM before_images) AS b
FULL JOIN (SELECT image_id, content_hash FROM after_images) AS a USING (image_id)
"""
_IMAGES = """
SELECT fate AS name, sum(n)::BIGINT AS count
FROM (SELECT fate, 1 AS n FROM fates UNION ALL SELECT 'unchanged', count(*) FROM common_images)
GROUP BY fate HAVING sum(n) > 0 ORDER BY fate
"""
_FAILURES = """
WITH told AS (
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
    SELECT stage, reason FROM told GROUP BY ALL
    ORDER BY count(*) DESC, stage, reason LIMIT {reasons}
)
SELECT name, side, stage, if(c.reason IS NULL, {others}, reason) AS reason, count(*) AS count
FROM told LEFT JOIN (SELECT stage, reason, reason AS found FROM common_reasons) AS c
    USING (stage, reason)
GROUP BY ALL ORDER BY ALL
"""
_STALE = """
SELECT 'after' AS side, count(*) AS count
FROM (SELECT image_id FROM after_failures UNION ALL SELECT image_id FROM common_failures)
SEMI JOIN (SELECT image_id FROM after_images UNION ALL SELECT image_id FROM common_images)
    USING (image_id)
"""
_COVERAGE = """
WITH seen AS (
    SELECT 'before' AS side, fate, {columns} FROM before_images JOIN fates USING (image_id)
    UNION ALL SELECT 'after', fate, {columns} FROM after_images JOIN fates USING (image_id)
    UNION ALL SELECT 'both', 'unchanged', {columns} FROM common_images
),
binned AS (
    SELECT side, fate, class, ceil(share * {bins})::INTEGER AS bin, count(*) AS n,
           sum(share::DOUBLE) AS total
    FROM (UNPIVOT seen ON {classes} INTO NAME class VALUE share)
    GROUP BY ALL
)
SELECT fate AS name, s.side, class, bin, sum(n)::BIGINT AS count, sum(total) AS value
FROM binned JOIN (VALUES ('before'), ('after')) AS s(side) ON binned.side IN (s.side, 'both')
GROUP BY ALL ORDER BY ALL
"""
_GOLDEN = """
CREATE TEMP TABLE golden AS
SELECT image_id
FROM (SELECT image_id FROM common_images
      UNION ALL SELECT image_id FROM fates WHERE fate IN ('changed', 'unchanged'))
WHERE {asked}
ORDER BY md5(image_id), image_id
"""
_JUDGED = """
SELECT image_id, a.uri, b.dominant_class AS class, b.content_hash <> a.content_hash AS new_content,
       {features}, {changes}
FROM (FROM before_golden SEMI JOIN golden USING (image_id)) AS b
JOIN (FROM after_golden SEMI JOIN golden USING (image_id)) AS a USING (image_id)
ORDER BY image_id
"""
_FEATURES = """b.feature <> a.feature AS new_feature,
       1 - pearson(b.feature, a.feature) AS distance"""
_NO_FEATURES = "NULL::BOOLEAN AS new_feature, NULL::DOUBLE AS distance"


class Pair:
    """Two snapshots of one index, older and newer, and the classes that both know.

    folder: takes what does not fit in memory.
    """

    def __init__(self, before: Snapshot, after: Snapshot, folder: Path) -> None:
        self.before, self.after = before, after
        self.classes = [c for c in after.spec.classes if c in before.spec.classes]
        self.same_model = before.model_id == after.model_id
        self._connection = open_database(":memory:", [before, after], memory_limit=_MEMORY)
        self._run(f"SET temp_directory = {quoted(str(folder / 'spill'))}")
        self._run("SET preserve_insertion_order = false")  # it would cost memory
        self._run(schema_file("functions.sql"))
        for table in ("images", "failures"):
            self._split(table)
        self._run(_FATES)

    def _run(self, sql: str) -> None:
        run(self._connection, sql)

    def _split(self, table: str) -> None:
        """Views of a table's rows: those in common files, and the others of either snapshot."""
        before, after = ({f.path for f in s.files[table]} for s in (self.before, self.after))
        for name, snapshot, paths in (
            ("common", self.after, before & after),
            ("before", self.before, before - after),
            ("after", self.after, after - before),
        ):
            kept = tuple(f for f in snapshot.files[table] if f.path in paths)
            some = replace(snapshot, files={**snapshot.files, table: kept})
            view = f"{name}_{table}"
            scan = select(some, table)
            if scan is None:
                nothing = schemas(snapshot.spec.classes)[table].empty_table()
                self._connection.register(f"nothing_in_{view}", nothing)
            self._run(f"CREATE TEMP VIEW {view} AS {scan or f'FROM nothing_in_{view}'}")

    def images(self) -> pa.Table:
        """COUNTS rows: how many images are new, gone, changed and unchanged."""
        return self._counted("images", _IMAGES)

    def failures(self) -> pa.Table:
        """COUNTS rows: how many failures of a stage and reason there were and are."""
        sql = _FAILURES.format(reasons=REASONS, others=quoted(OTHERS))
        return self._counted("failures", sql)

    def stale(self) -> pa.Table:
        """COUNTS row: how many images could not be read since, so that they are failures, too."""
        return self._counted("stale", f"SELECT 'stale' AS name, * FROM ({_STALE})")  # noqa: S608

    def coverage(self) -> pa.Table:
        """COUNTS rows: for each fate, side, class and bin, how many images, and the sum of σ."""
        if not self.classes:
            return COUNTS.empty_table()
        columns = ", ".join(
            f"{identifier(coverage_column(c))} AS {identifier(c)}" for c in self.classes
        )
        classes = ", ".join(map(identifier, self.classes))
        sql = _COVERAGE.format(columns=columns, classes=classes, bins=BINS)
        return self._counted("coverage", sql)

    def _counted(self, what: str, sql: str) -> pa.Table:
        return as_counts(what, query(self._connection, sql))

    def choose_golden(self, size: int, asked: Sequence[str] | None) -> int:
        """Take the images of both snapshots that are asked for by image_id, else the `size` with
        the lowest md5(image_id); how many there are.
        """
        if asked is None:
            self._run(_GOLDEN.format(asked="true") + f" LIMIT {size}")
        else:
            self._connection.register("asked", pa.table({"image_id": pa.array(asked, pa.string())}))
            self._run(_GOLDEN.format(asked="image_id IN (FROM asked)"))
        counted = query(self._connection, "SELECT count(*) AS n FROM golden")
        return int(counted["n"][0].as_py())

    def golden(self) -> pa.Table:
        """A row for each golden image, by image_id: image_id, uri, class (the dominant one before),
        new_content, new_feature, distance (1 - Pearson of the features, in [0, 2]) and for each
        class how much its σ grew. Of two models, new_feature and distance are NULL.
        """
        shares = [coverage_column(c) for c in self.classes]
        told = ", ".join(map(identifier, (*_TOLD, *shares)))
        for side in ("before", "after"):
            self._run(
                f"CREATE OR REPLACE TEMP VIEW {side}_golden AS SELECT {told} FROM {side}_images "  # noqa: S608
                f"UNION ALL SELECT {told} FROM common_images"
            )
        changes = (
            ", ".join(f"a.{s}::DOUBLE - b.{s} AS {s}" for s in map(identifier, shares))
            or "NULL AS none"
        )
        features = _FEATURES if self.same_model else _NO_FEATURES
        return query(self._connection, _JUDGED.format(features=features, changes=changes))

    def close(self) -> None:
        """Give the memory back."""
        self._connection.close()


_TOLD = ("image_id", "uri", "content_hash", "dominant_class", "feature")
