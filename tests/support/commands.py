"""Run programs of the project in this process, which saves the start of Python."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segrec_batch.cli import main as cli
from tests.support.head_node import BIN

ROOT = Path(__file__).parents[2]


def exit_code(program: str, *arguments: str) -> int:
    """Return the exit code of `segrec`, of a job by its path or of a module `-m NAME`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as ended:
            _run(program)
    return int(ended.value.code or 0)


def _run(program: str) -> None:
    if program == "segrec":
        sys.exit(cli.main())
    if program.startswith("-m "):
        runpy.run_module(program.removeprefix("-m "), run_name="__main__")
    runpy.run_path(str(ROOT / program), run_name="__main__")


ROOT = Path(__file__).parents[2]


def job(*command: object, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    completed = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert completed.returncode == expect, completed.stderr
    assert (expect == 0) or "Traceback" not in completed.stderr
    return completed


def find_program(name: str) -> str:
    """Return the path of a program; if it is missing, skip the test, or fail in CI."""
    program = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
    if program is None:
        missing = f"{name} is not installed"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    return program
