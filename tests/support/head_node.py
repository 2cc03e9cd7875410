"""A Ray head with a job server in a separate process, and requests to it.

with head_node(folder) as head:
    head.ray("job", "submit", "--", "true")

The head, its jobs and the clients take tests' interpreter for `python`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RAY = BIN / "ray"


@dataclass(frozen=True)
class Head:
    """A running head: `address` of its job server, `environment` for its clients, its `folder`."""

    address: str
    environment: Mapping[str, str]
    folder: Path

    def ray(self, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a `ray` command to its end; stdout includes stderr."""
        return subprocess.run(
            [RAY, *map(str, arguments)],
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    def statuses(self) -> dict[str, str]:
        """Return the status of each job by submission id."""
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("RAY_ADDRESS", raising=False)  # it takes precedence over --address
            jobs = JobSubmissionClient(self.address).list_jobs()
        return {job.submission_id: str(job.status) for job in jobs if job.submission_id}


@contextmanager
def head_node(**more: str) -> Iterator[Head]:
    """Run a head with two CPUs and an environment changed by `more`; end it by its pid."""
    with socket.socket() as a, socket.socket() as b:
        for s in (a, b):
            s.bind(("127.0.0.1", 0))
        gcs, dashboard = a.getsockname()[1], b.getsockname()[1]
    address = f"http://127.0.0.1:{dashboard}"
    environment = {**_environment(), **more}
    folder = tempfile.mkdtemp(prefix="segrec_ray_", dir="/tmp")  # sockets need a short path
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0",
        f"--temp-dir={folder}", "--num-cpus=2",
    ]  # fmt: skip
    with Path(folder, "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(f"{address}/api/version", head)
        yield Head(address, {**environment, "RAY_API_SERVER_ADDRESS": address}, Path(folder))
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)  # RAY_ADDRESS takes precedence over --address
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    return environment


def _end(head: subprocess.Popen[bytes]) -> None:
    """End a head; kill its children by pid, because it waits 30 s if they ignore SIGTERM."""
    children = psutil.Process(head.pid).children(recursive=True)
    head.send_signal(signal.SIGTERM)
    for child in psutil.wait_procs(children, timeout=1)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    head.wait(60)


def _wait_for(url: str, head: subprocess.Popen[bytes]) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:  # it responds that a token is missing
            return
        except OSError:
            assert head.poll() is None, "the head has ended"
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(url)
