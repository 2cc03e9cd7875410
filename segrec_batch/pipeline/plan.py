"""Plan of a run: the listed images, compared with a snapshot of the index.

The comparison is a join in a DuckDB database on disk, which is deleted after the run, so neither
the listing nor the index has to fit in memory.
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
from segrec_batch.search.database import open_database, reading
from segrec_batch.search.sql.connection import query
from segrec_batch.search.sql.views import select_with_part
from segrec_batch.sources.listing import NO_EXTENSION, FileCounts, iter_files, no_images_error
from segrec_batch.sources.recognise import are_images

MOST_GONE = parse_limit("50%")
MOST_UNREAD = parse_limit("1%")

_MEMORY = "4GB"  # memory limit of DuckDB, which spills to disk
_HEADS = 1024  # files whose first bytes are read together

Removal = tuple[str, dict[str, list[str]]]  # a part, and the image_ids of removed rows by table


@dataclass(frozen=True)
class Request:
    """Images to index, and limits of the run.

    Attributes:
        images: folder of images.
        include: globs of paths below the folder; without globs all paths.
        exclude: globs of paths to leave out.
        limit: number of images to process, at most.
        retry_failed: process images again that failed before.
        max_gone: images of the index that may be gone.
        max_read_failures: images that may be unreadable; None is `MOST_UNREAD`, and zero for a
            rebuild that would drop rows.
    """

    images: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    retry_failed: bool = False
    max_gone: Limit = MOST_GONE
    max_read_failures: Limit | None = None


def _where(request: Request) -> dict[str, object]:
    return {
        "below": request.images.rstrip("/") + "/",
        "include": list(request.include),
        "exclude": list(request.exclude),
    }


class Plan:
    """Images with a status each; a context manager that deletes its database at the end.

    The status is new, changed, retried (was unreadable, or failed and is to be retried), unchanged,
    skipped (failed before), gone, excluded or outside.

    Attributes:
        files: counts of all files, and of those that are no images.
        todo: images to process in this run.
        replaced: images of these that have rows in the index.
        old_images: rows of `images` that the run removes if all images can be read.
        old_failures: the same for `failures`.
        left_out: images of the superseded snapshot that are outside the request.
        known: images of the index, or of the superseded snapshot, that the request covers.
        known_gone: images of these that are gone.

    `superseded` is a snapshot that the run replaces as a whole.
    """

    def __init__(
        self, request: Request, snapshot: Snapshot, superseded: Snapshot | None = None
    ) -> None:
        self.files = FileCounts()
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
        self._connection.execute(comparison.TABLES)
        self._list(request.images)
        self._load(snapshot)
        self._recognise(request)
        self._compare(request)
        self.left_out, self.known, self.known_gone = 0, self.listed - self["new"], self["gone"]
        self.known += self.known_gone
        if superseded:
            self._count_superseded(request, superseded)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _list(self, images: str) -> None:
        with ProgressMeter("listed") as meter:
            for batch in iter_files(images or "/", self.files):
                self._connection.register("batch", pa.Table.from_batches([batch]))
                self._connection.execute("INSERT INTO listed FROM batch")
                meter.advance(batch.num_rows)

    def _load(self, snapshot: Snapshot) -> None:
        selects = {t: select_with_part(snapshot, t, c) for t, c in comparison.COLUMNS.items()}
        if selects["failures"]:
            self._connection.execute(f"INSERT INTO old_failures {selects['failures']}")
        if selects["images"]:
            self._connection.execute(comparison.OLD_IMAGES.format(rows=selects["images"]))
        self._connection.execute(comparison.OLD_FAILURES)

    def _recognise(self, request: Request) -> None:
        """Leave out files without a known extension whose content is not an image."""
        rows = self._stream(comparison.UNSURE, _where(request))
        left_out = 0
        while some := list(islice(rows, _HEADS)):
            readable = [(uri, size) for uri, size, problem in some if problem is None]
            flags = are_images([uri for uri, _ in readable], [size for _, size in readable])
            images = {uri for (uri, _), is_image in zip(readable, flags, strict=True) if is_image}
            rest = [uri for uri, *_ in some if uri not in images]
            self._connection.register("rest", pa.table({"uri": pa.array(rest, pa.string())}))
            self._connection.execute("INSERT INTO not_images FROM rest")
            left_out += len(rest)
        if left_out:
            self._connection.execute(comparison.NOT_LISTED)
            self.files.leave_out(NO_EXTENSION, left_out)

    def _compare(self, request: Request) -> None:
        retry = {"retry_failed": request.retry_failed}
        self._connection.execute(comparison.STATUS, _where(request) | retry)
        self._connection.execute(comparison.WORK)
        if request.limit is not None:
            self._connection.execute("DELETE FROM work WHERE rowid >= ?", [request.limit])
        counts = self._query(comparison.COUNTS)
        self._counts: dict[str, int] = {row["status"]: row["n"] for row in counts.to_pylist()}
        (leaving,) = self._query(comparison.LEAVING).to_pylist()
        self.todo: int = leaving["todo"]
        self.replaced: int = leaving["replaced"]
        self.old_images: int = leaving["images"]
        self.old_failures: int = leaving["failures"]
        self._check_keys()
        if not self.listed:
            if not self["excluded"]:
                raise no_images_error(request.images, self.files)
            raise InputError(f"{request.images}: --include and --exclude leave no image")

    def _check_keys(self) -> None:
        ((twice,),) = self._connection.execute(comparison.TWICE).fetchall()
        if twice:
            raise IndexStateError(
                f"{twice} sources are listed or indexed twice; see segrec maintain verify"
            )

    def _count_superseded(self, request: Request, superseded: Snapshot) -> None:
        selects = [select_with_part(superseded, t, "uri") for t in comparison.COLUMNS]
        keys = " UNION ALL ".join(f"({select})" for select in selects if select)
        if keys:
            sql = comparison.SUPERSEDED.format(rows=f"({keys})")
            (counts,) = self._connection.execute(sql, _where(request)).fetchall()
            self.left_out, self.known, self.known_gone = counts

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

    def manifest(self, start: int, stop: int) -> pa.Table:
        """Return MANIFEST rows of the images to process, in order."""
        rows = self._query("FROM work WHERE rowid >= ? AND rowid < ? ORDER BY rowid", start, stop)
        return rows.select(MANIFEST.names).cast(MANIFEST)

    def gone(self) -> Iterator[Removal]:
        """Yield parts with the image_ids of gone images, by table."""
        for part, members in groupby(self._stream(comparison.GONE), key=itemgetter(0)):
            leaving: dict[str, list[str]] = {}
            for _, table, image_id in members:
                leaving.setdefault(table, []).append(image_id)
            yield part, leaving

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield status and URI of each image that a run would process or remove."""
        yield from self._stream("SELECT status, uri FROM work ORDER BY rowid")
        yield from self._stream("SELECT status, uri FROM plan WHERE status = 'gone' ORDER BY uri")

    def _stream(
        self, sql: str, parameters: dict[str, object] | None = None
    ) -> Iterator[tuple[Any, ...]]:
        cursor = self._connection.cursor().execute(sql, parameters)
        while rows := cursor.fetchmany(1024):
            yield from rows
