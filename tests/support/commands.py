"""Programs of the project in this process: a start of Python and its imports take seconds."""

import runpy
import sys
from pathlib import Path

import pytest

from segrec_batch.cli import main as cli

ROOT = Path(__file__).parents[2]


def exit_code(program: str, *arguments: str) -> int:
    """Of `segrec`, or of a job by its path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as ended:
            _run(program)
    return int(ended.value.code or 0)


def _run(program: str) -> None:
    if program == "segrec":
        sys.exit(cli.main())
    runpy.run_path(str(ROOT / program), run_name="__main__")
