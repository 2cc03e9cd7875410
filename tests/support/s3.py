"""A real S3 server for tests (Ceph), and a proxy in front of it that injects faults.


def test_it(s3: dict[str, str]) -> None:
    bucket = new_bucket()  # "s3://test-…"
    with FaultyProxy(s3["AWS_ENDPOINT_URL"]) as proxy, environment(**proxy.env):
        proxy.fault("slow_down", probability=0.2)
        ...
        assert proxy.faults["slow_down"]
"""

import http.client
import os
import random
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import pytest
from s3fs import S3FileSystem

from segrec_batch.sources import storage

CEPH = Path(__file__).with_name("ceph.sh")
CREDENTIALS = {  # values that occur nowhere else
    "AWS_ACCESS_KEY_ID": "SEGRECTESTKEY0815",
    "AWS_SECRET_ACCESS_KEY": "5egrecTest/Secret+0815",
}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run an S3 server; set its address and credentials in `os.environ` and yield them."""
    if not all(map(shutil.which, ("ceph-mon", "ceph-osd", "radosgw", "curl"))):
        pytest.skip("Ceph is missing (apt-get install ceph-mon ceph-osd radosgw curl)")
    with s3_server(tmp_path_factory.mktemp("ceph")) as env, environment(**env):
        yield env


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run Ceph with its data in `folder`; yield the environment for its clients."""
    up = subprocess.run(
        [CEPH, "up", folder, str(_free_ports())],
        env=os.environ | CREDENTIALS, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    try:
        yield dict(line.split("=", 1) for line in up.stdout.splitlines())
    finally:
        subprocess.run([CEPH, "down", folder], check=True)


def _free_ports() -> int:
    """Return the first of two consecutive free ports."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first, suppress(OSError):
            port: int = first.getsockname()[1]
            with socket.create_server(("127.0.0.1", port + 1)):
                return port


@contextmanager
def environment(**changes: str | None) -> Iterator[None]:
    """Set environment variables (None: unset) and drop the clients made with other values."""
    before = {name: os.environ.get(name) for name in changes}
    _update(changes)
    try:
        yield
    finally:
        _update(before)


def _update(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    S3FileSystem.clear_instance_cache()


def new_bucket() -> str:
    """Return the URI of a new, empty bucket."""
    uri = f"s3://test-{uuid.uuid4().hex[:12]}"
    fs, path = storage.filesystem(uri)
    fs.mkdir(path)
    return uri


def new_user(name: str) -> dict[str, str]:
    """Make a user without permissions on the running server; return the user's environment."""
    key, secret = f"KEY{uuid.uuid4().hex}", uuid.uuid4().hex
    command = ["radosgw-admin", "-n", "client.rgw.a", "user", "create", "--uid", name]
    command += ["--display-name", name, "--access-key", key, "--secret-key", secret]
    subprocess.run(command, capture_output=True, check=True)  # CEPH_CONF names the server
    return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}


def put(contents: dict[str, bytes]) -> None:
    """Write many objects, URI to content, at once."""
    fs, _ = storage.filesystem(next(iter(contents)))
    fs.pipe(contents)


Kind = Literal["slow_down", "error", "drop", "delay", "die"]
_ERRORS = {"slow_down": (503, "SlowDown"), "error": (500, "InternalError")}


@dataclass(frozen=True)
class _Fault:
    kind: Kind
    probability: float
    every: int
    method: str
    path: str
    seconds: float


class FaultyProxy:
    """A proxy that forwards HTTP requests to `upstream` unchanged, except for added faults.

    `requests` counts requests by method, `faults` by kind of fault; `env` directs clients here.
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._wanted: list[_Fault] = []
        self._matches: Counter[_Fault] = Counter()
        self._random = random.Random(seed)  # noqa: S311
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._port = 0
        self.revive()
        self.env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def fault(
        self,
        kind: Kind,
        *,
        probability: float = 0.0,
        every: int = 0,
        method: str = "",
        path: str = "",
        seconds: float = 0.0,
    ) -> None:
        """Add a fault, with a `probability` or for `every` n-th matching request.

        Requests match by `method` and a part of the `path`. Faults are 503 SlowDown, 500
        InternalError, a connection dropped in the middle of the response (the request took effect),
        a delay of `seconds`, or a server that stops before the request takes effect.
        """
        self._wanted.append(_Fault(kind, probability, every, method, path, seconds))

    def heal(self) -> None:
        """Remove all faults."""
        self._wanted = []

    def kill(self) -> None:
        """Stop the server: break open connections and refuse new ones."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()
            server.break_connections()

    def revive(self) -> None:
        """Start the server again at the same address."""
        if self._server is None:
            self._server = _Server(self, self._port)
            self._port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def draw(self, method: str, path: str) -> _Fault | None:
        """Count a request and return its fault."""
        with self._lock:
            self.requests[method] += 1
            for fault in self._wanted:
                if fault.method in ("", method) and fault.path in path:
                    self._matches[fault] += 1
                    turn = fault.every and self._matches[fault] % fault.every == 0
                    if turn or self._random.random() < fault.probability:
                        self.faults[fault.kind] += 1
                        return fault
        return None


class _Server(ThreadingHTTPServer):
    def __init__(self, proxy: FaultyProxy, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.proxy = proxy
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients and upstream can disconnect at any time


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive; the base class answers Expect: 100-continue
    disable_nagle_algorithm = True
    server: _Server

    def _relay(self) -> None:
        body = self._body()
        fault = self.server.proxy.draw(self.command, self.path)
        if fault and fault.kind in _ERRORS:
            status, code = _ERRORS[fault.kind]
            xml = f"<Error><Code>{code}</Code><Message>on order</Message></Error>"
            self._answer(status, [("Content-Type", "application/xml")], xml.encode())
            return
        if fault and fault.kind == "die":
            self.server.proxy.kill()
            return
        if fault and fault.kind == "delay":
            time.sleep(fault.seconds)
        upstream = http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect", "transfer-encoding"):
                    upstream.putheader(name, value)
            if "Transfer-Encoding" in self.headers:
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        cut = fault is not None and fault.kind == "drop"
        self._answer(answer.status, answer.getheaders(), content, cut)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = _relay  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False
    ) -> None:
        self.close_connection = self.close_connection or cut
        if cut and not content:
            return
        self.send_response_only(status)
        own = ["connection", "transfer-encoding"]
        if self.command != "HEAD" and status != 204:
            own.append("content-length")
            self.send_header("Content-Length", str(len(content)))
        for name, value in headers:
            if name.lower() not in own:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, format: str, *args: Any) -> None:
        pass
