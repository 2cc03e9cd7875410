"""Errors of storage clients: their translation, and texts of them without credentials."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segrec_batch.common.encoding import redact
from segrec_batch.common.errors import StorageError

_ARROW = re.compile(r"\s*\x1b\[\d+m↳\x1b\[0m ")  # delta-rs writes it for terminals
_XML_FIELD = re.compile(r"<(Code|Message)>(.*?)</\1>", re.DOTALL)  # delta-rs quotes the response


@contextmanager
def store_errors(uri: str, but: type[OSError] | tuple[()] = FileNotFoundError) -> Iterator[None]:
    """Translate failures of a store inside the block into StorageError that names `uri`.

    It translates the errors of the clients' libraries and every OSError except `but`; a missing
    bucket is always translated.
    """
    try:
        yield
    except Exception as error:
        is_excepted = isinstance(error, but) and code_of(error) != "NoSuchBucket"
        if is_excepted or not (isinstance(error, OSError) or _is_from_client(error)):
            raise
        raise StorageError(f"{uri}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return an error in one line, without credentials: its type and its message."""
    return redact(f"{type(error).__name__}: {message_of(error)}")


def message_of(error: BaseException) -> str:
    """Return the text of an error in one line; for an error of S3, its code and message."""
    fields = _s3_fields(error)
    if fields:
        parts = [fields.get("Code"), fields.get("Message")]
    else:
        parts = [_ARROW.sub(": ", str(error))]
    return " ".join(": ".join(p for p in parts if p).split())


def code_of(error: BaseException) -> str:
    """Return the S3 error code; "" for errors that do not come from S3."""
    return str(_s3_fields(error).get("Code", ""))


def _s3_fields(error: BaseException) -> dict[str, Any]:
    for e in (error, error.__cause__):  # s3fs raises a translation, with the original as the cause
        if response := getattr(e, "response", None):
            return dict(response.get("Error", {}))
    return dict(_XML_FIELD.findall(str(error))) if "<Error>" in str(error) else {}


def _is_from_client(error: Exception) -> bool:
    libraries = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    is_bad_endpoint = isinstance(error, ValueError) and str(error).startswith("Invalid endpoint")
    return is_bad_endpoint or not libraries.isdisjoint({"aiobotocore", "aiohttp", "botocore"})
