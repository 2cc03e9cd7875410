"""Tests of the sandbox: a crash, hang or kill of the decoder fails only its image."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from segrec_batch.common.errors import DecoderError, ImageError
from segrec_batch.images import decode as d
from segrec_batch.images import sandbox as s
from tests.support.builders import encoded, smooth_pixels

SHAPES = d.shapes_of_size(64, 16)
GOOD = encoded(smooth_pixels(48, 80), "PNG")
POISON = """
import ctypes, mmap, os, re, signal, sys, time, warnings
from pathlib import Path
from segrec_batch.images.decode import decode as real
from segrec_batch.common.errors import ImageError

with (Path(__file__).parent / "marks").open("r+b") as file:  # what a child may write to later
    MARKS = mmap.mmap(file.fileno(), 2)

def decode(data, shapes):
    match data.split(b" "):
        case [b"segfault"]:
            ctypes.string_at(0)
        case [b"abort"]:
            os.abort()
        case [b"killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case [b"killed-once", *rest]:
            MARKS[0] += 1
            if MARKS[0] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            data = b" ".join(rest)
        case [b"exit"]:
            sys.exit(3)
        case [b"raise"]:
            raise KeyError
        case [b"memory"]:
            blocks = [bytearray(2**20) for _ in range(2**12)]
        case [b"one-large-block"]:
            bytearray(2**32)
        case [b"regex"]:  # C code that never looks at Python's signal handlers
            re.match(r"(a+)+$", "a" * 50 + "b")
        case [b"hang"]:
            MARKS[1] += 1
            time.sleep(1000)
        case [b"stop-the-clock"]:
            signal.setitimer(signal.ITIMER_REAL, 0)
            time.sleep(1000)
        case [b"noise"]:
            print("out"), print("err", file=sys.stderr), warnings.warn("warning")
            os.write(1, b"1"), os.write(2, b"2")
            raise ImageError("decode", "said")
        case [b"modules"]:
            raise ImageError("decode", " ".join(sys.modules))
    return real(data, shapes)
"""


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on this process's path, and so on that of its sandboxes."""
    (tmp_path / "poison.py").write_text(POISON)
    (tmp_path / "marks").write_bytes(bytes(2))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def box(poison: Path) -> Iterator[s.Sandbox]:
    with s.Sandbox(function="poison:decode", memory=2**29) as box:
        yield box


def _marks(folder: Path) -> bytes:
    """Return two counts: orders to die once, and orders to hang."""
    return (folder / "marks").read_bytes()


def _reason(box: s.Sandbox, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        box.decode(data, SHAPES)
    assert caught.value.stage == "decode"
    return caught.value.reason


def _children() -> set[int]:
    """Of this process, the dead that nobody waited for among them."""
    result = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # gone meanwhile
            continue
        if int(parent) == os.getpid():
            result.add(int(stat.parent.name))
    return result


def _is_gone(pid: int) -> bool:
    """No such process, or dead and nobody's child but init's."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _wait(seconds: float, until: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:
        time.sleep(0.02)
    return until()


@pytest.mark.parametrize("shapes", [SHAPES, d.shapes_of_size(224, 16)], ids=len)
def test_an_image_comes_out_as_without_a_sandbox(shapes: tuple[d.Shape, ...]) -> None:
    with s.Sandbox() as box:
        for size in [(48, 80), (80, 48), (1, 1), (700, 1100)]:
            data = encoded(smooth_pixels(*size), "JPEG")
            actual, expected = box.decode(data, shapes), d.decode(data, shapes)
            assert np.array_equal(actual.pixels, expected.pixels)
            assert (actual.width, actual.height) == (expected.width, expected.height)
            assert actual.format == "JPEG"
            assert actual.pixels.dtype == np.uint8
            assert actual.pixels.flags.writeable


def test_sandbox_keeps_reason_of_bad_image(box: s.Sandbox) -> None:
    for data in (b"", b"<html>", GOOD[: len(GOOD) // 2]):
        with pytest.raises(ImageError) as caught:
            d.decode(data, SHAPES)
        assert _reason(box, data) == caught.value.reason


def test_image_with_killed_decoders_is_retried_by_next_run(box: s.Sandbox) -> None:
    with pytest.raises(ImageError, match="killed twice; does this machine lack memory") as caught:
        box.decode(b"killed", SHAPES)
    assert caught.value.stage == "read"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"segfault", "decoder crashed (SIGSEGV)"),
        (b"abort", "decoder crashed (SIGABRT)"),
        (b"exit", "decoder crashed (exit code 3)"),
        (b"raise", "decoder crashed (exit code 1)"),
        (b"memory", "needs more than 0.5 GiB of memory"),
        (b"one-large-block", "needs more than 0.5 GiB of memory"),
    ],
)
def test_death_is_that_images_failure_and_no_other(
    box: s.Sandbox, data: bytes, reason: str
) -> None:
    assert box.decode(GOOD, SHAPES).width == 80
    assert _reason(box, data) == reason
    assert box.pid is None
    assert box.decode(GOOD, SHAPES).width == 80


@pytest.mark.usefixtures("poison")
def test_hang_outside_python_is_stopped() -> None:
    with s.Sandbox(function="poison:decode", seconds=1) as box:
        assert _reason(box, b"regex") == "took longer than 1 s"
        assert box.decode(GOOD, SHAPES).width == 80


def test_an_image_that_took_too_long_is_not_tried_again(poison: Path) -> None:
    with s.Sandbox(function="poison:decode") as box:
        box.decode(GOOD, SHAPES)
        started = time.monotonic()
        with pytest.raises(ImageError, match=r"took longer than 0\.3 s"):
            box.decode(b"hang", SHAPES, seconds=0.3)
        assert time.monotonic() - started < 20
        assert _marks(poison)[1] == 1
        assert box.decode(GOOD, SHAPES).width == 80


def test_parent_stops_child_that_stops_its_clock(
    poison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s, "_GRACE", 0.5)
    with s.Sandbox(function="poison:decode") as box:
        with pytest.raises(ImageError, match=r"took longer than 0\.3 s"):
            box.decode(b"stop-the-clock", SHAPES, seconds=0.3)
        assert box.pid is None


def test_a_child_that_something_else_killed_costs_nothing(box: s.Sandbox, tmp_path: Path) -> None:
    assert box.decode(b"killed-once " + GOOD, SHAPES).width == 80
    assert _marks(tmp_path)[0] == 2
    assert box.pid is not None
    os.kill(box.pid, signal.SIGKILL)  # while it waits
    assert box.decode(GOOD, SHAPES).width == 80


def test_the_same_child_serves_image_after_image(box: s.Sandbox) -> None:
    assert box.pid is None
    box.decode(GOOD, SHAPES)
    child = box.pid
    assert child is not None
    for _ in range(20):
        box.decode(GOOD, SHAPES)
        _reason(box, b"no image")
    os.kill(child, signal.SIGINT)  # Ctrl-C is the parent's affair
    box.decode(GOOD, SHAPES)
    assert box.pid == child
    box.close()
    assert _is_gone(child)


def test_many_deaths_leave_neither_descriptors_nor_zombies(box: s.Sandbox) -> None:
    descriptors, children = len(os.listdir("/proc/self/fd")), _children()  # noqa: PTH208
    for _ in range(10):
        assert "SIGSEGV" in _reason(box, b"segfault")  # two deaths each
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # noqa: PTH208
    assert _children() <= children


def test_an_interrupted_image_is_not_mistaken_for_the_next(box: s.Sandbox, tmp_path: Path) -> None:
    # in the background of a script, SIGINT is ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        _wait(20, lambda: _marks(tmp_path)[1] == 1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        box.decode(b"hang", SHAPES)
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert box.decode(GOOD, SHAPES).width == 80


def test_threads_get_each_their_own_image(box: s.Sandbox) -> None:
    sizes = [(16 + i, 90 - i) for i in range(40)]
    files = [encoded(smooth_pixels(*size), "BMP") for size in sizes]
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(lambda data: box.decode(data, SHAPES), files))
    assert [(p.height, p.width) for p in result] == sizes


def test_child_that_does_not_start_is_decoder_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    descriptors, children = len(os.listdir("/proc/self/fd")), _children()  # noqa: PTH208
    with (
        s.Sandbox(function="no_such_module:decode") as box,
        pytest.raises(DecoderError, match="does not start"),
    ):
        box.decode(GOOD, SHAPES)
    assert "no_such_module" in capfd.readouterr().err
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # noqa: PTH208
    assert _children() <= children


@pytest.mark.parametrize("kills", [2, 3])
def test_a_child_killed_while_it_starts_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    lives = tmp_path / "lives"
    lives.write_text("x" * kills)
    (tmp_path / "dies.py").write_text(f"""
import os, signal
from pathlib import Path
from segrec_batch.images.decode import decode
lives = Path({str(lives)!r})
if left := lives.read_text():
    lives.write_text(left[1:])
    os.kill(os.getpid(), signal.SIGKILL)
""")
    monkeypatch.syspath_prepend(tmp_path)
    with s.Sandbox(function="dies:decode") as box:
        if kills == s.STARTS:
            with pytest.raises(DecoderError, match=r"does not start .*SIGKILL"):
                box.decode(GOOD, SHAPES)
        assert box.decode(GOOD, SHAPES).width == 80


def test_child_is_quiet_and_imports_only_decoding(
    box: s.Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _reason(box, b"noise") == "said"
    assert tuple(capfd.readouterr()) == ("", "")
    heavy = {"torch", "ray", "duckdb", "deltalake", "sklearn", "pyarrow", "multiprocessing"}
    assert not heavy & set(_reason(box, b"modules").split())


@pytest.mark.parametrize("busy", [False, True])
def test_a_child_does_not_outlive_its_parent(poison: Path, busy: bool) -> None:
    then = "box.decode(b'hang', SHAPES)" if busy else "time.sleep(1000)"
    code = f"""
import sys, time
sys.path.insert(0, {str(poison)!r})
from segrec_batch.images.decode import shapes_of_size
from segrec_batch.images.sandbox import Sandbox
SHAPES = shapes_of_size(64, 16)
box = Sandbox(function="poison:decode", seconds=2)
box.decode({GOOD!r}, SHAPES)
print(box.pid, flush=True)
{then}
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if busy:
            assert _wait(20, lambda: _marks(poison)[1] == 1)
        assert not _is_gone(child)
        parent.kill()
    assert _wait(20, lambda: _is_gone(child))  # the limit is 2 s


def test_process_has_one_sandbox_and_ends_silently(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(GOOD)
    code = f"""
from pathlib import Path
from segrec_batch.images import sandbox
from segrec_batch.images.decode import shapes_of_size
data = Path({str(tmp_path / "good.png")!r}).read_bytes()
image = sandbox.shared().decode(data, shapes_of_size(64, 16))
assert sandbox.shared() is sandbox.shared()
print(sandbox.shared().pid)
"""
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert completed.stderr == ""
    assert _is_gone(int(completed.stdout))


def _run(code: str, folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    ).stdout


def test_child_starts_without_current_folder(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code = f"""
import os
os.rmdir(os.getcwd())
from segrec_batch.images import sandbox
from segrec_batch.images.decode import shapes_of_size
print(sandbox.shared().decode({GOOD!r}, shapes_of_size(64, 16)).width)
"""
    assert _run(code, tmp_path / "gone") == "80\n"


def test_a_fork_has_a_sandbox_of_its_own(tmp_path: Path) -> None:
    code = f"""
import os
from segrec_batch.images import sandbox
from segrec_batch.images.decode import shapes_of_size
def decoder():
    sandbox.shared().decode({GOOD!r}, shapes_of_size(64, 16))
    return sandbox.shared().pid
first = decoder()
if not os.fork():
    own = decoder()
    print(own != first, flush=True)
    sandbox.shared().close()
    os._exit(0)
os.wait()
print(decoder() == first)
"""
    assert _run(code, tmp_path) == "True\nTrue\n"


def test_child_started_early_is_ready_on_first_use() -> None:
    with s.Sandbox() as box:
        box.start()
        child = box.pid
        assert child is not None
        assert box.decode(GOOD, SHAPES).width == 80
        assert box.pid == child


def test_threads_that_borrow_decode_at_the_same_time(tmp_path: Path) -> None:
    code = f"""
import threading
from segrec_batch.images import sandbox
from segrec_batch.images.decode import shapes_of_size
both = threading.Barrier(2, timeout=20)
children = []
def decode():
    with sandbox.borrowed() as box:
        both.wait()
        assert box.decode({GOOD!r}, shapes_of_size(64, 16)).width == 80
        children.append(box.pid)
for _ in range(2):
    threads = [threading.Thread(target=decode) for _ in range(2)]
    [t.start() for t in threads], [t.join() for t in threads]
print(len(children), len(set(children)), sandbox.shared().pid in children)
"""
    assert _run(code, tmp_path) == "4 2 True\n"
