"""Access object stores: set the options of S3; read concurrently, list and delete objects."""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import fsspec

from segrec_batch.common.errors import InputError, StorageError
from segrec_batch.sources.store_errors import describe, describe_message, get_s3_code, store_errors

Content = bytes | OSError
ObjectInfo = dict[str, Any]
"""An object as `list_objects_v2` gives it: Key, Size, ETag, LastModified."""

PART_BYTES = 16 * 2**20
"""Objects of two parts and more are uploaded in parts of this size."""

_CONNECT_SECONDS, _RESPONSE_SECONDS = 5, 15
_CONNECTIONS = 32
_ATTEMPTS = (
    5  # number of attempts per request, with waits of up to 1, 2, 4 and 8 seconds between them
)
_S3FS_TRIES = 2  # each try makes these attempts; s3fs nests two such loops
_READ_TRIES = 3  # number of reads of an object whose content was cut off
_MAX_KEYS = 1000  # keys in one request: the limit of S3

# error codes that concern one object, not the store or the whole bucket
_OBJECT_CODES = {"", "AccessDenied", "403", "InvalidObjectState", "NoSuchKey", "404"}


def open_s3() -> fsspec.AbstractFileSystem:
    """Return the file system of S3; credentials and endpoint come from the `AWS_*` environment."""
    fs = fsspec.filesystem(
        "s3",
        # a cached listing misses new objects; a read-ahead cache multiplies bytes of small reads
        use_listings_cache=False,
        default_cache_type="none",
        config_kwargs={
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _RESPONSE_SECONDS,
            # the other modes share a budget of retries between all requests: a short outage uses
            # it up, and then the first 503 is final
            "retries": {"mode": "legacy", "total_max_attempts": _ATTEMPTS},
            "max_pool_connections": _CONNECTIONS,
        },
    )
    fs.retries = _S3FS_TRIES
    return fs


def get_delta_options() -> dict[str, str]:
    """Return the storage options of delta-rs for S3, in addition to the `AWS_*` environment.

    Raises InputError for an endpoint that delta-rs cannot use.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "https://")
    if not endpoint.startswith(("http://", "https://")):  # delta-rs panics
        raise InputError(f"AWS_ENDPOINT_URL is {endpoint!r}; it begins with http:// or https://")
    options = {
        # with it delta-rs reads profiles and roles besides the environment and obeys
        # AWS_EC2_METADATA_DISABLED, as s3fs does, also if an endpoint is set
        "AWS_FORCE_CREDENTIAL_LOAD": "true",
        "connect_timeout": f"{_CONNECT_SECONDS}s",
        "retry_timeout": f"{_RESPONSE_SECONDS}s",
    }
    return options | ({"AWS_ALLOW_HTTP": "true"} if endpoint.startswith("http://") else {})


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    """Return whether `fs` is S3, by s3fs."""
    return "s3" in fs.protocol


def fetch(
    fs: fsspec.AbstractFileSystem,
    uris: Sequence[str],
    starts: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
) -> list[Content]:
    """Return bytes of remote files, read concurrently; a read that is cut off is repeated.

    Args:
        fs: The file system of all of them.
        uris: The files.
        starts: First byte of each; None reads the whole files.
        ends: Byte after the last of each.

    Raises:
        StorageError: The error concerns the store, not one file.
    """
    ranges = zip(starts or (), ends or (), strict=True)
    contents: dict[int, Content] = {i: b"" for i, (start, end) in enumerate(ranges) if start == end}
    for is_last in (False,) * (_READ_TRIES - 1) + (True,):
        missing = [i for i in range(len(uris)) if i not in contents]
        paths = [fs._strip_protocol(uris[i]) for i in missing]
        bounds = [[b[i] for i in missing] if b else None for b in (starts, ends)]
        for i, content in zip(missing, _read_ranges(fs, paths, *bounds), strict=True):
            if is_last or not _is_cut_off(content):
                contents[i] = _to_content(uris[i], content)
    return [contents[i] for i in range(len(uris))]


def _read_ranges(
    fs: fsspec.AbstractFileSystem,
    paths: list[str],
    starts: list[int] | None,
    ends: list[int] | None,
) -> list[bytes | Exception]:
    if not paths:
        return []
    # s3fs: one request per object; else it asks for sizes first and does not repeat cut-off parts
    options = {"max_concurrency": 1} if is_s3(fs) else {}
    # not cat(), which takes [ and * in a name for a pattern
    contents: list[bytes | Exception] = fs.cat_ranges(
        paths, starts, ends, on_error="return", **options
    )
    return contents


def _is_cut_off(content: bytes | Exception) -> bool:
    if isinstance(content, bytes):
        return False
    import aiohttp  # the clients of S3 are imported only where a remote read fails
    from botocore.exceptions import (  # type: ignore[import-untyped]
        IncompleteReadError,
        ResponseStreamingError,
    )

    cut_off = (aiohttp.ClientError, IncompleteReadError, ResponseStreamingError)
    return isinstance(content, cut_off)


def _to_content(uri: str, content: bytes | Exception) -> Content:
    """Return the content or the error of one file. Raises StorageError for errors of the store."""
    if isinstance(content, bytes):
        return content
    code = get_s3_code(content)
    if code in ("InvalidRange", "416"):  # the object has become empty
        return b""
    if isinstance(content, FileNotFoundError | PermissionError) and code in _OBJECT_CODES:
        return type(content)(describe_message(content))
    raise StorageError(f"{uri}: {describe(content)}") from content


def delete_objects(fs: fsspec.AbstractFileSystem, paths: Sequence[str]) -> None:
    """Delete objects of S3; missing ones are ignored. Raises StorageError."""
    # not fs.rm(), which takes [ and * for a pattern, asks for each object first and hides errors
    keys = sorted(fs.split_path(path)[:2] for path in paths)
    for bucket, group in groupby(keys, lambda key: key[0]):
        objects = [{"Key": key} for _, key in group]
        for i in range(0, len(objects), _MAX_KEYS):
            with store_errors(f"s3://{bucket}"):
                batch = {"Objects": objects[i : i + _MAX_KEYS], "Quiet": True}
                failed = fs.call_s3("delete_objects", Bucket=bucket, Delete=batch).get("Errors")
            for error in failed or ():
                uri = f"s3://{bucket}/{error['Key']}"
                raise StorageError(f"{uri}: not deleted: {error.get('Code')}")


def iter_object_pages(
    fs: fsspec.AbstractFileSystem, path: str, is_object: bool = False
) -> Iterator[list[ObjectInfo]]:
    """Yield the objects below a folder of an S3 bucket, at most 1,000 at a time, one request each.

    With `is_object`, `path` is the name of one object. Raises what s3fs raises.
    """
    bucket, key, _ = fs.split_path(path)
    request = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
    if is_object:  # no other key with this prefix sorts before the key itself
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        yield [o for o in page.get("Contents", ()) if o["Key"] == key]
        return
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        yield page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]
