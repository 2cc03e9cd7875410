"""Tests with fuzzed inputs; tests/support/fuzz.py runs for longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzz import TARGETS

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("SEGREC_FUZZ_SECONDS", "8"))  # of each target


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """Return the outcomes that the command prints, by target."""
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "fuzz.py")]
    done = subprocess.run(
        [*command, "--seconds", str(SECONDS), "--keep", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    result = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == any(line["failures"] for line in result), done.stderr
    return {line["target"]: line for line in result}


@pytest.mark.parametrize("target", TARGETS)
def test_fuzzed_input_is_read_or_refused(
    target: str, outcomes: dict[str, dict[str, object]]
) -> None:
    outcome = outcomes[target]
    assert outcome["failures"] == {}
    assert outcome["examples"]
