"""Benchmarks start, and those for a GPU run without Ray and the libraries beside it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segrec_batch.model.architecture import LAYERS
from segrec_batch.model.backbone import Backbone, load_weights
from tests.support.commands import exit_code

ROOT = Path(__file__).parents[2]
PROGRAM = "benchmarks/throughput.py"
PROGRAMS = (PROGRAM, *(f"benchmarks/{name}.py" for name in ("cold", "gpu", "engines")))
# what a machine that is there for its GPU may lack
ABSENT = ("ray", "duckdb", "deltalake", "s3fs", "aiohttp", "botocore", "cv2", "skimage", "ncnn")


def without(folder: Path) -> dict[str, str]:
    """An environment in which nothing can import these."""
    for name in ABSENT:
        (folder / f"{name}.py").write_text("raise ModuleNotFoundError(__name__)")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_says_what_is_compared(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(program, "--help") == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "option"), [("gpu.py", "--only=tea"), ("engines.py", "--only=tea")]
)
def test_unknown_parts_and_engines_are_refused(program: str, option: str) -> None:
    assert exit_code(f"benchmarks/{program}", option) == 2


@pytest.mark.parametrize("shape", [(224, 224), (544, 720), (32, 48)])
def test_operations_are_those_that_torch_counts(shape: tuple[int, int]) -> None:
    from bare import count_operations

    state = {name: tensor.to("meta") for name, tensor in load_weights("random:0").state.items()}
    with FlopCounterMode(display=False) as counter:
        Backbone(state, list(LAYERS))(torch.zeros(1, 3, *shape, device="meta"))
    assert count_operations(shape) == counter.get_total_flops()


STEPS = """
import os, subprocess, sys, time

def good(case):
    print("not on standard output")
    yield {"case": case}

def bad(case):
    yield {"case": case}
    raise ValueError("no such thing")

def dying(case):
    yield {"case": case}
    os._exit(7)

def hanging(case):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"pid": child.pid}
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("step", "status", "error"),
    [
        ("good", "done", ""),
        ("bad", "failed", "no such thing"),
        ("dying", "failed", "code 7"),
        ("hanging", "stopped: out of time", ""),
    ],
)
def test_a_part_keeps_its_rows_however_it_ends(
    step: str,
    status: str,
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from isolated import Part, run_part

    (tmp_path / "steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    limit = 8.0 if step == "hanging" else 60.0
    outcome = run_part(Part(step, f"steps:{step}", limit, 0), "a case", 60)
    assert outcome.status == status
    assert error in outcome.error
    assert bool(outcome.error) == bool(error)
    (row,) = outcome.rows
    assert row.get("case", "a case") == "a case"
    assert outcome.has_failed == (status == "failed")
    assert capfd.readouterr().out == ""
    if "pid" in row:
        assert any(_has_ended(row["pid"]) for _ in range(100))


def _has_ended(pid: int) -> bool:
    time.sleep(0.05)
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_part_without_time_is_not_run() -> None:
    from isolated import Part, run_part

    outcome = run_part(Part("late", "nowhere:nothing", 60, needs=10), None, 9)
    assert outcome.status == "not run: out of time"
    assert not outcome.has_failed


@pytest.mark.slow
def test_what_needs_no_gpu_is_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--device", "cpu", "--small", "--only", "peak,bare,decode"]
    subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *options, "--report", str(report)],
        cwd=ROOT,
        env=without(tmp_path),
        check=True,
    )
    parts = json.loads(report.read_text())["parts"]
    assert {part["status"] for part in parts.values()} == {"done"}
    rates = [row["images/s"] for row in parts["bare"]["rows"] if "images/s" in row]
    assert len(rates) == 2
    skipped = {row["variant"]: row["skipped"] for row in parts["bare"]["rows"] if "skipped" in row}
    assert set(skipped.values()) == {"needs CUDA"}
    assert {row["decoder"] for row in parts["decode"]["rows"] if "images/s" in row} >= {"Pillow"}


@pytest.mark.slow
def test_engines_agree_with_the_reference(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--shapes", "48x32", "--repeat", "1", "--threads", "1", "--report", str(report)]
    options += ["--workdir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run(
        [sys.executable, "benchmarks/engines.py", *options], cwd=ROOT, env=environment, check=True
    )
    found = json.loads(report.read_text())
    others = [row for row in found["rows"] if row["engine"] != "torch-float32"]
    assert {row["engine"] for row in others} | set(found["skipped"]) == {
        "torch-bfloat16", "ncnn", "mnn",
    }  # fmt: skip
    for row in others:
        bound = 0.05 if row["engine"] == "torch-bfloat16" else 1e-3
        assert max(row[tap] for tap in ("conv3_3", "conv4_3", "conv5_3")) < bound
        assert row["pearson"] > 0.999


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
    (found,) = json.loads(report.read_text())
    (run,) = found["runs"].values()
    assert run["whole"][0] > 0  # two runs, of two and of four images, which count them
