"""Bytes on local disk or in an object store, by URI. All file access goes through here.

Credentials and endpoints come from the standard `AWS_*` environment, never from arguments, and
never get into a message.

Two kinds of failure are kept apart. What is wrong with one file (it is gone, this user may not
read it) is an OSError: the caller decides. What is wrong with the store (it does not answer, it
throttles, it does not know the credentials) is a StorageError, after retries of about 15 seconds:
it says nothing about the file.
"""

import errno
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from segrec_batch.common.encoding import has_credentials, redact
from segrec_batch.common.errors import InputError, StorageError
from segrec_batch.common.faults import code_of, describe, error_text, store_errors

Content = bytes | OSError
Listed = dict[str, Any]  # an object of list_objects_v2: Key, Size, ETag, LastModified

# s3fs: a cached listing misses new objects; a read-ahead cache multiplies the bytes of small reads.
_S3_OPTIONS = {
    "use_listings_cache": False,
    "default_cache_type": "none",
    "config_kwargs": {
        "connect_timeout": 5,  # seconds
        "read_timeout": 15,
        # waits of up to 1, 2, 4, 8 seconds in between; the other modes share a budget of retries
        # between all requests: a short outage uses it up, then the first 503 is final
        "retries": {"mode": "legacy", "total_max_attempts": 5},
        "max_pool_connections": 32,
    },
}
_S3FS_TRIES = 2  # each of them makes the attempts above, and s3fs nests two of these loops
_READ_TRIES = 3  # of an object whose content was cut off
_PART = 16 * 2**20  # bytes; objects of two parts and more are uploaded in parts
_PAGE = 1000  # keys in one request: the limit of S3

_DRAFT = re.compile(r"\.segrec-[0-9a-f]{32}\.tmp")

# error codes that speak of one object, not of the store or of the whole bucket
_OBJECT_CODES = {"", "AccessDenied", "403", "InvalidObjectState", "NoSuchKey", "404"}


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `uri` and the path of `uri` in it (absolute for local files).

    Raises InputError for a URI that holds credentials, or whose scheme is unknown.
    """
    protocol, separator, _ = uri.partition("://")
    # not url_to_fs() for these: it takes :: in a name for a chain of file systems
    if not separator or "/" in protocol or protocol in LocalFileSystem.protocol:
        fs = fsspec.filesystem("file")
        return fs, os.path.abspath(fs._strip_protocol(uri))  # noqa: PTH100 - resolve() would follow links
    parts = [uri] if protocol in ("s3", "s3a") else uri.split("::")  # a chain of file systems
    if any(map(has_credentials, parts)):
        raise InputError(
            f"{redact(uri)}: credentials do not belong in a URI; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if protocol in ("s3", "s3a"):
        fs = fsspec.filesystem("s3", **_S3_OPTIONS)
        fs.retries = _S3FS_TRIES
        return fs, fs._strip_protocol(uri)
    try:
        return fsspec.url_to_fs(uri)  # type: ignore[no-any-return]
    except (ValueError, TypeError, ImportError) as error:  # of a protocol that is not known here
        raise InputError(f"{uri}: {error}") from error


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether `fs` is the local disk."""
    return isinstance(fs, LocalFileSystem)


def is_remote(uri: str) -> bool:
    """Whether `uri` is anywhere but on the local disk."""
    return not is_local(filesystem(uri)[0])


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether `fs` is S3, by s3fs."""
    return "s3" in fs.protocol


def to_uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """The URI of a path: the plain absolute path for local files, `protocol://path` otherwise."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def absolute(uri: str) -> str:
    """`uri` in the one form in which this project stores and compares it.

    Raises InputError for an empty one, as of a shell variable that is not set.
    """
    if not uri:
        raise InputError("a path or URI is empty")
    fs, path = filesystem(uri)
    return to_uri(fs, path).rstrip("/")


def join(uri: str, *parts: str) -> str:
    """`uri` with path components appended."""
    return "/".join([uri.rstrip("/"), *parts])


def name(uri: str) -> str:
    """The last component of `uri`."""
    return PurePosixPath(uri).name


def stem(uri: str) -> str:
    """The last component of `uri` without its extension."""
    return PurePosixPath(uri).stem


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The content of one file. Raises OSError if the file cannot be read or has more than `limit`
    bytes, StorageError if the store fails.
    """
    if limit is None:
        return _or_raise(read_many([uri])[0])
    return _or_raise(read_bounded([uri], limit)[0])


def read_bounded(uris: Sequence[str], limit: int) -> list[Content]:
    """As `read_many`, but a file of more than `limit` bytes gives an OSError: no more are read."""
    contents = read_many(uris, [limit + 1] * len(uris))
    return [
        OSError(errno.EFBIG, f"more than {limit:,} bytes")
        if isinstance(content, bytes) and len(content) > limit
        else content
        for content in contents
    ]


def read_range(uri: str, start: int, stop: int) -> bytes:
    """Some bytes of one file in a remote store, in one request. Raises as `read_bytes` does."""
    return _or_raise(_fetch(filesystem(uri)[0], [uri], [start], [stop])[0])


@contextmanager
def opened(uri: str) -> Iterator[Any]:
    """Open one file, a regular one, to be read here and there. Raises what its file system does."""
    fs, path = filesystem(uri)
    if is_local(fs):
        with open(path, "rb", opener=_open_regular) as file:
            yield file
        return
    with fs.open(path) as file:
        yield file


def read_many(uris: Sequence[str], sizes: Sequence[int] | None = None) -> list[Content]:
    """The contents of files of one file system, concurrently where it is remote.

    At most `sizes` bytes of each are read, all without. A file that cannot be read gives its error:
    on local disk any OSError, in a store that it is not there or is not for this user to read.
    What is no regular file, such as a pipe or a device, is not waited for: it gives an OSError.
    Raises StorageError for everything else.
    """
    if not uris:
        return []
    fs, _ = filesystem(uris[0])
    if not is_local(fs):
        return _fetch(fs, uris, [0] * len(uris) if sizes else None, sizes)
    return [
        _read_local(uri, size) for uri, size in zip(uris, sizes or [-1] * len(uris), strict=True)
    ]


def _or_raise(content: Content) -> bytes:
    if isinstance(content, OSError):
        raise content
    return content


def _read_local(uri: str, size: int) -> Content:
    try:
        with open(filesystem(uri)[1], "rb", opener=_open_regular) as file:
            return file.read(size)
    except OSError as error:
        return error
    except ValueError as error:  # a NUL in the name
        return OSError(errno.EINVAL, str(error))


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file, or a link to one; of a pipe not even the open waits."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "not a regular file", path)


def _fetch(
    fs: fsspec.AbstractFileSystem,
    uris: Sequence[str],
    starts: Sequence[int] | None,
    ends: Sequence[int] | None,
) -> list[Content]:
    """Bytes of remote files; those that were cut off are asked for again."""
    ranges = zip(starts or (), ends or (), strict=True)
    found: dict[int, Content] = {i: b"" for i, (start, end) in enumerate(ranges) if start == end}
    for last in (False,) * (_READ_TRIES - 1) + (True,):
        missing = [i for i in range(len(uris)) if i not in found]
        paths = [fs._strip_protocol(uris[i]) for i in missing]
        bounds = [[b[i] for i in missing] if b else None for b in (starts, ends)]
        for i, content in zip(missing, _cat(fs, paths, *bounds), strict=True):
            if last or not _is_cut_off(content):
                found[i] = _of_one_file(uris[i], content)
    return [found[i] for i in range(len(uris))]


def _is_cut_off(content: bytes | Exception) -> bool:
    if isinstance(content, bytes):
        return False
    import aiohttp  # the clients of S3: on local disk all goes without them
    from botocore.exceptions import (  # type: ignore[import-untyped]
        IncompleteReadError,
        ResponseStreamingError,
    )

    cut_off = (aiohttp.ClientError, IncompleteReadError, ResponseStreamingError)
    return isinstance(content, cut_off)


def _cat(
    fs: fsspec.AbstractFileSystem,
    paths: list[str],
    starts: list[int] | None,
    ends: list[int] | None,
) -> list[bytes | Exception]:
    if not paths:
        return []
    # s3fs: one request per object; else it asks for sizes first and does not repeat cut-off parts
    once = {"max_concurrency": 1} if is_s3(fs) else {}
    # not cat(): that takes [ and * in a name for a pattern
    contents: list[bytes | Exception] = fs.cat_ranges(
        paths, starts, ends, on_error="return", **once
    )
    return contents


def _of_one_file(uri: str, content: bytes | Exception) -> Content:
    """`content` if it is the file or an error of this file only. Raises StorageError for others."""
    if isinstance(content, bytes):
        return content
    code = code_of(content)
    if code in ("InvalidRange", "416"):  # the object has become empty
        return b""
    if isinstance(content, FileNotFoundError | PermissionError) and code in _OBJECT_CODES:
        return type(content)(error_text(content))
    raise StorageError(f"{uri}: {describe(content)}") from content


def write_bytes(uri: str, data: bytes) -> None:
    """Put one file in place, whole or not at all. Raises StorageError."""
    fs, path = filesystem(uri)
    with store_errors(uri, but=()):
        if is_local(fs):
            _write_local(Path(path), data)
        else:
            fs.pipe_file(path, data, **({"chunksize": _PART} if is_s3(fs) else {}))


def _write_local(path: Path, data: bytes) -> None:
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe: nothing to put in its place
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".segrec-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_draft(uri: str) -> bool:
    """Whether a file is one that `write_bytes` was writing, or still is, by its name."""
    return bool(_DRAFT.fullmatch(name(uri)))


def delete(uris: Sequence[str]) -> None:
    """Remove files of one file system; those that are not there are fine. Raises StorageError."""
    if not uris:
        return
    fs, _ = filesystem(uris[0])
    paths = [filesystem(uri)[1] for uri in uris]
    if is_s3(fs):
        _delete_objects(fs, paths)
        return
    for uri, path in zip(uris, paths, strict=True):
        with suppress(FileNotFoundError), store_errors(uri):
            fs.rm_file(path)


def _delete_objects(fs: fsspec.AbstractFileSystem, paths: Sequence[str]) -> None:
    # not fs.rm(): that takes [ and * for a pattern, asks for each object first, and hides errors
    keys = sorted(fs.split_path(path)[:2] for path in paths)
    for bucket, group in groupby(keys, lambda key: key[0]):
        objects = [{"Key": key} for _, key in group]
        for i in range(0, len(objects), _PAGE):
            with store_errors(to_uri(fs, bucket)):
                batch = {"Objects": objects[i : i + _PAGE], "Quiet": True}
                refused = fs.call_s3("delete_objects", Bucket=bucket, Delete=batch).get("Errors")
            for error in refused or ():
                uri = to_uri(fs, f"{bucket}/{error['Key']}")
                raise StorageError(f"{uri}: not deleted: {error.get('Code')}")


def find_files(uri: str, suffix: str = "", links: bool = False) -> Iterator[tuple[str, int, float]]:
    """Yield URI, size in bytes and time of last change (seconds since 1970) of the files below a
    folder.

    Args:
        suffix: what their names end in.
        links: whether symbolic links are listed, too: a link to a file with the size and time of
            that file. Links to folders are never followed. Without `links` only regular files are
            listed, so that whoever deletes what is listed deletes nothing that lies elsewhere.

    Yields nothing if there is no such folder. Raises StorageError.
    """
    fs, path = filesystem(uri)
    with suppress(FileNotFoundError), store_errors(uri):
        if is_local(fs):
            found = _local_files(path, links)
        elif is_s3(fs):
            found = _objects(fs, path)
        else:
            infos = fs.find(path, detail=True)
            found = ((p, i["size"], fs.modified(p).timestamp()) for p, i in infos.items())
        for file, size, modified in found:
            if file.endswith(suffix):
                yield to_uri(fs, file), size, modified


def _local_files(path: str, links: bool) -> Iterator[tuple[str, int, float]]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, folders, names in os.walk(path, onerror=refuse):
        linked = [n for n in folders if os.path.islink(os.path.join(folder, n))] if links else []  # noqa: PTH114, PTH118
        for file in (os.path.join(folder, name) for name in (*names, *linked)):  # noqa: PTH118
            with suppress(FileNotFoundError):
                state = _state(file) if links else os.lstat(file)
                if links or stat.S_ISREG(state.st_mode):
                    yield file, state.st_size, state.st_mtime


def _state(path: str) -> os.stat_result:
    """Of what a link leads to; of the link itself if it leads nowhere."""
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError:
        return os.lstat(path)


def is_link(uri: str) -> bool:
    """Whether a URI is that of a symbolic link, which only the local disk has."""
    fs, path = filesystem(uri)
    return is_local(fs) and os.path.islink(path)  # noqa: PTH114


def refuse_strangers(uri: str, is_ours: Callable[[str], bool], kind: str, way_out: str) -> None:
    """Raise InputError if a folder holds any file that the caller would not have written itself.

    Args:
        uri: the folder; it need not exist.
        is_ours: whether a path below the folder is one that the caller writes.
        kind: what the folder should be if it is not empty, such as "an index".
        way_out: what the user can do.
    """
    folder = absolute(uri)
    for found, *_ in find_files(folder, links=True):
        path = found.removeprefix(folder).lstrip("/")
        if not path or (path.endswith("/") and is_remote(folder)):
            continue  # the mark of a folder, as consoles of object stores make it
        if not is_ours(path) and not is_draft(path):
            raise InputError(f"{uri} is neither empty nor {kind}: it holds {path}; {way_out}")


def _objects(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[str, int, float]]:
    bucket = fs.split_path(path)[0]
    for page in object_pages(fs, path):
        for o in page:
            yield f"{bucket}/{o['Key']}", o["Size"], o["LastModified"].timestamp()


def object_pages(
    fs: fsspec.AbstractFileSystem, path: str, whole: bool = False
) -> Iterator[list[Listed]]:
    """The objects below `path`, a folder of an S3 bucket, as S3 lists them: 1,000 in a request.

    With `whole`, `path` is the name of one object. Raises what s3fs raises.
    """
    bucket, key, _ = fs.split_path(path)
    request = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
    if whole:  # no other key with this prefix sorts before the key itself
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        yield [o for o in page.get("Contents", ()) if o["Key"] == key]
        return
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        yield page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]
