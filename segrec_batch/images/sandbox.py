"""Decoding in a child process that may die and can do nothing else.

Decoders crash, hang or eat memory on some files, and an image made for it may take one over. Ray
retries a task whose worker died, so one such file would never let a run end; and a worker, or who
looks at a contact sheet, has credentials and a network. The child has neither: a minimal
environment, no files, no network, no processes (see `confinement`). The kernel bounds its time and
memory, also when its parent is gone, and it ends when the socket to its parent closes. What it
answers is checked like any foreign data. `sandbox_process` is this side of the socket to it, and
`sandbox_child`, with the protocol, the other.
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

IMAGE_SECONDS = 60.0  # of wall time
INTERACTIVE_SECONDS = 10.0  # the same where somebody waits for it
IMAGE_MEMORY = 2**32  # bytes of address space; an image of MAX_PIXELS needs 3.5 GiB at worst
STARTS = 3  # of a child that something kills before it is ready
_GRACE = 5.0  # seconds beyond the limit of an image, after which its clock is not believed

log = logging.getLogger(__name__)

_NONSENSE = "decoder crashed (its answer makes no sense)"
T = TypeVar("T")


class Sandbox:
    """Decodes images in a child process: started on first use, and anew after each death.

    An image may take `seconds`, and `memory` bytes beyond what the child has at its start.
    `function` is what the child calls in `decode`, "module:name"; it must behave like
    `decode.decode`.
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
        """The child's process id, while there is one."""
        return self._child.process.pid if self._child else None

    def start(self) -> None:
        """Start the child and do not wait for it: it imports while the caller does other things."""
        with self._lock:
            self._child = self._child or ChildProcess(self.function, self.memory)

    def confinement(self) -> Confinement:
        """Return what the kernel holds of the child. DecoderError when none starts."""
        with self._lock:
            return self._ready().confinement

    def decode(
        self, data: bytes, shapes: Sequence[Shape], seconds: float | None = None
    ) -> DecodedImage:
        """Decode as `decode.decode` does; ImageError also when the child does not survive.

        After a crash the image is tried in a second child: the first may have died of something
        else. After a timeout it is not.

        Args:
            data: the encoded image.
            shapes: one of these the pixels will have.
            seconds: it may take, if not as long as all others.

        Raises:
            ImageError: of stage `decode`.
            DecoderError: a child does not even start.
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
        """Decode an image, made smaller to fit a box (width, height) if it is larger.

        For arguments and errors see `decode`.
        """

        def read(answer: Answer) -> DecodedImage:
            image = _image(answer)
            height, width = image.pixels.shape[:2]
            require(width <= box[0] and height <= box[1])
            return image

        return self._call("within", data, {"box": box}, seconds, read)

    def decode_mask(self, data: bytes, seconds: float | None = None) -> NDArray[np.integer[Any]]:
        """Decode a mask, one label a pixel: (h, w). For arguments and errors see `decode`."""

        def read(answer: Answer) -> NDArray[np.integer[Any]]:
            _, pixels = answer
            require(pixels.ndim == 2)
            return pixels

        return self._call("mask", data, {}, seconds, read)

    def close(self) -> None:
        """End the child; it holds nothing worth keeping."""
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
        """What `read` makes of the child's answer to one request. See `decode`."""
        limit = self.seconds if seconds is None else seconds
        request = {"call": call, "size": len(data), "seconds": limit, "options": options}
        with self._lock:
            for _ in range(2):
                child = self._ready()
                try:
                    return read(child.ask(request, data, limit + _GRACE))
                except ImageError:
                    raise
                except NonsenseError:  # somebody else may have taken it over
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
                except BaseException:  # its answer may still come, and is not the next image's
                    self._child = None
                    child.end()
                    raise
        # the kernel kills, first of all these, where memory runs out: it says nothing of the image
        stage = "read" if status == -signal.SIGKILL else "decode"
        raise ImageError(stage, self._cause(status))

    def _ready(self) -> ChildProcess:
        """A child that waits for a request."""
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
    """The sandbox of this process, until it ends."""
    return _of_process(os.getpid())[0]  # a fork must not read its parent's answers


_borrowing = threading.Lock()
_taken: set[Sandbox] = set()


@contextmanager
def borrowed() -> Iterator[Sandbox]:
    """A sandbox of this process that no other thread has borrowed; a new one if all are taken."""
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
    """Return whether an image was given up for the time it took."""
    return isinstance(error, _LateError)


class _LateError(ImageError):
    """One image took too long to decode."""

    def __init__(self, seconds: float) -> None:
        super().__init__("decode", f"took longer than {seconds:g} s")


@cache
def _report(confinement: Confinement) -> None:
    """Log once in a process what the kernel does not hold."""
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
