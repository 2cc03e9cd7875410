"""Paths of the repository and of the modules of the package."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGE = ROOT / "segrec_batch"

MODULES = sorted(PACKAGE.rglob("*.py"))
