"""Access files by URI, on local disk or in an object store; the project reads and writes here only.

Credentials and endpoints come from the standard `AWS_*` environment, never from arguments, and
never appear in a message.

There are two kinds of failure. An error of one file (it is missing, this user may not read
it) is an OSError: the caller decides. An error of the store (no answer, throttling, unknown
credentials) is a StorageError, after retries of about 15 seconds; it says nothing about the file.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from segrec_batch.common.encoding import has_credentials, redact
from segrec_batch.common.errors import InputError
from segrec_batch.sources import local, object_store
from segrec_batch.sources.object_store import Content as Content
from segrec_batch.sources.object_store import is_s3
from segrec_batch.sources.store_errors import store_errors

SCHEMES = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "memory")
"""Schemes of images and indexes; other schemes in an index or session are never opened."""

_DRAFT = re.compile(r"\.segrec-[0-9a-f]{32}\.tmp")


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI; `file` for paths.

    >>> [scheme_of(uri) for uri in ("/a", "s3a://b/c", "zip::http://a", "a/b://c")]
    ['file', 's3', 'zip::http', 'file']
    """
    protocol, separator, _ = uri.partition("://")
    if not separator or "/" in protocol or protocol in LocalFileSystem.protocol:
        return "file"
    return "s3" if protocol == "s3a" else protocol


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI and the path in it (absolute for local files).

    Raises InputError for a URI that holds credentials, or whose scheme is unknown.
    """
    scheme = scheme_of(uri)
    # not url_to_fs() for local files and S3: it takes :: in a name for a chain of file systems
    if scheme == "file":
        fs = fsspec.filesystem("file")
        return fs, os.path.abspath(fs._strip_protocol(uri))  # noqa: PTH100 - resolve() would follow links
    if any(map(has_credentials, [uri] if scheme == "s3" else uri.split("::"))):
        raise InputError(
            f"{redact(uri)}: credentials do not belong in a URI; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if scheme == "s3":
        fs = object_store.open_s3()
        return fs, fs._strip_protocol(uri)
    try:
        return fsspec.url_to_fs(uri)  # type: ignore[no-any-return]
    except (ValueError, TypeError, ImportError) as error:  # the protocol is not known
        raise InputError(f"{uri}: {error}") from error


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Return whether `fs` is the local disk."""
    return isinstance(fs, LocalFileSystem)


def is_remote(uri: str) -> bool:
    """Return whether `uri` is anywhere but on the local disk."""
    return not is_local(filesystem(uri)[0])


def to_uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """Return the URI of a path: the absolute path for local files, else `protocol://path`."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def absolute(uri: str) -> str:
    """Return `uri` in the form in which the project stores and compares URIs.

    Raises InputError for an empty one, such as that of a shell variable that is not set.
    """
    if not uri:
        raise InputError("a path or URI is empty")
    fs, path = filesystem(uri)
    return to_uri(fs, path).rstrip("/")


def join(uri: str, *parts: str) -> str:
    """Return `uri` with path components appended."""
    return "/".join([uri.rstrip("/"), *parts])


def name(uri: str) -> str:
    """Return the last component of `uri`."""
    return PurePosixPath(uri).name


def stem(uri: str) -> str:
    """Return the last component of `uri` without its extension."""
    return PurePosixPath(uri).stem


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """Return the content of one file.

    Raises OSError if the file cannot be read or has more than `limit` bytes, and StorageError.
    """
    if limit is None:
        return _raise_if_error(read_many([uri])[0])
    return _raise_if_error(read_bounded([uri], limit)[0])


def read_bounded(uris: Sequence[str], limit: int) -> list[Content]:
    """Read files as `read_many` does; a file of more than `limit` bytes gives an OSError."""
    contents = read_many(uris, [limit + 1] * len(uris))
    return [
        OSError(errno.EFBIG, f"more than {limit:,} bytes")
        if isinstance(content, bytes) and len(content) > limit
        else content
        for content in contents
    ]


def read_range(uri: str, start: int, stop: int) -> bytes:
    """Return a range of bytes of one remote file, in one request. Raises as `read_bytes` does."""
    return _raise_if_error(object_store.fetch(filesystem(uri)[0], [uri], [start], [stop])[0])


@contextmanager
def opened(uri: str) -> Iterator[Any]:
    """Open a regular file for random access. Raises what its file system raises."""
    fs, path = filesystem(uri)
    if is_local(fs):
        with open(path, "rb", opener=_open_regular) as file:
            yield file
        return
    with fs.open(path) as file:
        yield file


def read_many(uris: Sequence[str], sizes: Sequence[int] | None = None) -> list[Content]:
    """Return the contents of files of one file system; remote files are read concurrently.

    In place of the content of an unreadable file there is its error: on local disk any OSError, in
    a store only a missing file or a refused permission. A file that is not regular, such as a pipe
    or a device, has an OSError at once.

    Args:
        uris: The files.
        sizes: Maximum number of bytes to read of each; None reads the whole files.

    Raises:
        StorageError: Any other failure.
    """
    if not uris:
        return []
    fs, _ = filesystem(uris[0])
    if not is_local(fs):
        return object_store.fetch(fs, uris, [0] * len(uris) if sizes else None, sizes)
    return [
        _read_local(uri, size) for uri, size in zip(uris, sizes or [-1] * len(uris), strict=True)
    ]


def _raise_if_error(content: Content) -> bytes:
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
    """Open a regular file, or a link to one, without waiting for the writer of a pipe."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "not a regular file", path)


def write_bytes(uri: str, data: bytes) -> None:
    """Write one file atomically. Raises StorageError."""
    fs, path = filesystem(uri)
    with store_errors(uri, allowed=()):
        if is_local(fs):
            local.write_bytes(Path(path), data)
        else:
            options = {"chunksize": object_store.PART_BYTES} if is_s3(fs) else {}
            fs.pipe_file(path, data, **options)


def is_draft(uri: str) -> bool:
    """Return whether a file is a temporary one of `write_bytes`, by its name."""
    return bool(_DRAFT.fullmatch(name(uri)))


def delete(uris: Sequence[str]) -> None:
    """Delete files of one file system; missing ones are ignored. Raises StorageError."""
    if not uris:
        return
    fs, _ = filesystem(uris[0])
    paths = [filesystem(uri)[1] for uri in uris]
    if is_s3(fs):
        object_store.delete_objects(fs, paths)
        return
    for uri, path in zip(uris, paths, strict=True):
        with suppress(FileNotFoundError), store_errors(uri):
            fs.rm_file(path)


def find_files(uri: str, suffix: str = "", links: bool = False) -> Iterator[tuple[str, int, float]]:
    """Yield URI, size in bytes and time of last change (seconds since 1970) of files in a folder.

    Yields nothing if there is no such folder. Raises StorageError.

    Args:
        uri: The folder; its subfolders are searched, too.
        suffix: End of the file names.
        links: List symbolic links, too; a link to a file has the size and time of that file. Links
            to folders are never followed. Without `links` only regular files are listed, so that
            deleting them deletes nothing outside the folder.
    """
    fs, path = filesystem(uri)
    with suppress(FileNotFoundError), store_errors(uri):
        if is_local(fs):
            files = local.find_files(path, links)
        elif is_s3(fs):
            bucket = fs.split_path(path)[0]
            objects = chain.from_iterable(object_store.iter_object_pages(fs, path))
            files = (
                (f"{bucket}/{o['Key']}", o["Size"], o["LastModified"].timestamp()) for o in objects
            )
        else:
            infos = fs.find(path, detail=True)
            files = ((p, i["size"], fs.modified(p).timestamp()) for p, i in infos.items())
        for file, size, modified in files:
            if file.endswith(suffix):
                yield to_uri(fs, file), size, modified


def is_link(uri: str) -> bool:
    """Return whether a URI is that of a symbolic link on local disk."""
    fs, path = filesystem(uri)
    return is_local(fs) and os.path.islink(path)  # noqa: PTH114


def refuse_foreign_files(uri: str, is_ours: Callable[[str], bool], kind: str, advice: str) -> None:
    """Raise InputError if a folder holds a file that the caller does not write.

    Args:
        uri: The folder; it need not exist.
        is_ours: Return whether a path below the folder is one that the caller writes.
        kind: Description of the folder if it is not empty, such as "an index".
        advice: Text for the user: how to proceed.
    """
    folder = absolute(uri)
    for file, *_ in find_files(folder, links=True):
        path = file.removeprefix(folder).lstrip("/")
        if not path or (path.endswith("/") and is_remote(folder)):
            continue  # the marker of a folder, as web consoles of object stores create it
        if not is_ours(path) and not is_draft(path):
            raise InputError(f"{uri} is neither empty nor {kind}: it holds {path}; {advice}")
