"""Feed every loader, and the guard of SQL, with nearly valid inputs, and check that they hold.

An example is a valid input, such as an index, with some of it changed; all of it follows from its
seed. What loads it may accept it or raise a SegrecError. Nothing else is right: another exception,
a crash of the process, more than 10 seconds of computing, a file written or altered, a process
started, a connection made, a pickle looked into; of SQL also a secret that comes out, and a setting
that changes. Each target runs in a process of its own, which is started again when it ends.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a command

EXAMPLES = """\
examples:
  python tests/support/fuzz.py --seconds 600
  python tests/support/fuzz.py --target index --seconds 3600 --seed 1000000 --keep /tmp/fuzz
  # one example again
  python tests/support/fuzz.py --target sql --seed 4711 --examples 1 --keep /tmp/fuzz
"""
TARGETS = ("json", "bundle", "session", "index", "cache", "sql")
COMPUTING = 10.0  # seconds of an example
WAITING = 60.0  # seconds that an example may last, on a machine that does other things
STARTING = 300.0  # seconds until a process is ready
ADDRESS_SPACE = 12 * 2**30  # bytes
FAILURES = 20  # of a target; then it is given up
_TARGET_IN = {name: f"{name.capitalize()}Target" for name in TARGETS}


@dataclass
class Outcome:
    """Outcome of the examples of a target. failures: text by seed, and the place of its input."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def examples(self) -> int:
        """Number of examples run."""
        return self.counts.total()


def fuzz(
    target: str,
    folder: Path,
    seconds: float,
    first: int = 0,
    examples: int | None = None,
    progress: bool = False,
) -> Outcome:
    """Run examples of a target, seed after seed, until the time is over.

    Args:
        folder: An empty folder; inputs of failures stay there, under `failed`.
        first: The seed of the first example.
        examples: How many there are at most.
    """
    outcome, start = Outcome(), time.monotonic()
    seed, last = first, None if examples is None else first + examples
    while seed != last and len(outcome.failures) < FAILURES:
        left = seconds - (time.monotonic() - start)
        if left <= 0:
            break
        seed = _run_worker(_Run(target, folder, left, seed, last), outcome, progress)
    outcome.seconds = time.monotonic() - start
    return outcome


@dataclass(frozen=True)
class _Run:
    """Task of a process: examples from `first` until before `last`, for some seconds."""

    target: str
    folder: Path
    seconds: float
    first: int
    last: int | None


def _run_worker(run: _Run, outcome: Outcome, progress: bool) -> int:
    """Run examples in a process, as long as it lives; returns the seed that comes next."""
    shutil.rmtree(run.folder / "work", ignore_errors=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.fuzz_sql"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, theirs), daemon=True)
    process.start()
    theirs.close()
    watched = psutil.Process(process.pid)
    seed, last_report, ready = run.first, time.monotonic(), False
    try:
        state, seed = _receive(ours, watched, STARTING, STARTING)
        while state != "end":
            ready = True
            state, what = _receive(ours, watched, COMPUTING, WAITING)
            if state == "failed":
                _keep(run.folder, run.target, seed, what, outcome)
            outcome.counts[state] += 1
            if progress and time.monotonic() - last_report > 5:
                last_report = time.monotonic()
                print(f"{run.target}: seed {seed}, {_figures(outcome)}", file=sys.stderr)
            state, seed = _receive(ours, watched, COMPUTING, WAITING)
    except (EOFError, ConnectionError, TimeoutError) as error:
        process.join(timeout=0 if isinstance(error, TimeoutError) else 10)
        log = (run.folder / "work" / "log").read_text("utf-8", "replace")
        if not ready:
            raise RuntimeError(f"{run.target} does not start: {log[-2000:]}") from error
        if process.exitcode == 1 and "error: SQL: given up after" in log:
            outcome.counts["given up"] += 1  # as `segrec sql` ends for a plan without end
        else:
            state = "hung" if isinstance(error, TimeoutError) else "crashed"
            text = f"{state}: {error or process.exitcode}\n{log[-2000:]}"
            _keep(run.folder, run.target, seed, text, outcome)
            outcome.counts[state] += 1
        return seed + 1
    finally:
        with suppress(psutil.NoSuchProcess):
            for child in [*watched.children(recursive=True), watched]:
                child.send_signal(signal.SIGKILL)
        process.join()
    return seed


def _receive(
    connection: Connection, process: psutil.Process, computing: float, waiting: float
) -> tuple[str, Any]:
    """The next message of a process. Raises TimeoutError if it computes or waits for too long."""
    start, before = time.monotonic(), _computed(process)
    while not connection.poll(0.5):
        if _computed(process) - before > computing or time.monotonic() - start > waiting:
            raise TimeoutError(f"{time.monotonic() - start:.0f} s")
    result: tuple[str, Any] = connection.recv()
    return result


def _computed(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _keep(folder: Path, target: str, seed: int, text: str, outcome: Outcome) -> None:
    """Save the input of a failure and say so."""
    place = folder / "failed" / f"{target}-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name in ("input", "statement.sql"):
        source = folder / "work" / name
        if source.is_dir():
            shutil.copytree(source, place / name, symlinks=True)
        elif source.exists():
            shutil.copy(source, place)
    (place / "error.txt").write_text(text)
    outcome.failures[seed] = text
    again = f"python tests/support/fuzz.py --target {target} --seed {seed} --examples 1"
    print(f"{target}: seed {seed} failed: {again}; its input: {place}\n{text}", file=sys.stderr)


def _work(run: _Run, connection: Connection) -> None:
    """Run examples one after the other and report each to the parent process."""
    from tests.support import fuzz_sql, fuzz_targets
    from tests.support.damage import Damage

    work = run.folder / "work"
    temporary = work / "tmp"
    temporary.mkdir(parents=True)
    log = os.open(work / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    watch = Watch(work, temporary)
    os.environ["AWS_ENDPOINT_URL"] = watch.address
    kind = getattr(fuzz_targets, _TARGET_IN[run.target], None) or fuzz_sql.SqlTarget
    outside = work / "outside"
    outside.mkdir()
    (outside / "canary").write_text("canary")
    hostile = [
        str(outside / "canary"), str(outside / "new"), f"file://{outside}/canary",
        f"{watch.address}/x.parquet", "s3://bucket/x.parquet", "/proc/self/environ", "/dev/zero",
        "../../outside/canary", f"simplecache::{watch.address}/x",
    ]  # fmt: skip
    target = kind(work, hostile)
    target.load()  # the valid input; what is imported on the way is no matter of an example
    limit_memory()
    until = time.monotonic() + run.seconds
    seed = run.first
    while seed != run.last and time.monotonic() < until:
        rng = random.Random(f"{run.target} {seed}")  # noqa: S311 - it has to repeat
        target.change(Damage(rng, hostile), rng)
        connection.send(("begin", seed))
        state, text = _example(target, watch)
        connection.send((state, text))
        if state == "failed":
            connection.send(("end", seed + 1))  # the rest in a new process
            time.sleep(STARTING)
        target.restore()
        seed += 1
    connection.send(("end", seed))
    time.sleep(STARTING)


def _example(target: Any, watch: "Watch") -> tuple[str, str]:
    from segrec_batch.common.errors import SegrecError

    state, text = "accepted", ""
    try:
        with watch.watching():
            target.load()
    except SegrecError:
        state = "refused"
    except BaseException:
        state, text = "failed", traceback.format_exc(limit=-12)
    if watch.found:
        state, text = "failed", "\n".join([*watch.found, text])
    return state, text


def limit_memory() -> None:
    """Let this process have no more than some gigabytes, and leave no core."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Watch:
    """Sees what a process does beside reading: by Python's audit events, by what changed in a
    folder, and by who came to a port.

    Args:
        folder: What must stay as it is.
        temporary: A folder in which anything may be written.
    """

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.found: list[str] = []
        self._folder = folder
        self._temporary = str(temporary)
        self._log = str(folder / "log")
        self._watching = False
        self._port = socket.create_server(("127.0.0.1", 0))
        self._port.setblocking(False)
        sys.addaudithook(self._see)

    @property
    def address(self) -> str:
        """Requests of a server that no input may cause."""
        return f"http://127.0.0.1:{self._port.getsockname()[1]}"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Write into `found` what the block does."""
        self.found.clear()
        before = self._files()
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            after = self._files()
            changed = {path for path, _ in before ^ after}
            self.found += [f"changed: {path}" for path in sorted(changed)]
            with suppress(BlockingIOError):
                self._port.accept()[0].close()
                self.found.append("somebody came to the port")

    def _files(self) -> set[tuple[str, tuple[int, ...]]]:
        result = set()
        for folder, _, names in os.walk(self._folder):
            if not folder.startswith(self._temporary):
                for name in names:
                    path = os.path.join(folder, name)  # noqa: PTH118 - for speed
                    at = os.lstat(path)
                    result.add((path, (at.st_ino, at.st_size, at.st_mtime_ns, at.st_mode)))
        return {(path, known) for path, known in result if path != self._log}

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching or event not in _EVENTS:
            return
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
            if not isinstance(path, str | bytes | os.PathLike):
                return  # a descriptor
            if os.fsdecode(path) == os.devnull:
                return
        if event in _OF_FILES:
            paths = [os.fsdecode(a) for a in arguments[:1] if isinstance(a, str | bytes)]
            if all(path.startswith((self._temporary, "/proc/self/")) for path in paths):
                return
        if event == "subprocess.Popen" and "segrec_batch.images.sandbox_child" in str(arguments[1]):
            return  # what decodes masks, confined
        self.found.append(f"{event} {str(arguments)[:300]}")


_OF_FILES = {
    "open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link",
    "os.symlink", "os.utime", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
_EVENTS = _OF_FILES | {
    "subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty",
    "os.spawn", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto",
    "pickle.find_class", "os.kill",
}  # fmt: skip


def _figures(outcome: Outcome) -> str:
    counts = ", ".join(f"{n:,} {state}" for state, n in sorted(outcome.counts.items()))
    return f"{outcome.examples:,} examples: {counts}"


def main() -> int:
    """Run the targets one after the other, print what came of them; 1 if any failed."""
    from segrec_batch.common import console

    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=form)
    parser.add_argument("--seconds", type=float, default=60, help="of each target (default: 60)")
    parser.add_argument("--target", choices=TARGETS, help="(default: one after the other)")
    parser.add_argument("--seed", type=int, default=0, help="of the first example (default: 0)")
    parser.add_argument("--examples", type=console.count, help="of each target, at most")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and leave it")
    a = parser.parse_args()
    folder = (a.keep or Path(tempfile.mkdtemp(prefix="segrec-fuzz-"))).absolute()
    failed = 0
    for target in [a.target] if a.target else TARGETS:
        place = folder / target
        place.mkdir(parents=True, exist_ok=True)
        outcome = fuzz(target, place, a.seconds, a.seed, a.examples, progress=True)
        failed += len(outcome.failures)
        figures = {
            "target": target,
            "seconds": round(outcome.seconds),
            "examples": outcome.examples,
            **outcome.counts,
            "failures": {seed: text.strip()[-200:] for seed, text in outcome.failures.items()},
        }
        print(json.dumps(figures), flush=True)
        if not a.keep:
            shutil.rmtree(place / "work", ignore_errors=True)
    if not failed and not a.keep:
        shutil.rmtree(folder)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
