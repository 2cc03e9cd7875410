"""An HTTP server of this machine with one file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class FileServer:
    """A file at a URL.

    path: below the server.
    body: content of the file.
    length: that the server announces; None announces that of the body.
    requests: paths that clients requested.
    """

    path: str
    body: bytes
    length: int | None = None
    url: str = ""
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve_file(path: str, body: bytes, length: int | None = None) -> Iterator[FileServer]:
    """Serve one file on 127.0.0.1; other paths are not found."""
    server = FileServer(path, body, length)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append(self.path)
            if self.path != server.path:
                self.send_error(404)
                return
            self.send_response(200)
            announced = len(server.body) if server.length is None else server.length
            self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(server.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}{path}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
