"""Parts of a benchmark, each in a process of its own with a time limit.

A part that fails, dies or runs out of time keeps the rows measured so far, and the next part runs.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

Row = dict[str, Any]

DONE, FAILED, STOPPED, NOT_RUN = "done", "failed", "stopped: out of time", "not run: out of time"
_TRACE = 6000  # maximum characters of a traceback
_EXIT_SECONDS = 10.0  # time for the process of a part to exit after its last row


@dataclass(frozen=True)
class Part:
    """A step "module:function", which yields rows of figures for a case.

    limit: maximum seconds. needs: seconds that must be left for the part to start.
    """

    name: str
    step: str
    limit: float
    needs: float


@dataclass
class Outcome:
    """Rows, seconds and status of a part; `error` holds the traceback of a failure.

    A row may have an `error`, or the reason why it was `skipped`.
    """

    status: str
    seconds: float = 0.0
    error: str = ""
    rows: list[Row] = field(default_factory=list)

    @property
    def has_failed(self) -> bool:
        """True if the part or one of its rows ended with an error."""
        return self.status == FAILED or any("error" in row for row in self.rows)


def run_part(part: Part, case: Any, seconds_left: float) -> Outcome:
    """Run a part in a new process, which alone imports the step.

    The part shares standard error with this process. All processes that it started end with it.
    """
    if seconds_left < part.needs:
        return Outcome(NOT_RUN)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(sender, part.step, case))
    start = time.perf_counter()
    outcome = Outcome(STOPPED)
    child.start()
    sender.close()
    try:
        _receive(receiver, outcome, start + min(part.limit, seconds_left))
        if outcome.status != STOPPED:
            child.join(_EXIT_SECONDS)
    finally:
        _kill(child)
    if outcome.status == FAILED and not outcome.error:
        outcome.error = f"the process ended with code {child.exitcode}"
    outcome.seconds = time.perf_counter() - start
    return outcome


def _receive(receiver: Connection, outcome: Outcome, deadline: float) -> None:
    """Receive rows until the part ends or its time is over."""
    while (left := deadline - time.perf_counter()) > 0:
        if not receiver.poll(left):
            return
        try:
            kind, content = receiver.recv()
        except EOFError:  # the process died
            outcome.status = FAILED
            return
        if kind == "row":
            outcome.rows.append(content)
            continue
        outcome.status, outcome.error = kind, content
        return


def _kill(child: Any) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()


def _run(sender: Connection, step: str, case: Any) -> None:
    os.setsid()  # so that `_kill` ends all its children
    module, _, name = step.partition(":")
    try:
        with redirect_stdout(sys.stderr):  # standard output is for the tables of all parts
            rows: Iterator[Row] = getattr(import_module(module), name)(case)
            for row in rows:
                sender.send(("row", row))
    except Exception:
        sender.send((FAILED, traceback.format_exc()[-_TRACE:]))
    else:
        sender.send((DONE, ""))
