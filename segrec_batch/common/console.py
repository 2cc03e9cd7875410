"""Progress on stderr and results on stdout."""

import argparse
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from segrec_batch.common.encoding import escape_text
from segrec_batch.common.logs import writes_json

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOG_SECONDS = 30.0
_BAR_BLOCKS = " ▏▎▍▌▋▊▉█"  # 0 to 8 eighths filled
_ASCII_BLOCKS = str.maketrans(_BAR_BLOCKS, "    #####")


def duration(seconds: float) -> str:
    """Return a time in seconds as text of about two digits.

    >>> [duration(s) for s in (0.4, 7, 59, 61, 200, 5400, 200_000)]
    ['0.4 s', '7 s', '59 s', '1 min', '3 min', '1 h 30 min', '2 d 7 h']
    """
    seconds = round(seconds, 3)  # 7,199.9999 s become 2 h
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


@contextmanager
def every(seconds: float, function: Callable[[], None]) -> Iterator[None]:
    """Call a function at intervals in a thread while the block runs."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(seconds):
            function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class ProgressMeter:
    """Progress display: a bar on a terminal; in a log, one line every 30 s even if no step ends.

    Attributes:
        total: number of steps; None if it is unknown.
    """

    def __init__(self, label: str, total: int | None = None) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._start = time.monotonic()
        self._stack = ExitStack()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        console = Console(stderr=True)
        has_bar = console.is_terminal and log.isEnabledFor(logging.INFO) and not writes_json()
        self._bar = Progress(*columns, *times, console=console) if has_bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._stack.enter_context(self._bar)
            self._task = self._bar.add_task(self.label, total=self.total)
        else:
            self._stack.enter_context(every(_LOG_SECONDS, self._log_progress))
        return self

    def advance(self, steps: int = 1) -> None:
        """Count steps as done."""
        self.done += steps
        if self._bar:
            self._bar.update(self._task, completed=self.done)

    def _log_progress(self) -> None:
        done, seconds = self.done, time.monotonic() - self._start
        rate = done / seconds
        left = (self.total - done) / rate if self.total and rate else None
        text = f"{self.label}: {done:,}{'' if self.total is None else f' of {self.total:,}'}"
        text += f" in {duration(seconds)}" + (f", {rate:,.1f}/s" if done else "")
        text += f", about {duration(round(left))} left" if left is not None else ""
        counts: dict[str, Any] = {"label": self.label, "done": done, "total": self.total}
        rates: dict[str, Any] = {"per_second": round(rate, 3), "seconds_left": left and round(left)}
        log.info(text, extra={"event": "progress", **counts, **rates})

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        if not self._bar and kind is None:
            seconds = time.monotonic() - self._start
            text = f"{self.label}: {self.done:,} in {duration(seconds)}"
            counts: dict[str, Any] = {
                "label": self.label,
                "done": self.done,
                "seconds": round(seconds, 3),
            }
            log.info(text, extra={"event": "done", **counts})


def count(text: str) -> int:
    """Parse a positive integer; for use as an argument's type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Iterate over items with a progress meter."""
    with ProgressMeter(label, len(items)) as meter:
        for item in items:
            yield item
            meter.advance()


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, as wide as its content; columns of numbers are right-aligned."""
    grid = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        is_numeric = all(_is_number(row[i]) for row in rows)
        grid.add_column(
            _escape_markup(name), justify="right" if is_numeric else "left", no_wrap=True
        )
    for row in rows:
        grid.add_row(*map(_escape_markup, row))
    console = Console(width=10_000, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(grid)
    lines = [escape_text(title)] * bool(
        title
    )  # not rich's title: rich wraps it at the width of the columns
    lines += [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(lines) + "\n"


def share_bar(share: float, width: int = 8) -> str:
    """Return a share in [0, 1] as a bar of eighth blocks, `width` characters long.

    >>> [share_bar(share, 4) for share in (0.0, 0.03, 0.29, 1.0)]
    ['    ', '▏   ', '█▏  ', '████']
    """
    eighths = round(8 * width * min(max(share, 0.0), 1.0))
    bar = "█" * (eighths // 8) + _BAR_BLOCKS[eighths % 8]
    return bar[:width].ljust(width)


def _escape_markup(text: str) -> str:
    return escape(escape_text(text))


def show_line(*texts: str) -> None:
    """Print texts on one line of stdout with tabs between, unsafe characters escaped."""
    show("\t".join(map(escape_text, texts)) + "\n")


def show(text: str) -> None:
    """Print an encoded result; replace characters that stdout lacks by `#` (blocks) or `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(_ASCII_BLOCKS)
        text = plain.encode(encoding, errors="replace").decode(encoding)
    sys.stdout.write(text)


def _is_number(text: str) -> bool:
    """Return whether a cell is a number without a bar; rich cuts a bar's trailing blanks."""
    if text.endswith(tuple(_BAR_BLOCKS)):
        return False
    return (
        text[:1].isdigit() or text[:2].lstrip("-")[:1].isdigit() or text in ("NULL", "absent", "–")
    )
