"""Choose the backbone weights of `make demo`: print the value of --backbone-weights.

`auto` is torchvision's ImageNet weights of VGG-16, if torch.hub's cache has the file or a download
finishes in time; otherwise `random:0`, with a warning. Any other choice is printed as it is,
for the command that loads it: `imagenet` has no time limit and no substitute.
"""

import argparse
import hashlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from segrec_batch.common import logs
from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import SegrecError

log = logging.getLogger("segrec_batch.examples")

SUBSTITUTE = "random:0"
_MEGABYTE = 1_000_000

EXAMPLES = """\
examples:
  python examples/demo_weights.py auto              # imagenet, or random:0 and a warning
  python examples/demo_weights.py auto --seconds 600
  python examples/demo_weights.py vgg16.safetensors # vgg16.safetensors
"""


class DownloadError(SegrecError):
    """A file was not downloaded."""


@dataclass(frozen=True)
class Limits:
    """Seconds a download may take: until the server answers, between two packets, and in all."""

    connect: float = 8.0
    total: float = 90.0


def choose_weights(url: str, cache: Path, limits: Limits) -> str:
    """Return `imagenet` if their file, that of `url`, is in `cache` or gets there; else `random:0`.

    Whether a file in the cache is sound is checked by the command that loads it.
    """
    path = cache / url.rpartition("/")[2]
    try:
        if not path.exists():
            download(url, path, limits)
    except (DownloadError, OSError) as error:
        log.warning(
            f"no ImageNet weights ({error}): the demo runs on untrained ones, {SUBSTITUTE}; for "
            "trained ones run make demo WEIGHTS=PATH with a VGG-16 state dict, or WEIGHTS=imagenet "
            "to download without a time limit"
        )
        return SUBSTITUTE
    return "imagenet"


def download(url: str, path: Path, limits: Limits) -> None:
    """Download a file as a whole or leave nothing behind.

    The digits between `-` and `.` in the file's name begin its SHA-256, as in torch.hub. A process
    of its own does the work, so that the limits hold wherever it hangs, in name resolution too.
    Raises DownloadError, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with _worker(url, part, limits.connect) as worker:
            _wait(worker, url, limits)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _worker(url: str, part: Path, timeout: float) -> Iterator[Connection]:
    """Start a process that downloads; yield its pipe, and end the process with the block."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send_progress, args=(url, part, timeout, sender), daemon=True)
    process.start()
    sender.close()
    try:
        yield receiver
    finally:
        process.kill()
        process.join()
        receiver.close()


def _wait(worker: Connection, url: str, limits: Limits) -> None:
    """Show the progress of a worker until it is done. Raises DownloadError."""
    end = time.monotonic() + limits.total
    silent = f"no answer from {url} in {limits.connect:g} s"
    size = _receive(worker, min(limits.connect, limits.total), silent)
    late = f"{url} takes longer than {limits.total:g} s"
    with ProgressMeter("download (MB)", size // _MEGABYTE or None) as meter:
        while step := _receive(worker, end - time.monotonic(), late):
            meter.advance(step // _MEGABYTE)


def _receive(worker: Connection, seconds: float, late: str) -> int:
    """Return the next number a worker sends. Raises DownloadError for a text, or if none comes."""
    if seconds <= 0 or not worker.poll(seconds):
        raise DownloadError(late)
    try:
        message = worker.recv()
    except EOFError:
        raise DownloadError("the download was ended from outside") from None
    if isinstance(message, str):
        raise DownloadError(message)
    return int(message)


def _send_progress(url: str, part: Path, timeout: float, sender: Connection) -> None:
    """Download into `part`; send the size (0 if unknown), bytes as they come, 0 at the end.

    An error is sent as text.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends this process
    digest = hashlib.sha256()
    try:
        with urlopen(url, timeout=timeout) as response, part.open("wb") as file:  # noqa: S310
            sender.send(int(response.headers["Content-Length"] or 0))
            while block := response.read(_MEGABYTE):
                file.write(block)
                digest.update(block)
                sender.send(len(block))
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if type(error) is URLError else error
        sender.send(" ".join(f"{url}: {reason}".split()))  # on one line
        return
    named = re.search(r"-([0-9a-f]{8,})\.", url)
    right = not named or digest.hexdigest().startswith(named[1])
    sender.send(0 if right else f"{url} is not the file that its name promises")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "choice", metavar="WEIGHTS", help="auto, or a value of segrec train --backbone-weights"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=Limits.total,
        metavar="N",
        help=f"a download's time limit (default: {Limits.total:g})",
    )
    return parser.parse_args()


def main(a: argparse.Namespace) -> None:
    """Print the choice."""
    if a.choice != "auto":
        print(a.choice)
        return
    from torch import hub
    from torchvision.models import VGG16_Weights

    url = str(VGG16_Weights.IMAGENET1K_V1.url)
    cache = Path(hub.get_dir()) / "checkpoints"
    print(choose_weights(url, cache, Limits(total=a.seconds)))


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
