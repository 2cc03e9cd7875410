"""Plan of a run: a status for each listed or indexed image.

A temporary DuckDB database on disk joins listing and index, so neither has to fit in memory.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.common.limits import Limit, parse_limit
from segrec_batch.distributed.scratch import scratch_folder
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.pipeline import comparison
from segrec_batch.pipeline.stage_schema import MANIFEST
from segrec_batch.search.database import open_database, translate_errors
from segrec_batch.search.sql.connection import query
from segrec_batch.search.sql.views import select_with_part
from segrec_batch.sources.listing import NO_EXTENSION, FileCounts, iter_files, no_images_error
from segrec_batch.sources.recognise import are_images

DEFAULT_MAX_GONE = parse_limit("50%")
DEFAULT_MAX_READ_FAILURES = parse_limit("1%")

_MEMORY = "4GB"  # memory limit of DuckDB, which spills to disk
_FILES_AT_ONCE = 1024  # files whose first bytes are read concurrently

RemovedIds = dict[str, list[str]]  # image_ids of rows to remove, by table
Removal = tuple[str, RemovedIds]  # a part, and the rows to remove from it


@dataclass(frozen=True)
class Request:
    """Images to index, and limits of the run.

    Attributes:
        images: folder of images.
        include: globs of paths below the folder; without globs all paths.
        exclude: globs of paths to leave out.
        limit: maximum number of images to process.
        retry_failed: process images again that failed before.
        max_gone: how many images of the index may be gone.
        max_read_failures: how many images may be unreadable; None is
            `DEFAULT_MAX_READ_FAILURES`, and zero for a rebuild that would drop rows.
    """

    images: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    retry_failed: bool = False
    max_gone: Limit = DEFAULT_MAX_GONE
    max_read_failures: Limit | None = None


def _to_sql_parameters(request: Request) -> dict[str, object]:
    """Return the parameters of the queries in `comparison`."""
    return {
        "below": request.images.rstrip("/") + "/",
        "include": list(request.include),
        "exclude": list(request.exclude),
    }


class Plan:
    """Images and their status; a context manager that deletes its database at the end.

    The status is new, changed, retried (failed before; is tried again), unchanged, skipped (failed
    before; is not tried again), gone (not listed any more), excluded (by globs) or outside (not
    below the listed folder).

    Args:
        superseded: snapshot that the run replaces as a whole.

    Attributes:
        files: counts of the listed files.
        todo: number of images to process in this run.
        replaced: number of images of these that have rows in the index.
        old_images: number of rows of `images` that the run removes if all images can be read.
        old_failures: the same for `failures`.
        not_covered: number of images of the superseded snapshot that are outside the request.
        known: number of images of the index or superseded snapshot that the request covers.
        known_gone: number of images of these that are gone.
    """

    def __init__(
        self, request: Request, snapshot: Snapshot, superseded: Snapshot | None = None
    ) -> None:
        self.files = FileCounts()
        self._stack = ExitStack()
        path = self._stack.enter_context(scratch_folder("segrec-plan-"))
        with translate_errors(superseded or snapshot):
            self._build(path, request, snapshot, superseded)

    def _build(
        self, path: Path, request: Request, snapshot: Snapshot, superseded: Snapshot | None
    ) -> None:
        connection = open_database(
            str(path / "plan.duckdb"),
            [snapshot, *filter(None, [superseded])],
            memory_limit=_MEMORY,
            temp_directory=str(path / "spill"),
        )
        self._connection = self._stack.enter_context(connection)
        self._connection.execute(comparison.CREATE_TABLES)
        self._load_listing(request.images)
        self._load_index(snapshot)
        self._recognise(request)
        self._compare(request)
        self.not_covered, self.known, self.known_gone = 0, self.listed - self["new"], self["gone"]
        self.known += self.known_gone
        if superseded:
            self._count_superseded(request, superseded)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _load_listing(self, images: str) -> None:
        with ProgressMeter("listed") as meter:
            for batch in iter_files(images or "/", self.files):
                self._connection.register("batch", pa.Table.from_batches([batch]))
                self._connection.execute("INSERT INTO listed FROM batch")
                meter.advance(batch.num_rows)

    def _load_index(self, snapshot: Snapshot) -> None:
        selects = {t: select_with_part(snapshot, t, c) for t, c in comparison.COLUMNS.items()}
        if selects["failures"]:
            self._connection.execute(f"INSERT INTO old_failures {selects['failures']}")
        if selects["images"]:
            self._connection.execute(comparison.INSERT_OLD_IMAGES.format(rows=selects["images"]))
        self._connection.execute(comparison.INSERT_OLD_FAILURES)

    def _recognise(self, request: Request) -> None:
        """Remove listed files without a known extension whose content is not an image."""
        rows = self._stream(comparison.UNRECOGNISED, _to_sql_parameters(request))
        left_out = 0
        while files := list(islice(rows, _FILES_AT_ONCE)):
            readable = [(uri, size) for uri, size, problem in files if problem is None]
            flags = are_images([uri for uri, _ in readable], [size for _, size in readable])
            images = {uri for (uri, _), is_image in zip(readable, flags, strict=True) if is_image}
            not_images = [uri for uri, *_ in files if uri not in images]
            self._connection.register("batch", pa.table({"uri": pa.array(not_images, pa.string())}))
            self._connection.execute("INSERT INTO not_images FROM batch")
            left_out += len(not_images)
        if left_out:
            self._connection.execute(comparison.DELETE_NOT_IMAGES)
            self.files.leave_out(NO_EXTENSION, left_out)

    def _compare(self, request: Request) -> None:
        retry = {"retry_failed": request.retry_failed}
        self._connection.execute(comparison.CREATE_PLAN, _to_sql_parameters(request) | retry)
        self._connection.execute(comparison.CREATE_WORK)
        if request.limit is not None:
            self._connection.execute("DELETE FROM work WHERE rowid >= ?", [request.limit])
        counts = self._query(comparison.COUNT_STATUS)
        self._counts: dict[str, int] = {row["status"]: row["n"] for row in counts.to_pylist()}
        (replaced,) = self._query(comparison.COUNT_REPLACED).to_pylist()
        self.todo: int = replaced["todo"]
        self.replaced: int = replaced["replaced"]
        self.old_images: int = replaced["images"]
        self.old_failures: int = replaced["failures"]
        self._check_duplicates()
        if not self.listed:
            if not self["excluded"]:
                raise no_images_error(request.images, self.files)
            raise InputError(f"{request.images}: --include and --exclude leave no image")

    def _check_duplicates(self) -> None:
        ((duplicates,),) = self._connection.execute(comparison.COUNT_DUPLICATES).fetchall()
        if duplicates:
            raise IndexStateError(
                f"{duplicates} sources are listed or indexed twice; check the index with segrec "
                "maintain verify"
            )

    def _count_superseded(self, request: Request, superseded: Snapshot) -> None:
        selects = [select_with_part(superseded, t, "uri") for t in comparison.COLUMNS]
        keys = " UNION ALL ".join(f"({select})" for select in selects if select)
        if keys:
            sql = comparison.COUNT_SUPERSEDED.format(rows=f"({keys})")
            (counts,) = self._connection.execute(sql, _to_sql_parameters(request)).fetchall()
            self.not_covered, self.known, self.known_gone = counts

    def _query(self, sql: str, *parameters: object) -> pa.Table:
        return query(self._connection, sql, parameters)

    def __getitem__(self, status: str) -> int:
        """Return the number of images with a status."""
        return self._counts.get(status, 0)

    @property
    def listed(self) -> int:
        """Number of images that are listed and not excluded."""
        return sum(self[s] for s in ("new", "changed", "retried", "unchanged", "skipped"))

    @property
    def postponed(self) -> int:
        """Number of images that `limit` leaves to another run."""
        return self["new"] + self["changed"] + self["retried"] - self.todo

    @property
    def is_empty(self) -> bool:
        """True if the index agrees with the listing."""
        return not self.todo and not self["gone"]

    def read_manifest(self, start: int, stop: int) -> pa.Table:
        """Return MANIFEST rows `start` to `stop` of the images to process."""
        rows = self._query("FROM work WHERE rowid >= ? AND rowid < ? ORDER BY rowid", start, stop)
        return rows.select(MANIFEST.names).cast(MANIFEST)

    def iter_gone(self) -> Iterator[Removal]:
        """Yield parts that have rows of gone images, with the `image_id`s by table."""
        for part, members in groupby(self._stream(comparison.GONE), key=itemgetter(0)):
            removed: RemovedIds = {}
            for _, table, image_id in members:
                removed.setdefault(table, []).append(image_id)
            yield part, removed

    def iter_changes(self) -> Iterator[tuple[str, str]]:
        """Yield status and URI of each image that a run would process or remove."""
        yield from self._stream("SELECT status, uri FROM work ORDER BY rowid")
        yield from self._stream("SELECT status, uri FROM plan WHERE status = 'gone' ORDER BY uri")

    def _stream(
        self, sql: str, parameters: dict[str, object] | None = None
    ) -> Iterator[tuple[Any, ...]]:
        cursor = self._connection.cursor().execute(sql, parameters)
        while rows := cursor.fetchmany(1024):
            yield from rows
