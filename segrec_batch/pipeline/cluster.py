"""The Ray cluster, joined for the time of a block, and its errors as our own."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from segrec_batch.errors import ClusterError, SegrecError
from segrec_batch.host import usable_cores

_ADDED = "\nFailed to apply UDF"  # by Ray Data, to the text of an error: how it retries
_ANSWER = 10.0  # seconds for a cluster to take a connection


@contextmanager
def joined() -> Iterator[None]:
    """The Ray cluster that `RAY_ADDRESS` names, else one of its own, for the time of a run.

    Left to itself, Ray would join one that another program has started on this machine, and go
    down with it. A cluster that this process has joined already is used, and left as it is.
    Raises ClusterError if it cannot be joined, or runs another version of Ray.
    """
    if ray.is_initialized():
        yield
        return
    _join(os.environ.get("RAY_ADDRESS") or "local")
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
        ray.init(
            address=address,
            # Ray itself counts cores that a container's quota or CPU affinity takes away
            num_cpus=usable_cores() if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
            include_dashboard=False,
        )
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if address == "local":
            raise ClusterError(
                f"Ray cannot be started on this machine: {error}; `segrec doctor` says what is "
                "missing here"
            ) from error
        raise ClusterError(
            f"the Ray cluster of RAY_ADDRESS={address} cannot be joined: {error}; give HOST:PORT "
            "of its head (and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, if it wants one), or unset "
            "RAY_ADDRESS to run on this machine alone"
        ) from error


@contextmanager
def ray_errors() -> Iterator[None]:
    """Errors of tasks and stages as they were raised; those of Ray itself as ClusterError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            # Ray makes a class of its own that is both, with a stack trace for its text
            if isinstance(cause, SegrecError) and not isinstance(cause, ray.exceptions.RayError):
                raise type(cause)(str(cause).partition(_ADDED)[0]) from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise ClusterError(f"Ray ended the run: {error}") from error
