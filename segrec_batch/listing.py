"""List the pictures under a URI: the first step of every job."""

import errno
import os
import stat
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.utils import tokenize

from segrec_batch import faults, storage
from segrec_batch.errors import InputError

EXTENSIONS = frozenset({"bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"})
BATCH_ROWS = 65_536

SOURCES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source_size", pa.int64(), nullable=False),
        # the ETag of an object store; of a local file its modification time in seconds
        pa.field("source_etag", pa.string(), nullable=False),
        # why the picture cannot be read at all; null if nothing is known against it
        pa.field("problem", pa.string()),
    ]
)

Source = tuple[str, int, str, str | None]  # a row of SOURCES

_NOT_UTF8 = "file name is not UTF-8 (shown escaped)"
_NO_FOLDER = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR}  # of a link that leads nowhere


def list_pictures(uri: str) -> pa.Table:
    """The pictures under `uri` as one table, sorted by URI. See `iter_pictures`."""
    return pa.Table.from_batches(iter_pictures(uri), SOURCES).sort_by("uri")


def iter_pictures(uri: str) -> Iterator[pa.RecordBatch]:
    """The pictures under `uri` (a folder, searched through, or one file), in no particular order.

    Batches of `SOURCES` of at most 65,536 rows; no more than one of them is in memory. Files are
    taken by extension (`EXTENSIONS`, any case); the rest is not listed. Links to local folders are
    followed, but not in circles. One request per 1,000 objects, one look at each local picture.

    Raises InputError when there are no pictures, or when a folder or the store does not let itself
    be listed: what a part of a listing leaves out would look deleted.
    """
    rows: list[Source] = []
    pictures = others = 0
    for row in _listed(uri):
        if row is None:
            others += 1
            continue
        rows.append(row)
        pictures += 1
        if len(rows) == BATCH_ROWS:
            yield _batch(rows)
            rows = []
    if rows:
        yield _batch(rows)
    if not pictures:
        raise InputError(
            f"{uri}: no pictures found ({others} other files; "
            f"looked for {', '.join(sorted(EXTENSIONS))})"
        )


def _batch(rows: list[Source]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, SOURCES, strict=True)], schema=SOURCES
    )


def _listed(uri: str) -> Iterator[Source | None]:
    """A row for each picture, None for each other file."""
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


def _is_picture(name: str) -> bool:
    _, dot, extension = name.rpartition(".")
    return bool(dot) and extension.lower() in EXTENSIONS


def _local(root: str) -> Iterator[Source | None]:
    try:
        state = os.stat(root)  # noqa: PTH116
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(state.st_mode):
        yield _file(root, state) if _is_picture(root) else None
        return
    trail = [(_identity(state), os.scandir(root))]  # from the root to the folder being read
    try:
        while trail:
            entry = next(trail[-1][1], None)
            if entry is None:
                trail.pop()
            elif not _is_folder(entry):
                yield _entry(entry)
            else:
                _enter(entry, trail)
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
        if error.errno in _NO_FOLDER or _is_picture(entry.name):
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


def _entry(entry: os.DirEntry[str]) -> Source | None:
    if not _is_picture(entry.name):
        return None
    try:
        return _file(entry.path, entry.stat())
    except OSError as error:
        try:
            link = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # vanished meanwhile
            return None
        return _file(entry.path, link, f"broken link: {error.strerror}")


def _file(path: str, state: os.stat_result, problem: str | None = None) -> Source:
    regular = stat.S_ISREG(state.st_mode)
    if not regular and problem is None:
        problem = "not a regular file"
    try:
        path.encode()
    except UnicodeEncodeError:
        path, problem = os.fsencode(path).decode("utf-8", "backslashreplace"), _NOT_UTF8
    seconds = Decimal(state.st_mtime_ns).scaleb(-9)
    return path, state.st_size if regular else 0, f"{seconds:.6f}", problem


def _s3(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Source | None]:
    bucket = fs.split_path(path)[0]
    empty = True
    for page in storage.object_pages(fs, path):
        empty = empty and not page
        yield from (_object(fs, bucket, o) for o in page if not o["Key"].endswith("/"))
    if empty and path != bucket:
        for page in storage.object_pages(fs, path, whole=True):
            yield from (_object(fs, bucket, o) for o in page)


def _object(fs: fsspec.AbstractFileSystem, bucket: str, o: storage.Listed) -> Source | None:
    if not _is_picture(o["Key"].rpartition("/")[2]):
        return None
    # s3fs would read another object, whose name ends there
    problem = "?versionId= in the name is not supported" if "?versionId=" in o["Key"] else None
    return storage.to_uri(fs, f"{bucket}/{o['Key']}"), o["Size"], o["ETag"].strip('"'), problem


def _other(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Source | None]:
    try:
        for _, _, files in fs.walk(path, detail=True, on_error="raise"):
            for info in files.values():
                etag = info.get("ETag") or info.get("etag") or tokenize(info)
                row = (storage.to_uri(fs, info["name"]), info["size"] or 0, etag, None)
                yield row if _is_picture(storage.name(info["name"])) else None
    except FileNotFoundError:
        return
