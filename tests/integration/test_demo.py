"""Tests of `make demo`: weights from servers on this machine only, and stopping."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from examples.demo_weights import Limits, choose_weights
from tests.support.commands import ROOT, exit_code

PROGRAM = "examples/demo_weights.py"
BODY = bytes(range(256)) * 10_000
NAME = f"vgg16-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"
PATIENT = Limits(connect=60, total=60)
Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this machine are asked directly."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def send(request: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(BODY)))
    request.end_headers()
    request.wfile.write(body)


def trickle(request: BaseHTTPRequestHandler) -> None:
    send(request, b"")
    try:
        while True:
            request.wfile.write(b"x")
            time.sleep(0.1)
    except OSError:
        pass  # the client has gone


def stall(request: BaseHTTPRequestHandler) -> None:
    send(request, BODY[:1000])
    request.rfile.read(1)  # until the client goes


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """The URL of a file that a server answers for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/models/{NAME}"
        finally:
            http.shutdown()
            thread.join()


def refusing_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as gone:
        return int(gone.getsockname()[1])


def test_download_happens_once(tmp_path: Path) -> None:
    requests = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        requests.append(request.path)
        send(request, BODY)

    cache = tmp_path / "hub" / "checkpoints"
    with server(answer) as url:
        assert choose_weights(url, cache, PATIENT) == "imagenet"
        assert choose_weights(url, cache, PATIENT) == "imagenet"
    assert requests == [f"/models/{NAME}"]
    assert [path.name for path in cache.iterdir()] == [NAME]
    assert (cache / NAME).read_bytes() == BODY


@pytest.mark.parametrize(
    ("answer", "limits", "reason"),
    [
        (trickle, Limits(connect=5, total=5), "takes longer than 5 s"),
        (stall, Limits(connect=3, total=60), "timed out"),
        (lambda request: send(request, BODY[::-1]), PATIENT, "not the file that its name promises"),
        (lambda request: send(request, BODY[:-1]), PATIENT, "not the file that its name promises"),
        (lambda request: send(request, b"", 404), PATIENT, "404"),
        (lambda request: request.wfile.write(b"no HTTP\n"), PATIENT, "no HTTP"),
    ],
    ids=["trickles", "stalls", "wrong", "short", "absent", "garbage"],
)
def test_failed_download_leaves_nothing(
    answer: Answer,
    limits: Limits,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = time.monotonic()
    with server(answer) as url:
        assert choose_weights(url, tmp_path, limits) == "random:0"
        seconds = time.monotonic() - start
    assert seconds < max(limits.connect, min(limits.total, 15)) + 15
    assert not list(tmp_path.iterdir())
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning.startswith("warning: no ImageNet weights (")
    assert reason in warning
    assert "make demo WEIGHTS=PATH" in warning


def test_download_gives_up_on_silent_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/{NAME}"
        start = time.monotonic()
        assert choose_weights(url, tmp_path, Limits(connect=1, total=60)) == "random:0"
        assert time.monotonic() - start < 15
    assert not list(tmp_path.iterdir())
    assert f"no answer from {url} in 1 s" in capsys.readouterr().err


def test_download_limit_without_socket_timeout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe that nobody writes to blocks in open(), as name resolution may block."""
    pipe, cache = tmp_path / NAME, tmp_path / "cache"
    os.mkfifo(pipe)
    start = time.monotonic()
    assert choose_weights(pipe.as_uri(), cache, Limits(connect=2, total=60)) == "random:0"
    assert time.monotonic() - start < 15
    assert not list(cache.iterdir())
    assert "no answer from" in capsys.readouterr().err


def test_unwritable_cache_falls_back_to_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    url = f"http://127.0.0.1:{refusing_port()}/{NAME}"
    assert choose_weights(url, blocked / "checkpoints", PATIENT) == "random:0"
    assert "Not a directory" in capsys.readouterr().err


def test_weights_of_torch_hub_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "vgg16-397923af.pth").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{refusing_port()}")
    assert exit_code(PROGRAM, "auto") == 0
    assert capsys.readouterr() == ("imagenet\n", "")


def test_random_weights_are_explained(tmp_path: Path) -> None:
    proxy = f"http://127.0.0.1:{refusing_port()}"
    completed = subprocess.run(
        [sys.executable, PROGRAM, "auto"],
        cwd=ROOT,
        env={**os.environ, "https_proxy": proxy, "TORCH_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout == "random:0\n"
    (line,) = completed.stderr.splitlines()
    assert "vgg16-397923af.pth: [Errno 111] Connection refused" in line


@pytest.mark.parametrize("choice", ["imagenet", "random:7", "no/such file.pth"])
def test_explicit_weights_have_no_substitute(
    choice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(PROGRAM, choice) == 0
    assert capsys.readouterr() == (f"{choice}\n", "")


def make(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run make on the project's Makefile in a folder; its virtual environment counts as ready."""
    return subprocess.run(
        ["make", "-f", ROOT / "Makefile", "-o", ".venv/ready", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_demo_dry_run(tmp_path: Path) -> None:
    shown = make(tmp_path, "-n", "demo", "WEIGHTS=my weights.pth")
    assert shown.returncode == 0
    assert 'examples/demo_weights.py "my weights.pth"' in shown.stdout
    assert not list(tmp_path.iterdir())


def test_make_demo_stops_at_failing_step(tmp_path: Path) -> None:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    stub = programs / "segrec"
    stub.write_text(
        '#!/bin/sh\necho "$*" >> steps\necho random:0\n[ "$(wc -l < steps)" -ne "$FAILING" ]\n'
    )
    stub.chmod(0o755)
    shutil.copy(stub, programs / "python")
    steps = tmp_path / "steps"

    def run(failing: int) -> tuple[int, list[str]]:
        steps.unlink(missing_ok=True)
        code = make(tmp_path, "demo", f"FAILING={failing}").returncode
        return code, steps.read_text().splitlines()

    code, whole = run(0)
    assert code == 0
    assert len(whole) == 9
    assert "--backbone-weights random:0" in whole[2]
    for failing in range(1, len(whole) + 1):
        assert run(failing) == (2, whole[:failing])
