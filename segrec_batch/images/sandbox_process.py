"""The parent's side of one child process of a sandbox: start, requests, end.

Responses of the child are checked like any untrusted data: an image may have taken it over.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import DecoderError, ImageError
from segrec_batch.images.confinement import Confinement
from segrec_batch.images.decode import MAX_PIXELS
from segrec_batch.images.sandbox_child import LENGTH

PATIENCE = 10.0  # seconds for a child to end after it has closed its socket
START_SECONDS = 120.0  # for a child's imports from a slow disk
_LONGEST = 2**16  # bytes of JSON in an answer
_LONGEST_REASON = 500  # characters
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TIFFFILE_NUM_THREADS": "1",
    # glibc: keep the memory of small images, free that of large ones (Pillow's blocks of 16 MiB)
    "MALLOC_MMAP_THRESHOLD_": str(2**22),
    "MALLOC_TRIM_THRESHOLD_": str(2**25),
}
# Variables that Python may need to start; the child gets no others of the parent's environment
_KEPT = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")

Answer = tuple[dict[str, Any], NDArray[np.integer[Any]]]
"""JSON and pixels of a response."""


class NonsenseError(Exception):
    """The response of a child is one that its functions cannot give."""


class KilledError(DecoderError):
    """A child was killed before it was ready."""


class ChildProcess:
    """The parent's side of one child."""

    def __init__(self, function: str, memory: int) -> None:
        self.function = function
        self.confinement = Confinement(None, False)
        self._is_ready = False
        self._patience = 0.0
        self._socket, other = socket.socketpair()
        arguments = [str(other.fileno()), function, str(memory)]
        with other:
            try:
                self.process = subprocess.Popen(  # noqa: S603
                    [
                        sys.executable,
                        "-P",
                        "-s",
                        "-m",
                        "segrec_batch.images.sandbox_child",
                        *arguments,
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[other.fileno()],
                    cwd="/",
                    env=_environment(),
                )
            except OSError as error:
                self._socket.close()
                raise DecoderError(f"the decoder process cannot be started: {error}") from error
            except BaseException:
                self._socket.close()
                raise

    def wait(self) -> None:
        """Wait until the child is ready; if it fails, end it and raise DecoderError."""
        if self._is_ready:
            return
        self._wait_at_most(START_SECONDS)
        try:
            answer = self._message(time.monotonic() + START_SECONDS)
            self.confinement = Confinement(**{**answer, "gaps": tuple(answer["gaps"])})
        except (EOFError, ConnectionError, NonsenseError) as error:
            status = self.end(PATIENCE)
            message = f"the decoder process does not start ({self.function}): {how(status)}"
            raise (KilledError if status < 0 else DecoderError)(message) from error
        except TimeoutError as error:
            self.end()
            message = f"the decoder process does not start within {START_SECONDS:g} s"
            raise DecoderError(message) from error
        except BaseException:
            self.end()
            raise
        self._is_ready = True

    def ask(self, request: dict[str, Any], data: bytes, seconds: float) -> Answer:
        """Send one request and return the response.

        Raise EOFError or ConnectionError if the child dies, TimeoutError if it does not respond
        within `seconds`, and NonsenseError for an impossible response.
        """
        deadline = time.monotonic() + seconds
        body = json.dumps(request).encode()
        self._wait_at_most(seconds)
        try:
            self._socket.sendall(LENGTH.pack(len(body)) + body)
            self._socket.sendall(data)
        except BlockingIOError:
            raise TimeoutError from None
        answer = self._message(deadline)
        if "reason" in answer:
            raise ImageError("decode", str(answer["reason"])[:_LONGEST_REASON])
        dtype = str(answer.get("dtype"))
        require(dtype in _DTYPES)
        pixels = np.empty(_shape(answer.get("shape")), dtype)
        self._receive(pixels.data.cast("B"), deadline)
        return answer, pixels

    def _message(self, deadline: float) -> dict[str, Any]:
        head = bytearray(LENGTH.size)
        self._receive(memoryview(head), deadline)
        (length,) = LENGTH.unpack(head)
        if length > _LONGEST:
            raise NonsenseError
        body = bytearray(length)
        self._receive(memoryview(body), deadline)
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise NonsenseError from error
        if not isinstance(message, dict):
            raise NonsenseError
        return message

    def _receive(self, buffer: memoryview, deadline: float) -> None:
        while buffer:
            if time.monotonic() > deadline:
                raise TimeoutError
            try:
                count = self._socket.recv_into(buffer, 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise TimeoutError from None
            if not count:
                raise EOFError
            buffer = buffer[count:]

    def _wait_at_most(self, seconds: float) -> None:
        """Set a time limit of each socket wait in the kernel; Python's cost an extra call each."""
        if seconds != self._patience:
            self._patience = seconds
            value = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, value)

    def end(self, patience: float = 0) -> int:
        """End the child and return its exit status, as Popen does; kill it after `patience` s."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.kill()
        self._socket.close()
        return self.process.wait()


def _shape(shape: object) -> list[int]:
    """Return the shape of the pixels of a response; raise NonsenseError if it is none."""
    sides = shape if isinstance(shape, list) else []
    require(2 <= len(sides) <= 3 and all(type(side) is int and side > 0 for side in sides))
    require(prod(sides) <= 3 * MAX_PIXELS)
    return sides


def how(status: int) -> str:
    """Return text that describes the end of a process: a signal or an exit code."""
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def require(condition: bool) -> None:
    """Raise NonsenseError if a condition on a response does not hold."""
    if not condition:
        raise NonsenseError


def _environment() -> dict[str, str]:
    """Return the environment of a child: the locations of Python and its modules only."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    folders = [_absolute(entry) for entry in sys.path]  # Ray extends sys.path
    return {**kept, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def _absolute(entry: str) -> str:
    try:
        return str(Path.cwd() / entry)
    except FileNotFoundError:  # the current folder was deleted
        return entry if Path(entry).is_absolute() else ""
