"""What commands tell on stderr: messages, for people or for programs.

With `--log-format json` each message is one line of JSON, and there are no bars. Its keys are time
(ISO 8601, UTC), level (info, warning, error), event, message, what `bind` has been given, and the
figures of the event.
"""

import argparse
import datetime as dt
import errno
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from segrec_batch.common import encoding
from segrec_batch.common.errors import SegrecError


class _Format:
    """How messages of this process look: one at a time, chosen by `run_command`."""

    json = False
    bound: dict[str, Any] = {}  # noqa: RUF012 - replaced as a whole, never changed


def add_log_format(parser: argparse.ArgumentParser) -> None:
    """The option of a command whose messages `run_command` may be told to write as JSON."""
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: messages are lines of JSON on stderr, without bars and tables (default: text)",
    )


def writes_json() -> bool:
    """Whether messages are for programs, and results as tables not wanted."""
    return _Format.json


def bind(**fields: Any) -> None:
    """What every message in JSON carries from now on, such as `run_id`."""
    _Format.bound = {**_Format.bound, **fields}


def say(text: str, level: str = "info", event: str = "message", **figures: Any) -> None:
    """One message on stderr. In text a warning or an error says so, and figures are left out."""
    line = encoding.escape_message(text if level == "info" else f"{level}: {text}")
    if _Format.json:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        entry = {"time": now, "level": level, "event": event, "message": text}
        told = {**entry, **_Format.bound, **figures}
        line = encoding.encode_json(
            {k: encoding.redact(v) if isinstance(v, str) else v for k, v in told.items()}
        )
    print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece: threads speak, too


def run_command(command: Callable[[], None], log_format: str = "text") -> int:
    """Run a command and return its exit code.

    It is 0, 1 for an error, 130 for Ctrl-C, 141 if nobody reads the output any more, as with
    `| head`. An error ends in one message. Of one that is not a SegrecError the traceback is in the
    JSON, and on stderr if the environment has SEGREC_TRACEBACK.
    """
    with _formatted(log_format):
        try:
            command()
            sys.stdout.flush()
        except SegrecError as error:
            say(str(error), "error", "failed", error=type(error).__name__)
            return 1
        except KeyboardInterrupt:
            say("interrupted", event="interrupted")
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
            return 141
        except Exception as error:
            trace = _trace(error)
            say(_unforeseen(error), "error", "failed", error=type(error).__name__, traceback=trace)
            if _TRACEBACK in os.environ and not _Format.json:
                print(encoding.redact(trace), file=sys.stderr)
            return 1
    return 0


def _unforeseen(error: Exception) -> str:
    """Return what an error that is not a SegrecError means, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"memory ran out ({text or 'MemoryError'}): free some, or give the command less work"
    # of os.getcwd()
    if isinstance(error, FileNotFoundError) and error.errno is not None and not error.filename:
        return "the current directory does not exist any more: change to one that does"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the operating system refuses: {text}{_HINTS.get(error.errno, '')}"
    return (
        f"{type(error).__name__}: {text}; this is a fault of segrec_batch: please report it, with "
        f"what {_TRACEBACK}=1 prints"
    )


_TRACEBACK = "SEGREC_TRACEBACK"
_HINTS = {
    errno.EFBIG: "; `ulimit -f` bounds the size of files",
    errno.EMFILE: "; `ulimit -n` bounds how many files are open",
    errno.ENOSPC: "; TMPDIR names the folder of temporary files",
}


def adopt(*loggers: str) -> None:
    """What libraries log on stderr by handlers of their own become messages, if these are JSON."""
    if _Format.json:
        for logger in map(logging.getLogger, loggers):
            own = [h for h in logger.handlers if not isinstance(h, logging.StreamHandler)]
            logger.handlers, logger.propagate = own, True


@contextmanager
def _formatted(log_format: str) -> Iterator[None]:
    """Messages in a format; in JSON those of libraries and Python's warnings as well."""
    if log_format != "json":
        yield
        return
    root, handler = logging.getLogger(), _Libraries(logging.WARNING)
    _Format.json = True
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        with _descriptor_read():
            yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        _Format.json, _Format.bound = False, {}


@contextmanager
def _descriptor_read() -> Iterator[None]:
    """What libraries write past Python on descriptor 2, as Ray's core does, becomes messages."""
    python, (end, pipe), kept = sys.stderr, os.pipe(), os.dup(2)
    os.dup2(pipe, 2)
    os.close(pipe)
    reader = threading.Thread(target=_repeat, args=(end,), daemon=True)
    reader.start()
    with os.fdopen(kept, "w") as past:
        if python is sys.__stderr__:
            sys.stderr = past
        try:
            yield
        finally:
            os.dup2(kept, 2)
            reader.join(1)  # a child that lives on would hold the pipe open
            sys.stderr = python


def _repeat(descriptor: int) -> None:
    with os.fdopen(descriptor, errors="replace") as lines:
        for line in lines:
            say(line.rstrip(), event="log", logger="stderr")


class _Libraries(logging.Handler):
    """Says what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        trace = {"traceback": _trace(record.exc_info[1])} if record.exc_info else {}
        say(record.getMessage(), level, "log", logger=record.name, **trace)


def _trace(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error))
