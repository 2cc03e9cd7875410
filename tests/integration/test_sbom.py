"""Tests of `make sbom`."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import find_program
from tests.support.head_node import ROOT

PIN = re.compile(
    r"^([\w.-]+)==(\S+)(?: ;.*)? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)


def recipe() -> str:
    """The command of the Makefile."""
    lines = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (found,) = re.findall(r"^sbom: .*\n\t(.*)$", lines, re.MULTILINE)
    return str(found)


@pytest.mark.slow
def test_sbom_equals_lock_file(tmp_path: Path) -> None:
    program = find_program("cyclonedx-py")
    made = tmp_path / "sbom.json"
    command = recipe().replace("$(BIN)/cyclonedx-py", program).replace("sbom.json", str(made))
    subprocess.run(["bash", "-c", command], cwd=ROOT, check=True, capture_output=True)
    bill = json.loads(made.read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "segrec-batch",
    )
    listed = {
        (c["name"], c["version"]): {
            h["content"] for r in c["externalReferences"] for h in r.get("hashes", ())
        }
        for c in bill["components"]
    }
    lock = (ROOT / "requirements.lock").read_text()
    locked = {
        (name, version): set(re.findall(r"[0-9a-f]{64}", hashes))
        for name, version, hashes in PIN.findall(lock)
    }
    assert len(locked) == len(re.findall(r"^[\w.-]+==", lock, re.MULTILINE)) > 100
    assert listed == locked
