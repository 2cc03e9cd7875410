"""Decoding in a child process that may die: decoders crash, hang or eat memory on some files.

Ray retries a task whose worker died, so one such file would never let a run end. The child does
nothing but decode; the kernel bounds its time and memory, also when its parent is gone, and it ends
when the socket to its parent closes. This guards against accidents, not against intruders: the
child may do all that its user may.

On the socket: a line of JSON, then raw bytes. Child → parent: an empty line when it is ready; then
for each picture `{size, shapes}` + file → `{shape, width, height, format}` + pixels, or
`{stage, reason}`.
"""

import atexit
import errno
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from segrec_batch.decode import Picture, Shape
from segrec_batch.errors import PictureError

PICTURE_SECONDS = 60.0  # of wall time
PICTURE_MEMORY = 2**32  # bytes of address space; a picture of MAX_PIXELS needs 3.5 GiB at worst
STARTS = 3  # of a child that something kills before it is ready
PATIENCE = 10.0  # seconds, for a child that has hung up to be gone
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    # glibc: keep small pictures' pages, give back large ones', which Pillow has in blocks of 16 MiB
    "MALLOC_MMAP_THRESHOLD_": str(2**22),
    "MALLOC_TRIM_THRESHOLD_": str(2**25),
}


class Sandbox:
    """Decodes pictures in a child process: started on first use, and anew after each death.

    A picture may take `seconds`, and `memory` bytes beyond what the child has at its start.
    `function` is what the child calls, "module:name"; it must behave like `decode.decode`.
    """

    def __init__(
        self,
        *,
        seconds: float = PICTURE_SECONDS,
        memory: int = PICTURE_MEMORY,
        function: str = "segrec_batch.decode:decode",
    ) -> None:
        self.seconds = seconds
        self.memory = memory
        self.function = function
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.process.pid if self._child else None

    def decode(self, data: bytes, shapes: Sequence[Shape]) -> Picture:
        """As `decode.decode`; PictureError (stage `decode`) also when the child does not survive.

        It is tried in two children: one may have died of something else than this picture.
        RuntimeError when a child does not even start.
        """
        with self._lock:
            for _ in range(2):
                child = self._child = self._child or self._start()
                try:
                    return child.decode(data, shapes)
                except PictureError:
                    raise
                except (EOFError, ConnectionError):
                    self._child, status = None, child.end(PATIENCE)
                except BaseException:  # its answer may still come, and is not the next picture's
                    self._child = None
                    child.end()
                    raise
        raise PictureError("decode", self._cause(status))

    def _start(self) -> "_Child":
        for _ in range(STARTS - 1):
            with suppress(_KilledError):
                return _Child(self)
        return _Child(self)

    def _cause(self, status: int) -> str:
        if status == -signal.SIGALRM:
            return f"took longer than {self.seconds:g} s"
        if status == errno.ENOMEM:
            return f"needs more than {self.memory / 2**30:g} GiB of memory"
        return f"decoder crashed ({_how(status)})"

    def close(self) -> None:
        """End the child; it holds nothing worth keeping."""
        with self._lock:
            child, self._child = self._child, None
            if child:
                child.end()


@cache
def shared() -> Sandbox:
    """The sandbox of this process, until it ends."""
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    return sandbox


def _how(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


class _KilledError(RuntimeError):
    """Something killed a child before it was ready."""


class _Child:
    """The parent's side of one child."""

    def __init__(self, sandbox: Sandbox) -> None:
        arguments = [sandbox.function, str(sandbox.seconds), str(sandbox.memory)]
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)  # Ray extends it
        self._socket, other = socket.socketpair()
        self._stream = self._socket.makefile("rb")
        with other:
            try:
                self.process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-P", "-m", __name__, str(other.fileno()), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[other.fileno()],
                    env={**os.environ, "PYTHONPATH": path, **_ENVIRONMENT},
                )
            except BaseException:
                self._disconnect()
                raise
        try:
            self._line()
        except EOFError as error:
            status = self.end(PATIENCE)
            message = f"the decoder process does not start ({sandbox.function}): {_how(status)}"
            raise (_KilledError if status < 0 else RuntimeError)(message) from error
        except BaseException:
            self.end()
            raise

    def decode(self, data: bytes, shapes: Sequence[Shape]) -> Picture:
        """One picture there and back; EOFError or ConnectionError when the child dies of it."""
        request = json.dumps({"size": len(data), "shapes": shapes})
        self._socket.sendall(request.encode() + b"\n")
        self._socket.sendall(data)
        reply = json.loads(self._line())
        if "reason" in reply:
            raise PictureError(**reply)
        pixels = np.empty(reply.pop("shape"), np.uint8)
        if self._stream.readinto(pixels.data) < pixels.nbytes:
            raise EOFError
        return Picture(pixels, **reply)

    def _line(self) -> bytes:
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def end(self, patience: float = 0) -> int:
        """Its exit status, as of Popen; killed if it does not exit within `patience` seconds."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.kill()
        self._disconnect()
        return self.process.wait()

    def _disconnect(self) -> None:
        self._stream.close()
        self._socket.close()


def _serve(descriptor: str, function: str, seconds: str, memory: str) -> None:
    """The child: decode until the parent closes its side."""
    module, _, name = function.partition(":")
    decode = getattr(importlib.import_module(module), name)
    _restrict(int(memory))
    with socket.socket(fileno=int(descriptor)) as link, link.makefile("rb") as stream:
        link.sendall(b"\n")
        while line := stream.readline():
            signal.setitimer(signal.ITIMER_REAL, float(seconds))
            request = json.loads(line)
            data = stream.read(request["size"])
            pixels, reply = _reply(decode, data, [tuple(shape) for shape in request["shapes"]])
            signal.setitimer(signal.ITIMER_REAL, 0)
            link.sendall(json.dumps(reply).encode() + b"\n")
            link.sendall(pixels)
            del data, pixels


def _reply(decode: Any, data: bytes, shapes: list[Shape]) -> tuple[memoryview, dict[str, Any]]:
    try:
        picture = decode(data, shapes)
    except PictureError as error:
        if isinstance(error.__cause__, MemoryError):
            raise error.__cause__ from None
        return memoryview(b""), {"stage": error.stage, "reason": error.reason}
    facts = {name: getattr(picture, name) for name in ("width", "height", "format")}
    pixels = np.ascontiguousarray(picture.pixels)
    return pixels.data, {"shape": pixels.shape, **facts}


def _restrict(memory: int) -> None:
    """Quiet, mortal, no more than `memory` bytes larger than now, and first to go if they lack."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the children, too
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    warnings.simplefilter("ignore")
    with Path(os.devnull).open("w") as nowhere:  # not before: why it does not start is of interest
        os.dup2(nowhere.fileno(), 2)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = used + memory if hard == resource.RLIM_INFINITY else min(used + memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    try:
        _serve(*sys.argv[1:])
    except MemoryError:
        sys.exit(errno.ENOMEM)
