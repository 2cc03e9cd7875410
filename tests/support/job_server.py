"""A process that runs jobs one after another with one Ray, whose start takes 10 s.

with JobServer(AWS_ENDPOINT_URL=…) as jobs:
    done = jobs.run("jobs/index.py", "--images", …)
    assert done.code == 0, done.err
    jobs.ray_folder  # Ray's session directory, logs in it

The arguments are the environment of the process, its Ray and its workers. `run(…, env={…})` changes
that of one job, but not of the workers, which already run.
"""

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.s3 import environment

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """A finished job: exit code, output and duration."""

    code: int
    out: str
    err: str
    seconds: float


class JobServer:
    """A process that runs jobs; as a context manager, it ends with the block."""

    def __init__(self, **env: str) -> None:
        self.ray_folder = Path(tempfile.mkdtemp(prefix="sr-", dir="/tmp"))  # sockets: 107 bytes
        self.log = self.ray_folder / "server.log"
        env = {**os.environ, "RAY_ADDRESS": "", "RAY_TMPDIR": str(self.ray_folder), **env}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.job_server"],
                cwd=ROOT, env=env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def run(
        self, *command: object, env: Mapping[str, str | None] | None = None, limit: float = 300
    ) -> Done:
        """Run a Python file with arguments; `limit` in seconds."""
        assert self._process.stdin
        assert self._process.stdout
        order = {"command": [str(c) for c in command], "env": dict(env or {})}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        watchdog = threading.Timer(limit, self._process.kill)
        watchdog.start()
        answer = self._process.stdout.readline()
        watchdog.cancel()
        assert answer, f"{command}: no end within {limit} s:\n{self.log.read_text()[-2000:]}"
        return Done(**json.loads(answer))


def _serve() -> None:
    from segrec_batch.distributed import cluster

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the responses
    with cluster.join():
        for line in sys.stdin:
            order = json.loads(line)
            start = time.monotonic()
            with environment(**order["env"]):
                done = _run(order["command"])
            print(json.dumps({**done, "seconds": time.monotonic() - start}), file=answers)
            answers.flush()


def _run(command: list[str]) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = command
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    _serve()
