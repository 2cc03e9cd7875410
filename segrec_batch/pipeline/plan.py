"""What a run has to do: the listing, compared with the newest snapshot.

The comparison is a join in a DuckDB database on disk that lives as long as the run. So neither the
listing nor the index has to fit in memory.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from segrec_batch.console import ProgressMeter
from segrec_batch.errors import IndexStateError, InputError
from segrec_batch.listing import iter_pictures
from segrec_batch.pipeline.schema import MANIFEST
from segrec_batch.query.database import open_database, query, reading
from segrec_batch.query.views import select_with_part
from segrec_batch.scratch import scratch_folder
from segrec_batch.store.index import Snapshot

_MEMORY = "4GB"  # of DuckDB, which goes to disk beyond it

_TABLES = """
CREATE TABLE listed (uri VARCHAR, source_size BIGINT, source_etag VARCHAR, problem VARCHAR);
CREATE TABLE old (
    image_id VARCHAR, uri VARCHAR, source_size BIGINT, source_etag VARCHAR,
    content_hash VARCHAR, part VARCHAR
);
"""
_COLUMNS = {  # of `old`, in the tables of the index; a failure has no content
    "images": "image_id, uri, source_size, source_etag, content_hash",
    "failures": "image_id, uri, source_size, source_etag, NULL",
}

# by the globs of a request, of a path below the listed folder
_EXCLUDED = """(
    (len($include::VARCHAR[]) > 0
     AND len(list_filter($include::VARCHAR[], lambda pattern: path GLOB pattern)) = 0)
    OR len(list_filter($exclude::VARCHAR[], lambda pattern: path GLOB pattern)) > 0
)"""

# outside: not below the folder that was listed
_STATUS = f"""
CREATE TABLE plan AS
WITH joined AS (
    SELECT
        coalesce(listed.uri, old.uri) AS uri,
        coalesce(listed.uri, old.uri)[length($below) + 1:] AS path,
        listed.source_size, listed.source_etag, problem,
        old.image_id, old.content_hash, old.part,
        listed.uri IS NULL AS missing,
        listed.source_size <> old.source_size OR listed.source_etag <> old.source_etag AS differs
    FROM listed FULL JOIN old ON listed.uri = old.uri
)
SELECT
    * EXCLUDE (path, missing, differs),
    CASE
        WHEN missing AND NOT starts_with(uri, $below) THEN 'outside'
        WHEN {_EXCLUDED} THEN 'excluded'
        WHEN missing THEN 'gone'
        WHEN part IS NULL THEN 'new'
        WHEN differs THEN 'changed'
        WHEN content_hash IS NOT NULL THEN 'unchanged'
        WHEN $retry_failed THEN 'retried'
        ELSE 'skipped'
    END AS status
FROM joined
"""  # noqa: S608

_LEFT_OUT = f"""
WITH published AS (SELECT uri, uri[length($below) + 1:] AS path FROM rows)
SELECT count(*) FROM published WHERE NOT starts_with(uri, $below) OR {_EXCLUDED}
"""  # noqa: S608

# A changed source may still have the bytes it had; a new one those of an image that it was moved or
# copied from, which then has the same size and ETag or time. The bytes decide when they are read.
# Rows and donors go by rowid: LIMIT, row_number() and arg_min() of a struct ran out of memory where
# sorting, joining and min() go to disk.
_WORK = """
CREATE TABLE work AS
WITH todo AS (
    FROM plan WHERE status IN ('new', 'changed', 'retried')
), donors AS (
    SELECT source_size, source_etag, 'new' AS status, min(rowid) AS place
    FROM old SEMI JOIN (FROM todo WHERE status = 'new') USING (source_size, source_etag)
    WHERE content_hash IS NOT NULL
    GROUP BY ALL
)
SELECT
    todo.uri, todo.source_size, todo.source_etag, problem, todo.part AS old_part,
    CASE
        WHEN todo.content_hash IS NOT NULL THEN {
            'image_id': todo.image_id, 'content_hash': todo.content_hash, 'part': todo.part
        }
        WHEN place IS NOT NULL THEN {
            'image_id': old.image_id, 'content_hash': old.content_hash, 'part': old.part
        }
    END AS donor,
    status
FROM todo
LEFT JOIN donors USING (source_size, source_etag, status)
LEFT JOIN old ON old.rowid = place
ORDER BY todo.part NULLS FIRST, todo.uri
"""


@dataclass(frozen=True)
class Request:
    """What to index: pictures under `images` whose path below it fits any glob of `include` and
    none of `exclude`; at most `limit` of them in this run.
    """

    images: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    retry_failed: bool = False


def _where(request: Request) -> dict[str, object]:
    return {
        "below": request.images.rstrip("/") + "/",
        "include": list(request.include),
        "exclude": list(request.exclude),
    }


class Plan:
    """A comparison of sources with a snapshot. A context manager: its database goes with it.

    Sources have a status: new, changed, retried, unchanged, skipped (failed before), gone, excluded
    or outside. todo: how many are to be processed in this run; replaced: of these, how many have
    rows in the index; left_out: how many rows of `superseded`, a snapshot that is to be replaced as
    a whole, are of sources outside the request.
    """

    def __init__(
        self, request: Request, snapshot: Snapshot, superseded: Snapshot | None = None
    ) -> None:
        self._stack = ExitStack()
        path = self._stack.enter_context(scratch_folder("segrec-plan-"))
        with reading(superseded or snapshot):
            self._make(path, request, snapshot, superseded)

    def _make(
        self, path: Path, request: Request, snapshot: Snapshot, superseded: Snapshot | None
    ) -> None:
        connection = open_database(
            str(path / "plan.duckdb"),
            [snapshot, *filter(None, [superseded])],
            memory_limit=_MEMORY,
            temp_directory=str(path / "spill"),
        )
        self._connection = self._stack.enter_context(connection)
        self._connection.execute(_TABLES)
        self._list(request.images)
        self._load(snapshot)
        self._compare(request)
        self.left_out = self._count_left_out(request, superseded) if superseded else 0

    def __enter__(self) -> "Plan":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _list(self, images: str) -> None:
        with ProgressMeter("listed") as meter:
            for batch in iter_pictures(images):
                self._connection.register("batch", pa.Table.from_batches([batch]))
                self._connection.execute("INSERT INTO listed FROM batch")
                meter.advance(batch.num_rows)

    def _load(self, snapshot: Snapshot) -> None:
        for table, columns in _COLUMNS.items():
            select = select_with_part(snapshot, table, columns)
            if select:
                self._connection.execute(f"INSERT INTO old {select}")

    def _compare(self, request: Request) -> None:
        retry = {"retry_failed": request.retry_failed}
        self._connection.execute(_STATUS, _where(request) | retry)
        self._connection.execute(_WORK)
        if request.limit is not None:
            self._connection.execute("DELETE FROM work WHERE rowid >= ?", [request.limit])
        counts = self._query("SELECT status, count(*) AS n FROM plan GROUP BY status")
        self._counts: dict[str, int] = {row["status"]: row["n"] for row in counts.to_pylist()}
        (work,) = self._query(
            "SELECT count(*) AS todo, count(old_part) AS replaced FROM work"
        ).to_pylist()
        self.todo: int = work["todo"]
        self.replaced: int = work["replaced"]
        self._check_keys()
        if not self.listed:
            raise InputError(f"{request.images}: --include and --exclude leave no picture")

    def _check_keys(self) -> None:
        """A source that the index has twice would be there twice after the join."""
        sql = """SELECT (SELECT count(*) FROM plan WHERE source_size IS NOT NULL)
                      - (SELECT count(*) FROM listed)"""
        ((twice,),) = self._connection.execute(sql).fetchall()
        if twice:
            raise IndexStateError(
                f"{twice} sources are listed or indexed twice; see jobs/maintain.py verify"
            )

    def _count_left_out(self, request: Request, superseded: Snapshot) -> int:
        selects = [select_with_part(superseded, table, "uri") for table in _COLUMNS]
        keys = " UNION ALL ".join(f"({select})" for select in selects if select)
        if not keys:
            return 0
        sql = _LEFT_OUT.replace("FROM rows", f"FROM ({keys})")
        found: list[tuple[int]] = self._connection.execute(sql, _where(request)).fetchall()
        return found[0][0]

    def _query(self, sql: str, *parameters: object) -> pa.Table:
        return query(self._connection, sql, parameters)

    def __getitem__(self, status: str) -> int:
        """How many sources have a status."""
        return self._counts.get(status, 0)

    @property
    def listed(self) -> int:
        """Sources that were listed and not excluded."""
        return sum(self[s] for s in ("new", "changed", "retried", "unchanged", "skipped"))

    @property
    def postponed(self) -> int:
        """Sources to process that are left to another run, because of `limit`."""
        return self["new"] + self["changed"] + self["retried"] - self.todo

    @property
    def nothing_to_do(self) -> bool:
        """Whether the index is as the sources are."""
        return not self.todo and not self["gone"]

    def manifest(self, start: int, stop: int) -> pa.Table:
        """MANIFEST rows of the work, in the order in which it is to be done."""
        rows = self._query("FROM work WHERE rowid >= ? AND rowid < ? ORDER BY rowid", start, stop)
        return rows.select(MANIFEST.names).cast(MANIFEST)

    def gone(self) -> Iterator[tuple[str, list[str]]]:
        """Parts, and the image_ids in each that have no source any more."""
        rows = self._stream("SELECT part, image_id FROM plan WHERE status = 'gone' ORDER BY part")
        for part, members in groupby(rows, key=itemgetter(0)):
            yield part, [image_id for _, image_id in members]

    def lines(self) -> Iterator[tuple[str, str]]:
        """Status and URI of every source that a run would touch."""
        yield from self._stream("SELECT status, uri FROM work ORDER BY rowid")
        yield from self._stream("SELECT status, uri FROM plan WHERE status = 'gone' ORDER BY uri")

    def _stream(self, sql: str) -> Iterator[tuple[Any, ...]]:
        cursor = self._connection.cursor().execute(sql)
        while rows := cursor.fetchmany(1024):
            yield from rows
