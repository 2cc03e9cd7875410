"""benchmarks/throughput.py starts, and runs without Ray and the libraries beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import exit_code

ROOT = Path(__file__).parents[1]
PROGRAM = "benchmarks/throughput.py"
# what a machine that is there for its GPU may lack
ABSENT = ("ray", "duckdb", "deltalake", "s3fs", "aiohttp", "botocore", "cv2", "skimage")


def without(folder: Path) -> dict[str, str]:
    """An environment in which nothing can import these."""
    for name in ABSENT:
        (folder / f"{name}.py").write_text("raise ModuleNotFoundError(__name__)")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def test_help_says_what_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert exit_code(PROGRAM, "--help") == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.slow
def test_the_stages_run_without_ray(scenes: Path, model_dir: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    images = str(scenes / "images" / "place_00")
    options = ["--without-ray", "--only", "b", "--repeat", "1", "--count", "2", "--device", "cpu"]
    options += ["--batch-size", "2", "--workdir", str(tmp_path), "--report", str(report)]
    subprocess.run(
        [sys.executable, PROGRAM, "--images", images, "--model", model_dir, *options],
        cwd=ROOT,
        env=without(tmp_path),
        check=True,
    )
    (run,) = json.loads(report.read_text())["runs"].values()
    assert run["whole"][0] > 0  # two runs, of two and of four pictures, which count them
