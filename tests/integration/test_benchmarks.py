"""Tests of the benchmarks: each starts, and those for a GPU run without Ray and its neighbours."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.bare_network import count_operations
from benchmarks.common.timed_parts import Part, run_part
from segrec_batch.model.backbones.vgg import VGG16_LAYERS as LAYERS
from segrec_batch.model.network import Backbone
from segrec_batch.model.weights import load_weights
from tests.support.commands import exit_code

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "benchmarks").rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)
# packages that a machine with a GPU may lack
ABSENT = ("ray", "duckdb", "deltalake", "s3fs", "aiohttp", "botocore", "cv2", "skimage", "ncnn")


def without(folder: Path) -> dict[str, str]:
    """Return an environment in which the ABSENT packages cannot be imported."""
    for name in ABSENT:
        (folder / f"{name}.py").write_text("raise ModuleNotFoundError(__name__)")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.parametrize("program", PROGRAMS)
def test_benchmark_help_states_comparison(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(f"-m {program}", "--help") == 0
    text = capsys.readouterr().out
    assert "examples:" in text or f"python -m {program} " in text


def test_benchmarks_readme_names_every_program() -> None:
    readme = (ROOT / "benchmarks/README.md").read_text()
    assert len(PROGRAMS) > 10
    assert [program for program in PROGRAMS if f"`python -m {program}" not in readme] == []


@pytest.mark.parametrize("program", ["gpu", "engines"])
def test_benchmark_refuses_unknown_part(program: str) -> None:
    assert exit_code(f"-m benchmarks.{program}", "--only=tea") == 2


@pytest.mark.parametrize("shape", [(224, 224), (544, 720), (32, 48)])
def test_count_operations_agrees_with_torch(shape: tuple[int, int]) -> None:
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
def test_run_part_keeps_rows_of_any_ending(
    step: str,
    status: str,
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
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


def test_run_part_without_time_is_not_run() -> None:
    outcome = run_part(Part("late", "nowhere:nothing", 60, needs=10), None, 9)
    assert outcome.status == "not run: out of time"
    assert not outcome.has_failed


@pytest.mark.slow
def test_gpu_benchmark_rehearses_on_cpu(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--device", "cpu", "--small", "--only", "peak,bare,decode"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options, "--report", str(report)],
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
def test_engines_benchmark_agrees_with_torch(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--shapes", "48x32", "--repeat", "1", "--threads", "1", "--report", str(report)]
    options += ["--workdir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.engines", *options],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    result = json.loads(report.read_text())
    others = [row for row in result["rows"] if row["engine"] != "torch-float32"]
    assert {row["engine"] for row in others} | set(result["skipped"]) == {
        "torch-bfloat16", "ncnn", "mnn",
    }  # fmt: skip
    for row in others:
        bound = 0.05 if row["engine"] == "torch-bfloat16" else 1e-3
        assert max(row[tap] for tap in ("conv3_3", "conv4_3", "conv5_3")) < bound
        assert row["pearson"] > 0.999


@pytest.mark.slow
def test_throughput_benchmark_runs_without_ray(
    scenes: Path, model_dir: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    images = str(scenes / "images" / "place_00")
    options = ["--without-ray", "--only", "b", "--repeat", "1", "--count", "2", "--device", "cpu"]
    options += ["--batch-size", "2", "--workdir", str(tmp_path), "--report", str(report)]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.throughput",
            "--images",
            images,
            "--model",
            model_dir,
            *options,
        ],
        cwd=ROOT,
        env=without(tmp_path),
        check=True,
    )
    (result,) = json.loads(report.read_text())
    (run,) = result["runs"].values()
    assert run["whole"][0] > 0  # two runs, of two and of four images, which count them
