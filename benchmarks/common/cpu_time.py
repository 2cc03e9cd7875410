"""Seconds and CPU seconds of a step in a process of its own."""

import multiprocessing
import re
import time
from collections import Counter
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

_EVERY = 0.25  # seconds between two looks; a look takes milliseconds


@dataclass(frozen=True)
class Watched:
    """Result and time of a step.

    Attributes:
        result: what the step returned.
        seconds: from the start of the step's process to its end.
        cpu: CPU seconds of that process and of all processes below it, by name.
    """

    result: Any
    seconds: float
    cpu: dict[str, float]


def watch(step: str, case: Any) -> Watched:
    """Call a step, "module:function", on a case; what the module needs is imported there only.

    Raises the step's error, EOFError if its process dies.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(sender, step, case))
    start = time.perf_counter()
    child.start()
    sender.close()
    processes = _Processes(psutil.Process(child.pid))
    while not receiver.poll(_EVERY):
        processes.look()
    try:
        result, error = receiver.recv()
    finally:
        processes.look()
        child.join()
    if error:
        raise error
    return Watched(result, time.perf_counter() - start, dict(processes.seconds))


def _run(sender: Connection, step: str, case: Any) -> None:
    result = error = None
    module, _, name = step.partition(":")
    with redirect_stderr(StringIO()):  # its own progress
        try:
            result = getattr(import_module(module), name)(case)
        except Exception as raised:  # of a child, whose traceback nobody would see
            error = raised
    sender.send((result, error))


class _Processes:
    """CPU seconds of a tree of processes. What one does between two looks goes to its last name."""

    def __init__(self, root: psutil.Process) -> None:
        self.seconds: Counter[str] = Counter()
        self._root = root
        self._seen: dict[int, tuple[str, float]] = {}

    def look(self) -> None:
        """Add what was done since the last look."""
        with suppress(psutil.NoSuchProcess):
            for process in (self._root, *self._root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    self._add(process)

    def _add(self, process: psutil.Process) -> None:
        known, before = self._seen.get(process.pid, ("", 0.0))
        spent = process.cpu_times()
        now = spent.user + spent.system
        name = "driver" if process == self._root else _name(process.cmdline())
        if name == "ray::IDLE":  # it was something else for some of the time
            name = known or name
        self.seconds[name] += now - before
        self._seen[process.pid] = (name, now)


def _name(command: list[str]) -> str:
    """Return the name of a process: its Ray title, its Python module or its script."""
    if not command:
        return "gone"
    if command[0].startswith("ray::"):
        inner: list[str] = re.findall(r"\w+", command[0].removeprefix("ray::"))
        return "ray::" + next((w for w in reversed(inner) if w not in _CALLS), inner[0])
    if "--multiprocessing-fork" in command:
        return "decode, write"
    if "-m" in command:
        return command[command.index("-m") + 1]
    script = next((part for part in command if part.endswith(".py")), command[0])
    return Path(script).name


_CALLS = ("submit", "MapWorker", "MapBatches", "get_location", "__init__")
