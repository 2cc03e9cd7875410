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

_PERIOD = 0.25  # seconds between two samples; a sample takes milliseconds


@dataclass(frozen=True)
class TimedResult:
    """Result and time of a step.

    Attributes:
        result: what the step returned.
        seconds: from the start of the step's process to its end.
        cpu: CPU seconds of that process and of all processes below it, by name.
    """

    result: Any
    seconds: float
    cpu: dict[str, float]


def watch(step: str, case: Any) -> TimedResult:
    """Call a step, "module:function", on a case in a new process, which alone imports the module.

    Raises the error of the step, and EOFError if its process dies.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(sender, step, case))
    start = time.perf_counter()
    child.start()
    sender.close()
    processes = _Processes(psutil.Process(child.pid))
    while not receiver.poll(_PERIOD):
        processes.sample()
    try:
        result, error = receiver.recv()
    finally:
        processes.sample()
        child.join()
    if error:
        raise error
    return TimedResult(result, time.perf_counter() - start, dict(processes.seconds))


def _run(sender: Connection, step: str, case: Any) -> None:
    result = error = None
    module, _, name = step.partition(":")
    with redirect_stderr(StringIO()):  # progress of the step
        try:
            result = getattr(import_module(module), name)(case)
        except Exception as raised:  # sent to the parent
            error = raised
    sender.send((result, error))


class _Processes:
    """CPU seconds of a tree of processes by name; a process counts under its newest name."""

    def __init__(self, root: psutil.Process) -> None:
        self.seconds: Counter[str] = Counter()
        self._root = root
        self._last: dict[int, tuple[str, float]] = {}

    def sample(self) -> None:
        """Add the CPU seconds since the last sample."""
        with suppress(psutil.NoSuchProcess):
            for process in (self._root, *self._root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    self._add(process)

    def _add(self, process: psutil.Process) -> None:
        last_name, before = self._last.get(process.pid, ("", 0.0))
        spent = process.cpu_times()
        now = spent.user + spent.system
        name = "driver" if process == self._root else _name(process.cmdline())
        if name == "ray::IDLE":  # an idle worker did its work under its former name
            name = last_name or name
        self.seconds[name] += now - before
        self._last[process.pid] = (name, now)


def _name(command: list[str]) -> str:
    """Return the name of a process: its Ray title, its Python module or its script."""
    if not command:
        return "ended"
    if command[0].startswith("ray::"):
        words: list[str] = re.findall(r"\w+", command[0].removeprefix("ray::"))
        return "ray::" + next((w for w in reversed(words) if w not in _CALLS), words[0])
    if "--multiprocessing-fork" in command:
        return "decode, write"
    if "-m" in command:
        return command[command.index("-m") + 1]
    script = next((part for part in command if part.endswith(".py")), command[0])
    return Path(script).name


_CALLS = ("submit", "MapWorker", "MapBatches", "get_location", "__init__")
