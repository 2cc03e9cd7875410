"""Samples that descriptors are fitted on: moments of all features, and random images of an index.

Images are drawn by a hash of `image_id`, so an index gives the same images each time, and a larger
index mostly the same.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import ImageBatch, Moments, Vectors
from segrec_batch.descriptors.inputs import assemble, group_by_shape, read_pixels, stored_images
from segrec_batch.distributed import cluster
from segrec_batch.distributed.tasks import run_tasks
from segrec_batch.index.history import choose_roots
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.pipeline import moments
from segrec_batch.search.database import Database, open_files
from segrec_batch.search.sql.connection import batches, query

log = logging.getLogger(__name__)

_GROUPS = 128  # groups of files, each read by one task; the result of a task takes 2 MiB
_AT_ONCE = 64  # images that are read together
_BATCH = 32  # images of one shape in a batch

_ORDER = "md5(image_id), image_id"
_DRAWN = f"WITH drawn AS (SELECT image_id FROM images ORDER BY {_ORDER} LIMIT $count)"  # noqa: S608
_IMAGES = f"""{_DRAWN}
SELECT image_id, uri, content_hash, width, height, grid_h, grid_w, mask, mask_grid, feature
FROM images SEMI JOIN drawn USING (image_id) ORDER BY {_ORDER}
"""  # noqa: S608
_REGIONS = f"{_DRAWN} SELECT image_id, class, feature FROM regions SEMI JOIN drawn USING (image_id)"  # noqa: S608
_LABELLED = f"""{_DRAWN}
SELECT uri, feature FROM images SEMI JOIN drawn USING (image_id) ORDER BY {_ORDER}
"""  # noqa: S608


class IndexSamples:
    """The images of a snapshot as `descriptors.Samples`.

    Args:
        snapshot: an index.
        most: maximum number of images to draw.
        roots: folders below which images are read, see `choose_roots`.

    Raises:
        InputError: the snapshot has no images.
    """

    def __init__(self, snapshot: Snapshot, most: int, roots: Sequence[str] = ()) -> None:
        if not snapshot.rows("images"):
            raise InputError(f"{snapshot.index} has no images to learn from")
        self._snapshot = snapshot
        self._most = most
        self._roots = choose_roots(snapshot.index, roots)

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes in the order of their labels; the background is first."""
        return self._snapshot.spec.all_classes

    @property
    def feature_length(self) -> int:
        """Length of a feature."""
        return self._snapshot.spec.feature_length

    def moments(self) -> Moments:
        """Return the moments of the features of all images, computed on the Ray cluster.

        They are merged in the order of the files, so that results are reproducible bit by bit.
        """
        files = sorted(self._snapshot.files["images"], key=lambda file: file.path)
        step = -(-len(files) // _GROUPS)
        index, starts = self._snapshot.index, range(0, len(files), step)
        jobs = [(index, files[start : start + step]) for start in starts]
        results = {}
        total = self._snapshot.rows("images")
        with cluster.join(), ProgressMeter("features, for their moments", total) as meter:
            for (_, group), part in run_tasks(moments.from_files, jobs, cpus=1):
                results[group[0].path] = part
                meter.advance(part[0])
        return Moments(*moments.merge(results[group[0].path] for _, group in jobs))

    def draw_images(self, count: int) -> Iterator[ImageBatch]:
        """Yield batches of one shape with at most `count` random images, and at most `most`.

        Images that cannot be read are left out and counted in a warning at the end.

        Raises:
            InputError: no image can be read.
            StorageError: the store does not answer.
        """
        spec = self._snapshot.spec
        count = min(count, self._most, self._snapshot.rows("images"))
        unread: list[str] = []
        with ProgressMeter("images to learn from", count) as meter:
            for images, regions in self._sampled_rows(count):
                stored = stored_images(images, regions, spec)
                stored = read_pixels(stored, spec.shapes, self._roots)
                unread += [f"{s.uri}: {s.reason}" for s in stored if s.reason]
                readable = [s.image for s in stored if not s.reason]
                for positions in group_by_shape(readable, _BATCH):
                    yield assemble([readable[i] for i in positions], pixels=True)
                meter.advance(len(stored))
        if len(unread) == count:
            hint = "" if self._roots.uris else "; --images-root URI names where they lie"
            text = f"none of {count:,} images can be read any more, e.g. {unread[0]}{hint}"
            raise InputError(text)
        if unread:
            log.warning(
                f"{len(unread):,} of {count:,} images to learn from cannot be read any more and "
                f"are left out, e.g. {unread[0]}"
            )

    def _sampled_rows(self, count: int) -> Iterator[tuple[pa.Table, dict[str, pa.Table]]]:
        """Yield rows of `images`, a few at a time, and their rows of `regions` by class."""
        database = open_files(self._snapshot)
        with database.connection:
            regions = _by_class(database, count)
            for batch in batches(database.connection, _IMAGES, {"count": count}, _AT_ONCE):
                for start in range(0, batch.num_rows, _AT_ONCE):
                    images = pa.Table.from_batches([batch.slice(start, _AT_ONCE)])
                    yield images, _of(images, regions)

    def labelled(self, count: int) -> tuple[Vectors, Sequence[str]]:
        """Return features (n, C) of at most `count` images and the names of their folders."""
        with open_files(self._snapshot).connection as connection:
            rows = query(connection, _LABELLED, {"count": count})
        folders = [uri.rpartition("/")[0].rpartition("/")[2] for uri in rows["uri"].to_pylist()]
        return np.stack(rows["feature"].to_numpy()), folders


def _by_class(database: Database, count: int) -> dict[str, pa.Table]:
    rows = query(database.connection, _REGIONS, {"count": count})
    names = pc.unique(rows["class"])
    return {name.as_py(): rows.filter(pc.equal(rows["class"], name)) for name in names}


def _of(images: pa.Table, regions: dict[str, pa.Table]) -> dict[str, pa.Table]:
    ids = images["image_id"].combine_chunks()
    return {name: rows.filter(pc.is_in(rows["image_id"], ids)) for name, rows in regions.items()}
