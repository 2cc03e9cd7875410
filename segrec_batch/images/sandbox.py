"""Decoding in a confined child process.

Decoders crash, hang or exhaust memory on some files, and a malicious image may take one over. Ray
retries a task whose worker died, so one such file could keep a run from ending. Workers, and
programs that make contact sheets, have credentials and a network. The child has a minimal
environment and no files, network or processes (see `confinement`). The kernel limits its time and
memory, also after the parent has died, and the child ends when the socket to its parent closes.
The parent checks its responses like any untrusted data. `sandbox_process` implements the parent's
side of the socket; `sandbox_child` implements the child's and describes the protocol.
"""

import atexit
import errno
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import ImageError
from segrec_batch.images.confinement import Confinement
from segrec_batch.images.decode import MAX_PIXELS, DecodedImage, Shape
from segrec_batch.images.sandbox_process import (
    PATIENCE,
    Answer,
    ChildProcess,
    KilledError,
    NonsenseError,
    how,
    require,
)

IMAGE_SECONDS = 60.0  # wall time
INTERACTIVE_SECONDS = 10.0  # wall time if a user waits
IMAGE_MEMORY = 2**32  # bytes of address space; an image of MAX_PIXELS needs 3.5 GiB at worst
STARTS = 3  # tries to start a child that is killed before it is ready
_GRACE = 5.0  # seconds beyond the limit of an image, after which the parent stops the child

log = logging.getLogger(__name__)

_NONSENSE = "decoder crashed (its answer makes no sense)"
T = TypeVar("T")


class Sandbox:
    """Decoder of images in a child process, started on first use and again after each death.

    The limits of an image are `seconds`, and `memory` bytes in addition to those of the child at
    its start. `function`, "module:name", is the function that the child calls in `decode`; it must
    behave like `decode.decode`.
    """

    def __init__(
        self,
        *,
        seconds: float = IMAGE_SECONDS,
        memory: int = IMAGE_MEMORY,
        function: str = "segrec_batch.images.decode:decode",
    ) -> None:
        self.seconds = seconds
        self.memory = memory
        self.function = function
        self._child: ChildProcess | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._child.process.pid if self._child else None

    def start(self) -> None:
        """Start the child without waiting for its imports."""
        with self._lock:
            self._child = self._child or ChildProcess(self.function, self.memory)

    def confinement(self) -> Confinement:
        """Return the confinement of the child. Raises DecoderError if none starts."""
        with self._lock:
            return self._ready().confinement

    def decode(
        self, data: bytes, shapes: Sequence[Shape], seconds: float | None = None
    ) -> DecodedImage:
        """Decode an image as `decode.decode` does.

        After a crash, a second child tries the image, since the crash may have another cause; after
        a timeout, none does.

        Args:
            data: The encoded image.
            shapes: Shapes to choose from.
            seconds: Time limit; None is that of the sandbox.

        Raises:
            ImageError: With stage `decode`; also if the child dies.
            DecoderError: No child starts.
        """
        allowed = {tuple(shape) for shape in shapes}

        def read(answer: Answer) -> DecodedImage:
            image = _image(answer)
            require(image.pixels.shape[:2] in allowed)
            return image

        return self._call("decode", data, {"shapes": shapes}, seconds, read)

    def decode_whole(self, data: bytes, seconds: float | None = None) -> DecodedImage:
        """Decode an image with all its pixels. For arguments and errors see `decode`."""
        return self._call("whole", data, {}, seconds, _image)

    def decode_within(
        self, data: bytes, box: tuple[int, int], seconds: float | None = None
    ) -> DecodedImage:
        """Decode an image and reduce it to a box (width, height) if it is larger.

        For arguments and errors see `decode`.
        """

        def read(answer: Answer) -> DecodedImage:
            image = _image(answer)
            height, width = image.pixels.shape[:2]
            require(width <= box[0] and height <= box[1])
            return image

        return self._call("within", data, {"box": box}, seconds, read)

    def decode_mask(self, data: bytes, seconds: float | None = None) -> NDArray[np.integer[Any]]:
        """Decode a mask to labels, (h, w). For arguments and errors see `decode`."""

        def read(answer: Answer) -> NDArray[np.integer[Any]]:
            _, pixels = answer
            require(pixels.ndim == 2)
            return pixels

        return self._call("mask", data, {}, seconds, read)

    def close(self) -> None:
        """End the child; it has no state."""
        with self._lock:
            child, self._child = self._child, None
            if child:
                child.end()

    def _call(
        self,
        call: str,
        data: bytes,
        options: dict[str, Any],
        seconds: float | None,
        read: Callable[[Answer], T],
    ) -> T:
        """Send a request and return its response, read by `read`. See `decode`."""
        limit = self.seconds if seconds is None else seconds
        request = {"call": call, "size": len(data), "seconds": limit, "options": options}
        with self._lock:
            for _ in range(2):
                child = self._ready()
                try:
                    return read(child.ask(request, data, limit + _GRACE))
                except ImageError:
                    raise
                except NonsenseError:  # an image may have taken the child over
                    self._child = None
                    child.end()
                    raise ImageError("decode", _NONSENSE) from None
                except TimeoutError:
                    self._child = None
                    child.end()
                    raise _LateError(limit) from None
                except (EOFError, ConnectionError):
                    self._child, status = None, child.end(PATIENCE)
                    if status == -signal.SIGALRM:
                        raise _LateError(limit) from None
                except BaseException:  # the next request must not read this response
                    self._child = None
                    child.end()
                    raise
        # out of memory, the kernel kills children first: the image need not be the cause
        stage = "read" if status == -signal.SIGKILL else "decode"
        raise ImageError(stage, self._cause(status))

    def _ready(self) -> ChildProcess:
        """Return a child that waits for a request."""
        for start in range(STARTS):
            child = self._child = self._child or ChildProcess(self.function, self.memory)
            try:
                child.wait()
                _report(child.confinement)
            except KilledError:
                self._child = None
                if start == STARTS - 1:
                    raise
            except BaseException:
                self._child = None
                raise
            else:
                break
        return child

    def _cause(self, status: int) -> str:
        if status == -signal.SIGKILL:
            return "decoder was killed twice; does this machine lack memory?"
        if status == errno.ENOMEM:
            return f"needs more than {self.memory / 2**30:g} GiB of memory"
        return f"decoder crashed ({how(status)})"


def shared() -> Sandbox:
    """Return the sandbox of this process."""
    return _of_process(os.getpid())[0]  # by pid: a fork must not read its parent's responses


_borrowing = threading.Lock()
_taken: set[Sandbox] = set()


@contextmanager
def borrowed() -> Iterator[Sandbox]:
    """Lend a sandbox of this process that no other thread uses; a new one if all are in use."""
    everyone = _of_process(os.getpid())
    with _borrowing:
        free = next((box for box in everyone if box not in _taken), None)
        if free is None:
            free = _make()
            everyone.append(free)
        _taken.add(free)
    try:
        yield free
    finally:
        with _borrowing:
            _taken.discard(free)


@cache
def _of_process(_: int) -> list[Sandbox]:
    return [_make()]


def _make() -> Sandbox:
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    return sandbox


def is_late(error: ImageError) -> bool:
    """Return whether the error is an exceeded time limit."""
    return isinstance(error, _LateError)


class _LateError(ImageError):
    """The decoding of an image exceeded its time limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__("decode", f"took longer than {seconds:g} s")


@cache
def _report(confinement: Confinement) -> None:
    """Log the restrictions that are not in force, once per process."""
    gaps = "; ".join(confinement.gaps)
    if not confinement.seccomp:
        log.warning("the process that decodes is not fully confined: %s (see segrec doctor)", gaps)
    elif gaps:
        log.info("the process that decodes is confined, with %s", gaps)


def _image(answer: Answer) -> DecodedImage:
    facts, pixels = answer
    width, height, format_ = facts.get("width"), facts.get("height"), facts.get("format")
    require(isinstance(width, int) and isinstance(height, int))
    require(width > 0 and height > 0 and width * height <= MAX_PIXELS)  # type: ignore[operator]
    require(isinstance(format_, str) and format_.isascii() and len(format_) <= 10)
    require(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3)
    return DecodedImage(pixels.astype(np.uint8, copy=False), width, height, format_)  # type: ignore[arg-type]
