"""Tests of `make sbom`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.head_node import ROOT

PIN = re.compile(
    r"^([\w.-]+)==(\S+)(?: ;.*)? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)


@pytest.mark.slow
def test_sbom_equals_lock_file(tmp_path: Path) -> None:
    made = tmp_path / "sbom.json"
    subprocess.run(
        ["make", "sbom", f"SBOM={made}", f"PYTHON={sys.executable}"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
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
