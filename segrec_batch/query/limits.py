"""What SQL of others may take: time, memory, and bytes of its answer."""

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from segrec_batch.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What SQL of others may take: seconds until its answer is there, and bytes of the answer."""

    seconds: float = 600
    answer_bytes: int = 4 * 2**30


@contextmanager
def time_limit(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt what a connection runs after some seconds. Raises InputError then."""
    done, late = threading.Event(), threading.Event()

    def interrupt() -> None:
        if done.wait(seconds):
            return
        late.set()
        while not done.wait(0.2):  # again: DuckDB forgets it when it begins to execute
            connection.interrupt()

    watch = threading.Thread(target=interrupt, daemon=True)
    watch.start()
    try:
        yield
        if late.is_set():
            raise _too_late(seconds)
    except (duckdb.Error, InputError) as error:
        raise (_too_late(seconds) if late.is_set() else error) from error
    finally:
        done.set()
        watch.join()


def _too_late(seconds: float) -> InputError:
    return InputError(
        f"SQL: no answer after {seconds:g} s; say --timeout for more, or ask for less"
    )


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Let this process take so many bytes more, where the system counts them (Linux): plans and
    long texts are no part of what DuckDB's `memory_limit` is about. Of several threads the first
    one sets the limit, until the last one leaves.
    """
    with _Memory.lock:
        _Memory.users += 1
        if _Memory.users == 1:
            _Memory.before = resource.getrlimit(resource.RLIMIT_AS)
            _restrict(size, *_Memory.before)
    try:
        yield
    finally:
        with _Memory.lock:
            _Memory.users -= 1
            if not _Memory.users:
                resource.setrlimit(resource.RLIMIT_AS, _Memory.before)


class _Memory:
    """Limit of the process before the first of the threads that `memory_limit` holds now."""

    lock = threading.Lock()
    users = 0
    before = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def _restrict(size: int, soft: int, hard: int) -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + size
        least = [most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_AS, (min(least), hard))


@contextmanager
def last_resort(seconds: float) -> Iterator[None]:
    """End the process, with exit code 1 and a message, if the block takes longer.

    For commands: DuckDB cannot be interrupted while it plans, and a short text can have a plan
    without end.
    """
    done = threading.Event()

    def end() -> None:
        if not done.wait(seconds):
            text = f"error: SQL: given up after {seconds:g} s: it cannot be planned; ask for less\n"
            os.write(2, text.encode())
            os._exit(1)

    watch = threading.Thread(target=end, daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()
