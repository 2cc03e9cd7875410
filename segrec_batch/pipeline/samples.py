"""Data of an index on which descriptors are fitted: moments of all features, and random images.

Images are drawn by a hash of `image_id`: the same index gives the same images each time, and an
index with a few more images gives mostly the same ones.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import ImageBatch, Moments, Prepare, Result, Value, Vectors
from segrec_batch.descriptors.inputs import assemble, group_by_shape, read_pixels, stored_images
from segrec_batch.distributed import cluster
from segrec_batch.distributed.tasks import SharedValue, run_tasks
from segrec_batch.index.history import choose_roots
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.pipeline.moments import MomentsTask, compute_file_moments, merge_moments
from segrec_batch.search.database import open_files
from segrec_batch.search.sql.connection import query, read_batches

log = logging.getLogger(__name__)

_MAX_TASKS = 128  # maximum number of tasks that compute moments; the result of each takes 2 MiB
_READ_IMAGES = 64  # images that are read together
_BATCH_IMAGES = 32  # maximum number of images, of one shape, in a batch
_FEATURE_ROWS = 4096  # features in memory at a time
_SLICE_ROWS = 2048  # rows that a task of `map_slices` takes

_ORDER = "md5(image_id), image_id"
_WITH_DRAWN = f"WITH drawn AS (SELECT image_id FROM images ORDER BY {_ORDER} LIMIT $count)"  # noqa: S608
_IMAGES = f"""{_WITH_DRAWN}
SELECT image_id, uri, content_hash, width, height, grid_h, grid_w, mask, mask_grid, feature
FROM images SEMI JOIN drawn USING (image_id) ORDER BY {_ORDER}
"""  # noqa: S608
CONTENTS = """
SELECT md5(content_hash) AS hash, min(image_id) AS image_id
FROM images GROUP BY content_hash ORDER BY hash LIMIT $count
"""
"""SQL of the images of `draw_features`: hash of their bytes, and image_id."""
_FEATURES = f"SELECT hash, feature FROM images JOIN ({CONTENTS}) USING (image_id) ORDER BY hash"  # noqa: S608
_REGIONS = (
    f"{_WITH_DRAWN} SELECT image_id, class, feature FROM regions SEMI JOIN drawn USING (image_id)"  # noqa: S608
)
_LABELLED = f"""{_WITH_DRAWN}
SELECT uri, feature FROM images SEMI JOIN drawn USING (image_id) ORDER BY {_ORDER}
"""  # noqa: S608


class IndexSamples:
    """The images of a snapshot as `descriptors.Samples`.

    Args:
        snapshot: an index.
        max_images: maximum number of images to draw.
        roots: folders below which images are read, see `choose_roots`.

    Raises:
        InputError: the snapshot has no images.
    """

    def __init__(self, snapshot: Snapshot, max_images: int, roots: Sequence[str] = ()) -> None:
        if not snapshot.rows("images"):
            raise InputError(f"{snapshot.index} has no images to learn from")
        self._snapshot = snapshot
        self._max_images = max_images
        self._roots = choose_roots(snapshot.index, roots)

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes in the order of their labels; the background is first."""
        return self._snapshot.spec.all_classes

    @property
    def feature_length(self) -> int:
        """Length of a feature."""
        return self._snapshot.spec.feature_length

    def compute_moments(self, prepare: Prepare | None = None) -> Moments:
        """Return the moments of the features of all images, computed on the Ray cluster.

        With `prepare` they are those of `prepare(features)`.
        They are merged in the order of the files, so that results are reproducible bit by bit.
        """
        files = sorted(self._snapshot.files["images"], key=lambda file: file.path)
        step = -(-len(files) // _MAX_TASKS)
        groups = [files[start : start + step] for start in range(0, len(files), step)]
        tasks = [MomentsTask(self._snapshot.index, group, prepare) for group in groups]
        results = {}
        total = self._snapshot.rows("images")
        with cluster.join(), ProgressMeter("features, for their moments", total) as meter:
            for task, part_moments in run_tasks(compute_file_moments, tasks, cpus=1):
                results[task.files[0].path] = part_moments
                meter.advance(part_moments.n)
        return merge_moments(results[group[0].path] for group in groups)

    def draw_images(self, count: int) -> Iterator[ImageBatch]:
        """Yield random images in batches of one shape, at most `count` and `max_images` in all.

        Images that cannot be read are left out and counted in a warning at the end.

        Raises:
            InputError: no image can be read.
            StorageError: the store does not answer.
        """
        spec = self._snapshot.spec
        count = min(count, self._max_images, self._snapshot.rows("images"))
        unread: list[str] = []
        with ProgressMeter("images to learn from", count) as meter:
            for images, regions in self._iter_rows(count):
                stored = stored_images(images, regions, spec)
                stored = read_pixels(stored, spec.shapes, self._roots)
                unread += [f"{s.uri}: {s.reason}" for s in stored if s.reason]
                readable = [s.image for s in stored if not s.reason]
                for positions in group_by_shape(readable, _BATCH_IMAGES):
                    yield assemble([readable[i] for i in positions], pixels=True)
                meter.advance(len(stored))
        if len(unread) == count:
            hint = "" if self._roots.uris else "; name their folder by --images-root URI"
            text = f"none of {count:,} images can be read any more, e.g. {unread[0]}{hint}"
            raise InputError(text)
        if unread:
            log.warning(
                f"{len(unread):,} of {count:,} images to learn from cannot be read any more and "
                f"are left out, e.g. {unread[0]}"
            )

    def _iter_rows(self, count: int) -> Iterator[tuple[pa.Table, dict[str, pa.Table]]]:
        """Yield some rows of `images` with their rows of `regions` by class, until all are read."""
        with open_files(self._snapshot).connection as connection:
            regions = _group_by_class(query(connection, _REGIONS, {"count": count}))
            for batch in read_batches(connection, _IMAGES, {"count": count}, _READ_IMAGES):
                for start in range(0, batch.num_rows, _READ_IMAGES):
                    images = pa.Table.from_batches([batch.slice(start, _READ_IMAGES)])
                    yield images, _select_images(images, regions)

    def draw_features(self, count: int) -> Iterator[tuple[Vectors, NDArray[np.uint8]]]:
        """Yield features (n, C) and hashes of the bytes (n, 16) of at most `count` random images.

        Of images with the same bytes there is one.
        """
        with open_files(self._snapshot).connection as connection:
            for batch in read_batches(connection, _FEATURES, {"count": count}, _FEATURE_ROWS):
                digits = "".join(batch["hash"].to_pylist())
                hashes = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 16)
                yield np.stack(batch["feature"].to_numpy(zero_copy_only=False)), hashes

    def map_slices(
        self, function: Callable[[Value, slice], Result], value: Value, rows: int
    ) -> Iterator[Result]:
        """Yield `function(value, part)` for slices of `rows` rows, computed on the Ray cluster."""
        results: dict[int, Result] = {}
        with cluster.join(), ProgressMeter("reference vectors", rows) as meter:
            shared = SharedValue(value)
            parts = (slice(start, start + _SLICE_ROWS) for start in range(0, rows, _SLICE_ROWS))
            tasks = (_SliceTask(function, shared, part) for part in parts)
            for task, result in run_tasks(_run_slice, tasks, cpus=1):
                results[task.part.start] = result
                meter.advance(min(_SLICE_ROWS, rows - task.part.start))
        yield from (results[start] for start in sorted(results))

    def read_labelled_features(self, count: int) -> tuple[Vectors, Sequence[str]]:
        """Return features (n, C) of at most `count` images and the names of their folders."""
        with open_files(self._snapshot).connection as connection:
            rows = query(connection, _LABELLED, {"count": count})
        folders = [uri.rpartition("/")[0].rpartition("/")[2] for uri in rows["uri"].to_pylist()]
        return np.stack(rows["feature"].to_numpy()), folders


@dataclass(frozen=True)
class _SliceTask(Generic[Value, Result]):
    """A function of a shared value and a slice of its rows."""

    function: Callable[[Value, slice], Result]
    value: SharedValue[Value]
    part: slice


def _run_slice(task: _SliceTask[Value, Result]) -> Result:
    return task.function(task.value.get(), task.part)


def _group_by_class(rows: pa.Table) -> dict[str, pa.Table]:
    names = pc.unique(rows["class"])
    return {name.as_py(): rows.filter(pc.equal(rows["class"], name)) for name in names}


def _select_images(images: pa.Table, regions: dict[str, pa.Table]) -> dict[str, pa.Table]:
    ids = images["image_id"].combine_chunks()
    return {name: rows.filter(pc.is_in(rows["image_id"], ids)) for name, rows in regions.items()}
