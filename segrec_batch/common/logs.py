"""Logging of the commands: messages on stderr as text or as lines of JSON, and exit codes.

Modules log to `logging.getLogger(__name__)` and pass the values of an event as `extra`. A command
runs in `run_command`, the only place that adds a handler. With `--log-format json` each message is
one JSON object with the keys time (ISO 8601, UTC), level (info, warning, error), event, message,
the fields set by `bind`, and the values of the event; progress bars are off. `--quiet` leaves
warnings and errors only.
"""

import datetime as dt
import errno
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pythonjsonlogger.core import BaseJsonFormatter

from segrec_batch.common import encoding
from segrec_batch.common.errors import SegrecError

log = logging.getLogger(__name__)

_PACKAGE = __name__.partition(".")[0]
_TRACEBACK = "SEGREC_TRACEBACK"  # environment variable: print the traceback of unexpected errors
_HINTS = {
    errno.EFBIG: "; `ulimit -f` bounds the size of files",
    errno.EMFILE: "; `ulimit -n` bounds how many files are open",
    errno.ENOSPC: "; TMPDIR names the folder of temporary files",
}


class _TextFormatter(logging.Formatter):
    """Formatter of messages as text; the level precedes warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        level = _get_level(record)
        text = record.getMessage() if level == "info" else f"{level}: {record.getMessage()}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return encoding.escape_message(text)


class _JsonFormatter(BaseJsonFormatter):
    """Formatter of messages as one line of JSON, without credentials."""

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Fill in time, level, event, message, bound fields and values, in this order."""
        is_own = record.name.partition(".")[0] in (_PACKAGE, "__main__")
        time = dt.datetime.fromtimestamp(record.created, dt.UTC)
        log_data["time"] = time.isoformat(timespec="milliseconds")
        log_data["level"] = _get_level(record)
        log_data["event"] = "message" if is_own else "log"
        log_data["message"] = record.message
        log_data |= self.defaults
        if not is_own:
            log_data["logger"] = record.name
        trace = message_dict.pop("exc_info", None)
        super().add_fields(log_data, record, message_dict)
        if trace:
            log_data["traceback"] = trace

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Encode the fields, without credentials."""
        fields = {k: encoding.redact(v) if isinstance(v, str) else v for k, v in log_data.items()}
        return encoding.encode_json(fields)


def _get_level(record: logging.LogRecord) -> str:
    if record.levelno >= logging.ERROR:
        return "error"
    return "warning" if record.levelno >= logging.WARNING else "info"


class _Handler(logging.Handler):
    """Handler that looks up `sys.stderr` for each message, since progress bars replace it."""

    def __init__(self, log_format: str) -> None:
        super().__init__()
        self.is_json = log_format == "json"
        self.setFormatter(_JsonFormatter() if self.is_json else _TextFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record in one call, so that messages of threads do not mix."""
        try:
            print(f"{self.format(record)}\n", end="", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def _find_handler() -> _Handler | None:
    """Return the installed handler; None if there is none."""
    return next((h for h in logging.getLogger().handlers if isinstance(h, _Handler)), None)


def writes_json() -> bool:
    """Return whether messages are JSON; commands then print no tables."""
    handler = _find_handler()
    return handler is not None and handler.is_json


def bind(**fields: Any) -> None:
    """Add fields, such as `run_id`, to every JSON message from now on."""
    handler = _find_handler()
    if handler and isinstance(handler.formatter, _JsonFormatter):
        handler.formatter.defaults = {**handler.formatter.defaults, **fields}


def adopt_loggers(*names: str) -> None:
    """Write messages of libraries with their own stderr handlers as JSON, too."""
    if writes_json():
        for logger in map(logging.getLogger, names):
            other_handlers = [
                h for h in logger.handlers if not isinstance(h, logging.StreamHandler)
            ]
            logger.handlers, logger.propagate = other_handlers, True


@contextmanager
def configure_logging(log_format: str = "text", is_quiet: bool = False) -> Iterator[None]:
    """Write messages to stderr while the block runs.

    Messages of libraries, and Python's warnings with JSON, are written from level warning upwards.
    """
    root, package = logging.getLogger(), logging.getLogger(_PACKAGE)
    previous, level, handler = _find_handler(), package.level, _Handler(log_format)
    if previous:
        root.removeHandler(previous)
    root.addHandler(handler)
    package.setLevel(logging.WARNING if is_quiet else logging.INFO)
    with ExitStack() as stack:
        if handler.is_json:
            logging.captureWarnings(True)
            stack.callback(logging.captureWarnings, False)
            stack.enter_context(_log_stderr())
        try:
            yield
        finally:
            stack.close()
            package.setLevel(level)
            root.removeHandler(handler)
            if previous:
                root.addHandler(previous)


@contextmanager
def _log_stderr() -> Iterator[None]:
    """Log the lines that libraries, such as Ray's core, write directly to file descriptor 2."""
    python_stderr, (end, pipe), duplicate = sys.stderr, os.pipe(), os.dup(2)
    os.dup2(pipe, 2)
    os.close(pipe)
    reader = threading.Thread(target=_log_lines, args=(end,), daemon=True)
    reader.start()
    with os.fdopen(duplicate, "w") as terminal:
        if python_stderr is sys.__stderr__:
            sys.stderr = terminal
        try:
            yield
        finally:
            os.dup2(duplicate, 2)
            reader.join(1)  # a child that still runs keeps the pipe open
            sys.stderr = python_stderr


def _log_lines(descriptor: int) -> None:
    with os.fdopen(descriptor, errors="replace") as lines:
        for line in lines:
            log.info(line.rstrip(), extra={"event": "log", "logger": "stderr"})


def run_command(
    command: Callable[[], None], log_format: str = "text", is_quiet: bool = False
) -> int:
    """Run a command and return its exit code.

    Returns:
        0; 1 after an error; 130 after Ctrl-C; 141 if stdout was closed, as by `| head`.
        An error is logged as one message. If it is not a SegrecError, its traceback is in the JSON,
        and on stderr if SEGREC_TRACEBACK is set.
    """
    with configure_logging(log_format, is_quiet):
        try:
            command()
            sys.stdout.flush()
        except SegrecError as error:
            log.error(str(error), extra={"event": "failed", "error": type(error).__name__})
            return 1
        except KeyboardInterrupt:
            log.info("interrupted", extra={"event": "interrupted"})
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed at exit
            return 141
        except Exception as error:
            _log_unexpected(error)
            return 1
    return 0


def _log_unexpected(error: Exception) -> None:
    trace = "".join(traceback.format_exception(error))
    fields = {"event": "failed", "error": type(error).__name__, "traceback": trace}
    log.error(_explain(error), extra=fields)
    if _TRACEBACK in os.environ and not writes_json():
        print(encoding.redact(trace), file=sys.stderr)


def _explain(error: Exception) -> str:
    """Return an explanation of an unexpected error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"memory ran out ({text or 'MemoryError'}): free some, or give the command less work"
    # raised by os.getcwd()
    if isinstance(error, FileNotFoundError) and error.errno is not None and not error.filename:
        return "the current directory does not exist any more: change to one that does"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the operating system refuses: {text}{_HINTS.get(error.errno, '')}"
    return (
        f"{type(error).__name__}: {text}; this is a fault of segrec_batch: please report it, with "
        f"what {_TRACEBACK}=1 prints"
    )
