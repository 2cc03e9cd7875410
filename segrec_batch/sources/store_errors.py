"""Convert errors of storage clients, and describe them without credentials."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segrec_batch.common.encoding import redact
from segrec_batch.common.errors import StorageError

_CAUSE_ARROW = re.compile(r"\s*\x1b\[\d+m↳\x1b\[0m ")  # delta-rs writes it for terminals
_XML_FIELD = re.compile(r"<(Code|Message)>(.*?)</\1>", re.DOTALL)  # delta-rs quotes the response


@contextmanager
def store_errors(
    uri: str, allowed: type[OSError] | tuple[()] = FileNotFoundError
) -> Iterator[None]:
    """Raise failures of a store inside the block as StorageError with `uri`.

    These are errors of the clients' libraries and every OSError except `allowed`; a missing bucket
    is always a StorageError.
    """
    try:
        yield
    except Exception as error:
        is_excepted = isinstance(error, allowed) and get_s3_code(error) != "NoSuchBucket"
        if is_excepted or not (isinstance(error, OSError) or _is_from_client(error)):
            raise
        raise StorageError(f"{uri}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return an error in one line, without credentials: its type and its message."""
    return redact(f"{type(error).__name__}: {describe_message(error)}")


def describe_message(error: BaseException) -> str:
    """Return the text of an error in one line; for an error of S3, its code and message."""
    fields = _get_s3_fields(error)
    if fields:
        parts = [fields.get("Code"), fields.get("Message")]
    else:
        parts = [_CAUSE_ARROW.sub(": ", str(error))]
    return " ".join(": ".join(p for p in parts if p).split())


def get_s3_code(error: BaseException) -> str:
    """Return the S3 error code; "" for errors that do not come from S3."""
    return str(_get_s3_fields(error).get("Code", ""))


def _get_s3_fields(error: BaseException) -> dict[str, Any]:
    for e in (error, error.__cause__):  # s3fs raises a translation, with the original as the cause
        if response := getattr(e, "response", None):
            return dict(response.get("Error", {}))
    return dict(_XML_FIELD.findall(str(error))) if "<Error>" in str(error) else {}


def _is_from_client(error: Exception) -> bool:
    libraries = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    is_bad_endpoint = isinstance(error, ValueError) and str(error).startswith("Invalid endpoint")
    return is_bad_endpoint or not libraries.isdisjoint({"aiobotocore", "aiohttp", "botocore"})
