"""The child process of a `sandbox.Sandbox`, confined to decoding.

It imports all that decoding needs, then confines itself (see `confinement`), then answers requests
on a socket until its parent closes it. A message is the length of its JSON (4 bytes,
big-endian), the JSON, then raw bytes. Child → parent: first `Confinement` as an object; then for
each request `{call, size, seconds, options}` + file → `{dtype, shape}` + pixels, with `{width,
height, format}` of an image, or `{reason}`.
"""

import errno
import importlib
import json
import os
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.common.errors import ImageError
from segrec_batch.images import decode, masks
from segrec_batch.images.confinement import confine

LENGTH = struct.Struct(">I")  # length of the JSON of a message
CPU_SECONDS = 3600  # CPU time of a child; then a new child takes over
# Pillow and Python import these modules on demand, which a confined process cannot; `decode`
# imports all others
_LATE_IMPORTS = (
    *("PIL.ImageFilter", "PIL.ImagePalette", "copy"),
    *(f"encodings.{name}" for name in ("ascii", "latin_1", "utf_8", "utf_16", "cp437", "idna")),
    "traceback",
)

Answer = decode.DecodedImage | NDArray[np.integer[Any]]


def decode_whole(data: bytes) -> decode.DecodedImage:
    """Decode an image with all its pixels."""
    image, width, height, format_ = decode.open_rgb(data)
    return decode.DecodedImage(np.asarray(image, np.uint8), width, height, format_)


def decode_within(data: bytes, box: tuple[int, int]) -> decode.DecodedImage:
    """Decode an image and reduce it to a box (width, height) if it is larger.

    A JPEG is decoded at the coarsest sufficient scale.
    """
    image, width, height, format_ = decode.open_rgb(data, [(2 * box[1], 2 * box[0])])
    image.thumbnail(box)
    return decode.DecodedImage(np.asarray(image, np.uint8), width, height, format_)


def main(descriptor: str, function: str, memory: str) -> None:
    """Serve the parent at the other end of a socket with the decoder `function`, "module:name"."""
    module, _, name = function.partition(":")
    chosen = getattr(importlib.import_module(module), name)
    calls: dict[str, Callable[..., Answer]] = {
        "decode": lambda data, shapes: chosen(data, [tuple(shape) for shape in shapes]),
        "whole": decode_whole,
        "within": decode_within,
        "mask": masks.decode_mask,
    }
    for late in _LATE_IMPORTS:
        importlib.import_module(late)
    Image.preinit()
    with socket.socket(fileno=int(descriptor)) as link, link.makefile("rb") as stream:
        _become_quiet(link.fileno())
        confinement = confine(int(memory), CPU_SECONDS)
        _send(link, asdict(confinement))
        while head := stream.read(LENGTH.size):
            request = json.loads(stream.read(*LENGTH.unpack(head)))
            signal.setitimer(signal.ITIMER_REAL, request["seconds"])
            data = stream.read(request["size"])
            facts, pixels = _answer(calls[request["call"]], data, request["options"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(link, facts)
            link.sendall(pixels)
            del data, pixels


def _become_quiet(link: int) -> None:
    """Ignore signals but SIGALRM, and close all descriptors but the socket.

    Standard error is open until here, for messages of a child that does not start.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches children
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    warnings.simplefilter("ignore")
    with Path(os.devnull).open("r+") as nowhere:
        for standard in range(3):
            os.dup2(nowhere.fileno(), standard)
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the numbers, not their targets
        if int(entry) > 2 and int(entry) != link:
            with suppress(OSError):  # the listing's descriptor is closed
                os.close(int(entry))


def _send(link: socket.socket, message: Mapping[str, object]) -> None:
    body = json.dumps(message).encode()
    link.sendall(LENGTH.pack(len(body)) + body)


def _answer(
    call: Callable[..., Answer], data: bytes, options: Mapping[str, Any]
) -> tuple[dict[str, object], memoryview]:
    try:
        found = call(data, **options)
    except ImageError as error:
        if isinstance(error.__cause__, MemoryError):
            raise error.__cause__ from None
        return {"reason": error.reason}, memoryview(b"")
    facts: dict[str, object] = {}
    if isinstance(found, decode.DecodedImage):
        facts = {name: getattr(found, name) for name in ("width", "height", "format")}
        found = found.pixels
    pixels = np.ascontiguousarray(found, found.dtype.newbyteorder("="))
    return {"dtype": pixels.dtype.name, "shape": pixels.shape, **facts}, pixels.data


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MemoryError:
        sys.exit(errno.ENOMEM)
