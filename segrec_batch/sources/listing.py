"""List the images under a URI, and count the files that are left out."""

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

from segrec_batch.common.errors import InputError
from segrec_batch.sources import object_store, storage
from segrec_batch.sources.recognise import EXTENSIONS, are_images, classify_left_out, has_image_name
from segrec_batch.sources.store_errors import describe

BATCH_ROWS = 65_536
NO_EXTENSION = "no extension"
"""Kind of files without an extension whose content is not that of an image."""
OTHER_KINDS = "others"

SOURCES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source_size", pa.int64(), nullable=False),
        # the ETag of an object store; of a local file its modification time in seconds
        pa.field("source_etag", pa.string(), nullable=False),
        # reason why the image cannot be read; null if none is known
        pa.field("problem", pa.string()),
    ]
)

# named: the name has the extension of an image; other files are recognised by their content
LISTED = pa.schema([*SOURCES, pa.field("named", pa.bool_(), nullable=False)])

Source = tuple[str, int, str, str | None, bool]  # a row of LISTED

_NOT_UTF8 = "file name is not UTF-8 (shown escaped)"
_VERSION_ID = "?versionId= in the name is not supported"  # s3fs would read another object
NAME_PROBLEMS = frozenset({_NOT_UTF8, _VERSION_ID})
"""Problems that last until the source is renamed."""

_MAX_KINDS = 1000  # maximum number of kinds with a count of their own; bounds the memory
_BROKEN_LINK_ERRORS = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR}  # errors of broken links


@dataclass
class FileCounts:
    """Counts of the files of a listing: all files, and the left out ones by kind.

    A kind is an extension (`.txt`) or a pattern of names (`._*`, `Thumbs.db`).
    """

    total: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def leave_out(self, kind: str, files: int = 1) -> None:
        """Count files that are left out."""
        is_known = kind in self.left_out or len(self.left_out) < _MAX_KINDS
        self.left_out[kind if is_known else OTHER_KINDS] += files

    def __str__(self) -> str:
        return ", ".join(f"{kind} {n:,}" for kind, n in self.left_out.most_common(10))


def list_images(uri: str) -> pa.Table:
    """Return the images under `uri` as one table, sorted by URI. See `iter_images`."""
    return pa.Table.from_batches(iter_images(uri), SOURCES).sort_by("uri")


def iter_images(uri: str, counts: FileCounts | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the images under `uri`, as `iter_files` lists them, in batches of `SOURCES`.

    Files without an extension are images_only by their content.

    Raises InputError when there are no images, and as `iter_files` does.
    """
    counts = counts or FileCounts()
    images = 0
    for batch in iter_files(uri, counts):
        images_only = _drop_non_images(batch, counts)
        if images_only.num_rows:
            images += images_only.num_rows
            yield images_only
    if not images:
        raise no_images_error(uri, counts)


def no_images_error(uri: str, counts: FileCounts) -> InputError:
    """Return the error to raise if there are no images under `uri`."""
    others = f"{counts.total} other files" + (f": {counts}" if counts.total else "")
    return InputError(
        f"{uri}: no images found ({others}; looked for {', '.join(sorted(EXTENSIONS))})"
    )


def iter_files(uri: str, counts: FileCounts) -> Iterator[pa.RecordBatch]:
    """Yield the files under `uri` (a folder with its subfolders, or one file) that may be images.

    Yields batches of `LISTED` of at most 65,536 rows, in no particular order; one batch at a time
    is in memory. Files are selected by extension (`EXTENSIONS`, any case); files without an
    extension are candidates (see `classify_left_out`); the rest is counted in `counts`. Links to
    local folders are followed, but not in circles. The listing costs one request per 1,000 objects,
    and one `stat` per local image.

    Raises InputError when a folder or the store cannot be listed, or the folder is deleted
    meanwhile: images that an incomplete listing omits would look deleted.
    """
    rows: list[Source] = []
    for row in _iter_entries(uri):
        counts.total += 1
        if isinstance(row, str):
            counts.leave_out(row)
            continue
        rows.append(row)
        if len(rows) == BATCH_ROWS:
            yield _make_batch(rows)
            rows = []
    if rows:
        yield _make_batch(rows)


def _make_batch(rows: list[Source]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, LISTED, strict=True)], schema=LISTED
    )


def _drop_non_images(batch: pa.RecordBatch, counts: FileCounts) -> pa.RecordBatch:
    """Return rows of LISTED as rows of SOURCES, without files whose content is not an image."""
    is_image: list[bool] = batch["named"].to_pylist()
    unnamed = [i for i, is_named in enumerate(is_image) if not is_named]
    readable = [i for i in unnamed if batch["problem"][i].as_py() is None]
    uris, sizes = ([batch[c][i].as_py() for i in readable] for c in ("uri", "source_size"))
    for i, result in zip(readable, are_images(uris, sizes), strict=True):
        is_image[i] = result
    if left_out := is_image.count(False):
        counts.leave_out(NO_EXTENSION, left_out)
    return batch.filter(pa.array(is_image, pa.bool_())).select(SOURCES.names)


def _iter_entries(uri: str) -> Iterator[Source | str]:
    """Yield a row for each file that may be an image, and the kind of each other file."""
    fs, path = storage.filesystem(uri)
    try:
        if storage.is_local(fs):
            yield from _iter_local(path)
        elif object_store.is_s3(fs):
            yield from _iter_s3(fs, path)
        else:
            yield from _iter_other(fs, path)
    except Exception as error:  # clients of object stores raise errors of their own
        hint = "" if storage.is_local(fs) else "; check the name and AWS_*"
        raise InputError(f"{uri} cannot be listed: {describe(error)}{hint}") from error


def _iter_local(root: str) -> Iterator[Source | str]:
    try:
        status = os.stat(root)  # noqa: PTH116
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        yield classify_left_out(os.path.basename(root)) or _make_row(root, status)  # noqa: PTH119
        return
    open_folders = [
        (_get_identity(status), os.scandir(root))
    ]  # folders from the root to the current one
    try:
        while open_folders:
            entry = next(open_folders[-1][1], None)
            if entry is None:
                open_folders.pop()
            elif not _is_folder(entry):
                yield from _classify_entry(entry)
            else:
                _open_folder(entry, open_folders)
        if _get_identity(os.stat(root)) != _get_identity(status):  # noqa: PTH116
            raise FileNotFoundError(errno.ENOENT, "the folder was replaced meanwhile", root)
    finally:
        for _, entries in open_folders:
            entries.close()


Identity = tuple[int, int]  # device, inode


def _get_identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a broken link
        if error.errno in _BROKEN_LINK_ERRORS or has_image_name(entry.name):
            return False
        raise


def _open_folder(entry: os.DirEntry[str], open_folders: list[tuple[Identity, Any]]) -> None:
    """Add a folder to the trail, unless it is already there or has been deleted."""
    try:
        identity = _get_identity(entry.stat())
        if all(identity != i for i, _ in open_folders):
            open_folders.append((identity, os.scandir(entry.path)))
    except (FileNotFoundError, NotADirectoryError):
        pass


def _classify_entry(entry: os.DirEntry[str]) -> Iterator[Source | str]:
    """Yield the row or kind of one entry; nothing if it has been deleted meanwhile."""
    if kind := classify_left_out(entry.name):
        yield kind
        return
    try:
        yield _make_row(entry.path, entry.stat())
    except OSError as error:
        with suppress(FileNotFoundError):
            link = entry.stat(follow_symlinks=False)
            yield _make_row(entry.path, link, f"broken link: {error.strerror}")


def _make_row(path: str, status: os.stat_result, problem: str | None = None) -> Source:
    regular, is_named = stat.S_ISREG(status.st_mode), has_image_name(os.path.basename(path))  # noqa: PTH119
    if not regular and problem is None:
        problem = "not a regular file"
    try:
        path.encode()
    except UnicodeEncodeError:
        path, problem = os.fsencode(path).decode("utf-8", "backslashreplace"), _NOT_UTF8
    seconds = Decimal(status.st_mtime_ns).scaleb(-9)
    return path, status.st_size if regular else 0, f"{seconds:.6f}", problem, is_named


def _iter_s3(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Source | str]:
    bucket = fs.split_path(path)[0]
    is_empty = True
    for page in object_store.iter_object_pages(fs, path):
        is_empty = is_empty and not page
        yield from (_make_object_row(fs, bucket, o) for o in page if not o["Key"].endswith("/"))
    if is_empty and path != bucket:
        for page in object_store.iter_object_pages(fs, path, is_object=True):
            yield from (_make_object_row(fs, bucket, o) for o in page)


def _make_object_row(
    fs: fsspec.AbstractFileSystem, bucket: str, info: object_store.ObjectInfo
) -> Source | str:
    name = info["Key"].rpartition("/")[2]
    if kind := classify_left_out(name):
        return kind
    problem = _VERSION_ID if "?versionId=" in info["Key"] else None
    uri = storage.to_uri(fs, f"{bucket}/{info['Key']}")
    return uri, info["Size"], info["ETag"].strip('"'), problem, has_image_name(name)


def _iter_other(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Source | str]:
    try:
        for _, _, files in fs.walk(path, detail=True, on_error="raise"):
            for info in files.values():
                name = storage.name(info["name"])
                etag = info.get("ETag") or info.get("etag") or tokenize(info)
                uri = storage.to_uri(fs, info["name"])
                row = (uri, info["size"] or 0, etag, None, has_image_name(name))
                yield classify_left_out(name) or row
    except FileNotFoundError:
        return
