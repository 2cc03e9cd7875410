"""List the images under a URI, and count what is left out: the first step of every job."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.utils import tokenize

from segrec_batch.common import faults
from segrec_batch.common.errors import InputError
from segrec_batch.sources import storage
from segrec_batch.sources.recognise import EXTENSIONS, find_images, has_image_name, left_out_as

BATCH_ROWS = 65_536
NO_EXTENSION = "no extension"
"""The kind of a file that is left out because its content is not an image's."""
OTHER_KINDS = "others"

SOURCES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source_size", pa.int64(), nullable=False),
        # the ETag of an object store; of a local file its modification time in seconds
        pa.field("source_etag", pa.string(), nullable=False),
        # why the image cannot be read at all; null if nothing is known against it
        pa.field("problem", pa.string()),
    ]
)

# named: whether the name says that it is an image; of the others the content does
LISTED = pa.schema([*SOURCES, pa.field("named", pa.bool_(), nullable=False)])

Source = tuple[str, int, str, str | None, bool]  # a row of LISTED

_NOT_UTF8 = "file name is not UTF-8 (shown escaped)"
_VERSION_ID = "?versionId= in the name is not supported"  # s3fs would read another object
NAME_PROBLEMS = frozenset({_NOT_UTF8, _VERSION_ID})
"""Problems that last until the source has another name, unlike all others."""

_MOST_KINDS = 1000  # that are counted apart: names are data, and memory is bounded
_NO_FOLDER = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR}  # of a link that leads nowhere


@dataclass
class FileCounts:
    """Counts of the files of a listing: all of them, and by kind those that are left out.

    A kind is an extension (`.txt`), or what a name is known by (`._*`, `Thumbs.db`).
    """

    found: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def leave_out(self, kind: str, files: int = 1) -> None:
        """Count files that are left out."""
        known = kind in self.left_out or len(self.left_out) < _MOST_KINDS
        self.left_out[kind if known else OTHER_KINDS] += files

    def __str__(self) -> str:
        return ", ".join(f"{kind} {n:,}" for kind, n in self.left_out.most_common(10))


def list_images(uri: str) -> pa.Table:
    """The images under `uri` as one table, sorted by URI. See `iter_images`."""
    return pa.Table.from_batches(iter_images(uri), SOURCES).sort_by("uri")


def iter_images(uri: str, counts: FileCounts | None = None) -> Iterator[pa.RecordBatch]:
    """The images under `uri`, as `iter_files` lists them, in batches of `SOURCES`.

    Files whose names do not tell are recognised by their content.

    Raises InputError when there are no images, and as `iter_files` does.
    """
    counts = counts or FileCounts()
    images = 0
    for batch in iter_files(uri, counts):
        recognised = _recognised(batch, counts)
        if recognised.num_rows:
            images += recognised.num_rows
            yield recognised
    if not images:
        raise nothing_found(uri, counts)


def nothing_found(uri: str, counts: FileCounts) -> InputError:
    """Return the error that there are no images under `uri`."""
    others = f"{counts.found} other files" + (f": {counts}" if counts.found else "")
    return InputError(
        f"{uri}: no images found ({others}; looked for {', '.join(sorted(EXTENSIONS))})"
    )


def iter_files(uri: str, counts: FileCounts) -> Iterator[pa.RecordBatch]:
    """The files under `uri` (a folder, searched through, or one file) that may be images.

    Batches of `LISTED` of at most 65,536 rows, in no particular order; no more than one of them is
    in memory. Files are taken by extension (`EXTENSIONS`, any case), and without one if their name
    does not tell (see `left_out_as`); the rest is counted in `counts`. Links to local folders are
    followed, but not in circles. One request per 1,000 objects, one look at each local image.

    Raises InputError when a folder or the store does not let itself be listed, or the folder
    vanishes meanwhile: what a part of a listing leaves out would look deleted.
    """
    rows: list[Source] = []
    for row in _listed(uri):
        counts.found += 1
        if isinstance(row, str):
            counts.leave_out(row)
            continue
        rows.append(row)
        if len(rows) == BATCH_ROWS:
            yield _batch(rows)
            rows = []
    if rows:
        yield _batch(rows)


def _batch(rows: list[Source]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, LISTED, strict=True)], schema=LISTED
    )


def _recognised(batch: pa.RecordBatch, counts: FileCounts) -> pa.RecordBatch:
    """Rows of LISTED as rows of SOURCES, without those whose content is not an image's."""
    kept: list[bool] = batch["named"].to_pylist()
    unsure = [i for i, named in enumerate(kept) if not named]
    readable = [i for i in unsure if batch["problem"][i].as_py() is None]
    uris, sizes = ([batch[c][i].as_py() for i in readable] for c in ("uri", "source_size"))
    for i, found in zip(readable, find_images(uris, sizes), strict=True):
        kept[i] = found
    if left_out := kept.count(False):
        counts.leave_out(NO_EXTENSION, left_out)
    return batch.filter(pa.array(kept, pa.bool_())).select(SOURCES.names)


def _listed(uri: str) -> Iterator[Source | str]:
    """A row for each file that may be an image; of each other file its kind."""
    fs, path = storage.filesystem(uri)
    try:
        if storage.is_local(fs):
            yield from _local(path)
        elif storage.is_s3(fs):
            yield from _s3(fs, path)
        else:
            yield from _other(fs, path)
    except Exception as error:  # an object store's client has errors of its own
        hint = "" if storage.is_local(fs) else "; check the name and AWS_*"
        raise InputError(f"{uri} cannot be listed: {faults.describe(error)}{hint}") from error


def _local(root: str) -> Iterator[Source | str]:
    try:
        state = os.stat(root)  # noqa: PTH116
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(state.st_mode):
        yield left_out_as(os.path.basename(root)) or _file(root, state)  # noqa: PTH119
        return
    trail = [(_identity(state), os.scandir(root))]  # from the root to the folder being read
    try:
        while trail:
            entry = next(trail[-1][1], None)
            if entry is None:
                trail.pop()
            elif not _is_folder(entry):
                yield from _entry(entry)
            else:
                _enter(entry, trail)
        if _identity(os.stat(root)) != _identity(state):  # noqa: PTH116
            raise FileNotFoundError(errno.ENOENT, "the folder was replaced meanwhile", root)
    finally:
        for _, entries in trail:
            entries.close()


Identity = tuple[int, int]  # device, inode


def _identity(state: os.stat_result) -> Identity:
    return state.st_dev, state.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # of a link
        if error.errno in _NO_FOLDER or has_image_name(entry.name):
            return False
        raise


def _enter(entry: os.DirEntry[str], trail: list[tuple[Identity, Any]]) -> None:
    """Add a folder to the trail, unless it is on it already or has vanished."""
    try:
        identity = _identity(entry.stat())
        if all(identity != i for i, _ in trail):
            trail.append((identity, os.scandir(entry.path)))
    except (FileNotFoundError, NotADirectoryError):
        pass


def _entry(entry: os.DirEntry[str]) -> Iterator[Source | str]:
    """One entry, or nothing if it has vanished meanwhile."""
    if kind := left_out_as(entry.name):
        yield kind
        return
    try:
        yield _file(entry.path, entry.stat())
    except OSError as error:
        with suppress(FileNotFoundError):
            link = entry.stat(follow_symlinks=False)
            yield _file(entry.path, link, f"broken link: {error.strerror}")


def _file(path: str, state: os.stat_result, problem: str | None = None) -> Source:
    regular, named = stat.S_ISREG(state.st_mode), has_image_name(os.path.basename(path))  # noqa: PTH119
    if not regular and problem is None:
        problem = "not a regular file"
    try:
        path.encode()
    except UnicodeEncodeError:
        path, problem = os.fsencode(path).decode("utf-8", "backslashreplace"), _NOT_UTF8
    seconds = Decimal(state.st_mtime_ns).scaleb(-9)
    return path, state.st_size if regular else 0, f"{seconds:.6f}", problem, named


def _s3(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Source | str]:
    bucket = fs.split_path(path)[0]
    empty = True
    for page in storage.object_pages(fs, path):
        empty = empty and not page
        yield from (_object(fs, bucket, o) for o in page if not o["Key"].endswith("/"))
    if empty and path != bucket:
        for page in storage.object_pages(fs, path, whole=True):
            yield from (_object(fs, bucket, o) for o in page)


def _object(fs: fsspec.AbstractFileSystem, bucket: str, o: storage.Listed) -> Source | str:
    name = o["Key"].rpartition("/")[2]
    if kind := left_out_as(name):
        return kind
    problem = _VERSION_ID if "?versionId=" in o["Key"] else None
    uri = storage.to_uri(fs, f"{bucket}/{o['Key']}")
    return uri, o["Size"], o["ETag"].strip('"'), problem, has_image_name(name)


def _other(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Source | str]:
    try:
        for _, _, files in fs.walk(path, detail=True, on_error="raise"):
            for info in files.values():
                name = storage.name(info["name"])
                etag = info.get("ETag") or info.get("etag") or tokenize(info)
                uri = storage.to_uri(fs, info["name"])
                row = (uri, info["size"] or 0, etag, None, has_image_name(name))
                yield left_out_as(name) or row
    except FileNotFoundError:
        return
