"""Seconds and peak memory of a step in a process of its own."""

import multiprocessing
import re
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from segrec_batch.common.errors import AccountingError, SegrecError

MIB = 2**20
_NOISE = 1.1, 0.1  # growth of memory per item that is noise: up to this factor, or to these KB


@dataclass(frozen=True)
class PeakMemory:
    """Result and peaks of a step, in bytes.

    Attributes:
        result: what the step returned.
        driver: peak memory of the step's process.
        total: peak memory of that process and of all processes below it.
        disk: peak size of the temporary files.
    """

    result: Any
    driver: int
    total: int
    disk: int


def measure(step: Callable[[Any], Any], case: Any) -> PeakMemory:
    """Run a step. Raises EOFError if its process dies."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    total = disk = 0
    with tempfile.TemporaryDirectory(dir=case.folder) as scratch:
        child = context.Process(target=_run, args=(sender, scratch, step, case))
        child.start()
        sender.close()
        while not receiver.poll(0.05):
            total = max(total, _resident(child.pid))
            disk = max(disk, _size(scratch))
        result, driver = receiver.recv()
        child.join()
    return PeakMemory(result, driver, max(total, driver), disk)


def _run(sender: Connection, scratch: str, step: Callable[[Any], Any], case: Any) -> None:
    tempfile.tempdir = scratch
    with redirect_stderr(StringIO()):  # progress of the step
        result = step(case)
    # not getrusage(): it counts the parent's memory before exec()
    sender.send((result, read_memory("VmHWM")))


def read_memory(field: str) -> int:
    """Return bytes of this process: VmRSS now, or VmHWM, the peak since `reset_peak`."""
    text = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(kilobytes) * 1024


def reset_peak() -> None:
    """Let VmHWM of this process start again. Raises OSError where a sandbox forbids it."""
    Path("/proc/self/clear_refs").write_text("5")


def _resident(pid: int | None) -> int:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))
    return 0


def resident_bytes(pid: int) -> tuple[int, int]:
    """Return the resident bytes of a process: its own, and shared memory."""
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    sizes = {line[0]: 1024 * int(line[1]) for line in lines if line and line[0].startswith("Rss")}
    if not sizes:
        raise psutil.ZombieProcess(pid)
    return sizes["RssAnon:"] + sizes["RssFile:"], sizes["RssShmem:"]


def _size(folder: str) -> int:
    size = 0
    for path in Path(folder).rglob("*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


class Growth:
    """Peak memory by step and number of items, and its growth per item."""

    def __init__(self) -> None:
        self._peaks: dict[str, list[tuple[int, int]]] = {}

    def add(self, step: str, items: int, peak: int) -> str:
        """Add a peak; return the growth in KB per item since the last peak, as text."""
        self._peaks.setdefault(step, []).append((items, peak))
        return f"{self._slopes(step)[-1]:.2f}" if self._slopes(step) else "absent"

    def _slopes(self, step: str) -> list[float]:
        return [(b - a) / (n - m) / 1e3 for (m, a), (n, b) in pairwise(self._peaks[step])]

    def check(self) -> None:
        """Raise SegrecError if memory per item grows."""
        factor, floor = _NOISE
        pairs = {step: list(pairwise(self._slopes(step))) for step in self._peaks}
        growing = [s for s in pairs if any(b > max(a * factor, floor) for a, b in pairs[s])]
        if growing:
            raise SegrecError(f"memory per item grows: {', '.join(growing)}")


def check_count(actual: int, expected: int) -> None:
    """Raise AccountingError if two counts differ."""
    if actual != expected:
        raise AccountingError(f"the count is {actual:,}, not {expected:,}")
