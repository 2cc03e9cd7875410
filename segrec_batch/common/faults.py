"""Errors of the clients of stores, as StorageError and as text without credentials."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segrec_batch.common.encoding import redact
from segrec_batch.common.errors import StorageError


@contextmanager
def store_errors(uri: str, but: type[OSError] | tuple[()] = FileNotFoundError) -> Iterator[None]:
    """Raise failures of a store inside the block as StorageError that names `uri`.

    Failures are all OSErrors except `but` (a missing bucket is never excepted), and the errors of
    the clients' libraries.
    """
    try:
        yield
    except Exception as error:
        excepted = isinstance(error, but) and code_of(error) != "NoSuchBucket"
        if excepted or not (isinstance(error, OSError) or _is_clients(error)):
            raise
        raise StorageError(f"{uri}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return an error in one line, without credentials: its type and the text of the store."""
    return redact(f"{type(error).__name__}: {error_text(error)}")


def error_text(error: BaseException) -> str:
    """Return the text of an error in one line; of an error from S3 its code and message."""
    sent = _sent(error)
    parts = [sent.get("Code"), sent.get("Message")] if sent else [_ARROW.sub(": ", str(error))]
    return " ".join(": ".join(p for p in parts if p).split())


def code_of(error: BaseException) -> str:
    """Return the code of an error from S3, "" for another error."""
    return str(_sent(error).get("Code", ""))


_ARROW = re.compile(r"\s*\x1b\[\d+m↳\x1b\[0m ")  # delta-rs, for a person at a terminal
_SENT = re.compile(r"<(Code|Message)>(.*?)</\1>", re.DOTALL)  # it quotes the answer


def _sent(error: BaseException) -> dict[str, Any]:
    for e in (error, error.__cause__):  # s3fs translates, with the original as the cause
        if response := getattr(e, "response", None):
            return dict(response.get("Error", {}))
    return dict(_SENT.findall(str(error))) if "<Error>" in str(error) else {}


def _is_clients(error: Exception) -> bool:
    libraries = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    refused = isinstance(error, ValueError) and str(error).startswith("Invalid endpoint")
    return refused or not libraries.isdisjoint({"aiobotocore", "aiohttp", "botocore"})
