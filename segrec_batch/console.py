"""What commands print: progress and messages on stderr, results on stdout."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

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

from segrec_batch.errors import SegrecError

T = TypeVar("T")

_LOG_SECONDS = 30.0
_BLOCKS = " ▏▎▍▌▋▊▉█"  # by eighths filled
_WITHOUT_BLOCKS = str.maketrans(_BLOCKS, "    #####")


def say(text: str) -> None:
    """One message on stderr."""
    print(text, file=sys.stderr, flush=True)


def run_command(command: Callable[[], None]) -> int:
    """Run a command; its exit code is 0, 1 for an error that has a message, 130 for Ctrl-C."""
    try:
        command()
    except SegrecError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


class ProgressMeter:
    """Progress of `total` steps, or of unknown many (None): a bar in a terminal, a plain line every
    30 s in a log.
    """

    def __init__(self, label: str, total: int | None = None) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._start = self._last = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, *times, console=console) if console.is_terminal else None

    def __enter__(self) -> "ProgressMeter":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total)
        return self

    def advance(self, steps: int = 1) -> None:
        """Count steps as done."""
        self.done += steps
        if self._bar:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() - self._last >= _LOG_SECONDS:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        rate = self.done / max(seconds, 1e-9)
        if self.total is None:
            say(f"{self.label}: {self.done:,} so far, {rate:.1f}/s")
            return
        left = (self.total - self.done) / rate if rate else float("inf")
        say(f"{self.label}: {self.done:,} of {self.total:,}, {rate:.1f}/s, about {left:.0f} s left")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None:
            say(f"{self.label}: {self.done:,} in {time.monotonic() - self._start:.1f} s")


def count(text: str) -> int:
    """The type of an argument that is a number above 0."""
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
    """A table as text, as wide as its content; columns that hold figures only are set right."""
    grid = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        figures = all(_is_figure(row[i]) for row in rows)
        grid.add_column(escape(name), justify="right" if figures else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(escape, row))
    console = Console(width=10_000, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def share_bar(share: float, width: int = 8) -> str:
    """A share in [0, 1] as a bar of eighth blocks, always `width` characters.

    >>> [share_bar(share, 4) for share in (0.0, 0.03, 0.29, 1.0)]
    ['    ', '▏   ', '█▏  ', '████']
    """
    eighths = round(8 * width * min(max(share, 0.0), 1.0))
    bar = "█" * (eighths // 8) + _BLOCKS[eighths % 8]
    return bar[:width].ljust(width)


def show(text: str) -> None:
    """A result on stdout; where its encoding lacks a character, `#` for a block, else `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(_WITHOUT_BLOCKS)
        text = plain.encode(encoding, errors="replace").decode(encoding)
    sys.stdout.write(text)


def _is_figure(text: str) -> bool:
    """Not so with a bar behind the figure: rich cuts blanks off what it sets right."""
    if text.endswith(tuple(_BLOCKS)):
        return False
    return text[:1].isdigit() or text[:2].lstrip("-")[:1].isdigit() or text in ("NULL", "absent")
