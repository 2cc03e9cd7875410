"""Programs of the project in this process: a start of Python and its imports take seconds."""

import runpy
import sys
from pathlib import Path

import pytest

from segrec_batch.cli import main as cli

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
