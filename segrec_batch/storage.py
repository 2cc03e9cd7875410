"""Bytes on local disk or in an object store, by URI. All file access goes through here.

Credentials and endpoints come from the standard `AWS_*` environment, never from arguments.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from segrec_batch.errors import InputError

# s3fs: a cached listing misses new objects; a read-ahead cache multiplies the bytes of small reads.
_S3_OPTIONS = {"use_listings_cache": False, "default_cache_type": "none"}


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `uri` and the path of `uri` in it (absolute for local files)."""
    options = _S3_OPTIONS if uri.startswith("s3://") else {}
    try:
        fs, path = fsspec.url_to_fs(uri, **options)
    except ValueError as error:  # unknown protocol
        raise InputError(f"{uri}: {error}") from error
    if isinstance(fs, LocalFileSystem):
        path = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
    return fs, path


def to_uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """The URI of a path: the plain absolute path for local files, `protocol://path` otherwise."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def absolute(uri: str) -> str:
    """`uri` in the one form in which this project stores and compares it."""
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


def read_bytes(uri: str) -> bytes:
    """The content of one file. Raises OSError."""
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


def read_many(uris: Sequence[str]) -> list[bytes | Exception]:
    """The contents of files of one file system, concurrently where it is remote; a file that
    cannot be read gives its error.
    """
    if not uris:
        return []
    fs, _ = filesystem(uris[0])
    paths = [fs._strip_protocol(uri) for uri in uris]
    # not cat(): that takes [ and * in a name for a pattern
    contents: list[bytes | Exception] = fs.cat_ranges(paths, None, None, on_error="return")
    return contents


def write_bytes(uri: str, data: bytes) -> None:
    """Put one file in place, whole or not at all."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with fs.transaction:  # local: a temporary file, then a rename; object stores are atomic per PUT
        fs.pipe_file(path, data)
