"""Limits of untrusted SQL: time, memory, and bytes of its result."""

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from segrec_batch.common.console import every
from segrec_batch.common.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Limits of untrusted SQL: seconds until its result is complete, and bytes of the result."""

    seconds: float = 600
    result_bytes: int = 4 * 2**30


@contextmanager
def time_limit(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt the statement of a connection after `seconds`, and raise InputError."""
    done, late = threading.Event(), threading.Event()

    def interrupt() -> None:
        if done.wait(seconds):
            return
        late.set()
        while not done.wait(0.2):  # repeatedly: DuckDB drops an interrupt when it begins to execute
            connection.interrupt()

    watch = threading.Thread(target=interrupt, daemon=True)
    watch.start()
    try:
        yield
        if late.is_set():
            raise _timeout_error(seconds)
    except (duckdb.Error, InputError) as error:
        raise (_timeout_error(seconds) if late.is_set() else error) from error
    finally:
        done.set()
        watch.join()


def _timeout_error(seconds: float) -> InputError:
    return InputError(
        f"SQL: no answer after {seconds:g} s; say --timeout for more, or ask for less"
    )


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Limit the memory that this process may add to `size` bytes, on Linux.

    DuckDB's `memory_limit` does not count plans and long texts. Of several limits at a time, nested
    or in other threads, the lowest holds.
    """
    with _limits_changing:
        if not _limits:
            _limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
        limit = _address_space() + size if _STATM.exists() else resource.RLIM_INFINITY
        _limits.append(limit)
        _limit_to_lowest()
    try:
        yield
    finally:
        with _limits_changing:
            _limits.remove(limit)
            _limit_to_lowest()
            if len(_limits) == 1:
                _limits.clear()


_STATM = Path("/proc/self/statm")
_limits: list[int] = []  # of the address space in bytes; the first is that of the system
_limits_changing = threading.Lock()


def _limit_to_lowest() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    finite = [limit for limit in (*_limits, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(finite, default=resource.RLIM_INFINITY), hard))


def _address_space() -> int:
    return int(_STATM.read_text().split()[0]) * resource.getpagesize()


@contextmanager
def exit_after(seconds: float) -> Iterator[None]:
    """End the process, with exit code 1 and a message, if the block takes longer than `seconds`.

    DuckDB cannot be interrupted while it plans, and a short text can have an endless plan.
    """

    def end() -> None:
        text = f"error: SQL: given up after {seconds:g} s: it cannot be planned; ask for less\n"
        os.write(2, text.encode())
        os._exit(1)

    with every(seconds, end):
        yield
