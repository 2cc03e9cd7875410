"""Tests of `segrec doctor`: facts of this machine, problems, report."""

import importlib.metadata
import io
import json
import os
import platform
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest
import torch

import segrec_batch
from segrec_batch.cli import main as cli
from segrec_batch.common import host
from segrec_batch.common.host import Cores, Memory, Space, parse_cpuinfo
from segrec_batch.doctor import facts as doctor_facts
from segrec_batch.doctor import report as doctor_report
from segrec_batch.doctor.facts import VARIABLES, EngineRate, Facts, Gpu
from segrec_batch.doctor.problems import find_problems
from segrec_batch.doctor.report import Report
from segrec_batch.images.confinement import Confinement
from segrec_batch.images.sandbox import Sandbox
from segrec_batch.model import engine_choice, engines
from segrec_batch.model.engines import EngineChoice
from tests.support.machines import GRAVITON_3, ZEN_3, ZEN_4, write_files

GIB = 2**30
NCNN = EngineRate("ncnn", "float32", 4.0, None)
TORCH = EngineRate("torch", "float32", 2.0, None)
CHOICE = EngineChoice("ncnn", "float32", "cpu", "by the processor's features")
H200 = Gpu("cuda:0", "NVIDIA H200", 139 * GIB, "9.0", None)
UNFILTERED = Confinement(None, False, ("no seccomp: it is forbidden here",))
LARGE = Facts(
    processor=parse_cpuinfo(ZEN_4, "x86_64"),
    cores=Cores(16, 16, None),
    memory=Memory(64 * GIB, 64 * GIB, None),
    shared_memory=Space("/dev/shm", 32 * GIB, 32 * GIB),
    temporary_folder=Space("/tmp", 500 * GIB, 400 * GIB),
    has_nvidia_driver=False,
    gpus=(),
    gpu_notice="",
    engines=(NCNN, TORCH),
    decoder=Confinement(7, True),
    environment={},
    versions={"ray": "2.60.0", "ncnn": None},
)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def answer() -> tuple[dict[str, Any], str]:
    """The JSON of this machine, and what stderr says meanwhile."""
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        code = cli.main(["doctor", "--format", "json", "--seconds", "0"])
    torch.set_num_threads(threads)
    values = json.loads(out.getvalue())
    assert code == any(problem["level"] == "error" for problem in values["problems"])
    return values, err.getvalue()


def test_doctor_reports_this_machine(answer: tuple[dict[str, Any], str]) -> None:
    values, _ = answer
    assert values["system"] == platform.platform()
    assert values["processor"]["architecture"] == os.uname().machine
    assert values["cores"]["present"] == psutil.cpu_count()
    assert 1 <= values["cores"]["usable"] <= len(os.sched_getaffinity(0))
    assert values["memory"]["present"] == psutil.virtual_memory().total
    folder = values["temporary_folder"]
    assert folder["path"] == tempfile.gettempdir()
    assert folder["size"] == shutil.disk_usage(folder["path"]).total
    assert (values["shared_memory"] is not None) == Path("/dev/shm").exists()
    assert len(values["gpus"]) == torch.cuda.device_count()
    assert values["environment"] == {}


def test_doctor_versions_are_those_imported(answer: tuple[dict[str, Any], str]) -> None:
    versions = answer[0]["versions"]
    assert versions["python"] == "{}.{}.{}".format(*sys.version_info)
    assert versions["segrec-batch"] == segrec_batch.__version__
    assert versions["duckdb"] == duckdb.__version__
    assert torch.__version__.startswith(versions["torch"].partition("+")[0])
    required = importlib.metadata.requires("segrec-batch") or []
    named = {text for text in versions if any(r.startswith(text) for r in required)}
    assert {"ray", "numpy", "pyarrow", "deltalake"} <= named
    assert not [name for name in named if versions[name] is None]


def test_doctor_engines_have_a_rate_or_a_reason(answer: tuple[dict[str, Any], str]) -> None:
    values, err = answer
    rows = values["engines"]
    assert [(r["engine"], r["precision"]) for r in rows] == [
        (engine, precision) for engine in engines.ENGINES for precision in engines.PRECISIONS
    ]
    measured = {(r["engine"], r["precision"]) for r in rows if r["images_per_second"]}
    assert measured == set(engine_choice.list_candidates(host.read_processor()))
    assert all((r["images_per_second"] is None) == bool(r["reason"]) for r in rows)
    assert f"engines measured: {len(rows)}" in err


def test_doctor_auto_is_the_fastest_engine(answer: tuple[dict[str, Any], str]) -> None:
    values, _ = answer
    best = max(values["engines"], key=lambda row: row["images_per_second"] or 0)
    taken = values["auto"]["long_run"]
    if taken["device"] == "cpu":
        assert (taken["engine"], taken["precision"]) == (best["engine"], best["precision"])
    assert taken["reason"]
    assert values["auto"]["short_run"]["device"] == taken["device"]


def test_doctor_json_keys_are_documented(answer: tuple[dict[str, Any], str]) -> None:
    documented = doctor_report.__doc__ or ""
    lines = [line for line in documented.splitlines() if line[:1].islower()]
    assert list(answer[0]) == [
        name.strip() for line in lines for name in line[:20].split(",") if name.strip()
    ]
    assert list(answer[0]["engines"][0]) == [
        "engine",
        "precision",
        "images_per_second",
        "reason",
        "fails",
    ]


def codes(facts: Facts) -> dict[str, str]:
    """The problems of a machine: level by code."""
    return {problem.code: problem.level for problem in find_problems(facts)}


@pytest.mark.parametrize(
    "facts",
    [
        LARGE,
        replace(LARGE, gpus=(H200,), has_nvidia_driver=True),
        # Ray takes 0.3 of memory, but at most what there is of shared memory beyond 10 GB
        replace(LARGE, memory=Memory(2**41, 2**41, None)),
        replace(LARGE, cores=Cores(2, 2, None), memory=Memory(8 * GIB, 8 * GIB, None)),
        # the filter of system calls holds all that Landlock does
        replace(LARGE, decoder=Confinement(None, True, ("no Landlock: this kernel is without",))),
    ],
)
def test_find_problems_is_empty_for_a_large_machine(facts: Facts) -> None:
    assert codes(facts) == {}


@pytest.mark.parametrize(
    ("changes", "code", "level"),
    [
        ({"shared_memory": None}, "shared-memory-missing", "error"),
        ({"shared_memory": Space("/dev/shm", 2**26, 2**26)}, "shared-memory-small", "warning"),
        ({"shared_memory": Space("/dev/shm", 32 * GIB, GIB)}, "shared-memory-small", "warning"),
        ({"temporary_folder": None}, "temporary-folder-missing", "error"),
        (
            {"temporary_folder": Space("/tmp", 500 * GIB, 20 * GIB)},
            "temporary-folder-full",
            "warning",
        ),
        ({"temporary_folder": Space("/tmp", 8 * GIB, GIB)}, "temporary-folder-full", "warning"),
        (
            {"temporary_folder": Space("/scratch/" + "x" * 60, 500 * GIB, 400 * GIB)},
            "temporary-folder-path",
            "error",
        ),
        ({"cores": Cores(1, 1, None)}, "one-core", "warning"),
        ({"cores": Cores(1, 16, "cgroup")}, "one-core", "warning"),
        ({"memory": Memory(2 * GIB, 64 * GIB, "cgroup")}, "little-memory", "warning"),
        (
            {"gpus": (H200,) * 8, "memory": Memory(16 * GIB, 16 * GIB, None)},
            "little-memory",
            "warning",
        ),
        (
            {"engines": (EngineRate("torch", "float32", None, "not installed"),)},
            "no-engine",
            "error",
        ),
        (
            {"engines": (TORCH, EngineRate("ncnn", "float32", None, "OSError: libgomp", True))},
            "engine-fails",
            "warning",
        ),
        ({"gpus": (replace(H200, problem="no kernel image"),)}, "gpu-unusable", "warning"),
        ({"gpus": (replace(H200, compute_capability="7.5"),)}, "gpu-without-bf16", "warning"),
        ({"has_nvidia_driver": True}, "gpu-unseen", "warning"),
        ({"decoder": None}, "decoder-fails", "error"),
        ({"decoder": UNFILTERED}, "decoder-unconfined", "warning"),
        ({"environment": {"RAY_ADDRESS": "head:6379"}}, "ray-address", "warning"),
        ({"environment": {"RAY_ADDRESS": "ray://head:10001"}}, "ray-client", "error"),
        ({"environment": {"OMP_NUM_THREADS": "4"}}, "omp-threads", "warning"),
        ({"environment": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, "onednn-capped", "warning"),
    ],
)
def test_find_problems_by_condition(changes: dict[str, Any], code: str, level: str) -> None:
    assert codes(replace(LARGE, **changes)) == {code: level}


def test_shared_memory_is_a_warning_with_ray_address() -> None:
    joined = replace(LARGE, shared_memory=None, environment={"RAY_ADDRESS": "head:6379"})
    assert codes(joined) == {"shared-memory-missing": "warning", "ray-address": "warning"}


def test_unseen_gpu_has_a_reason() -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"}
    (problem,) = find_problems(replace(LARGE, has_nvidia_driver=True, environment=hidden))
    assert "CUDA_VISIBLE_DEVICES=-1" in problem.message
    notice = "The NVIDIA driver on your system is too old"
    (problem,) = find_problems(replace(LARGE, has_nvidia_driver=True, gpu_notice=notice))
    assert notice in problem.message


def test_gather_facts_of_a_small_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /dev/shm, on half a core and half a gigabyte, with variables set."""
    monkeypatch.setattr(doctor_facts, "engine_pairs", list)  # measures none
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    files = {
        "proc/cpuinfo": GRAVITON_3,
        "sys/fs/cgroup/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/memory.max": f"{2**29}\n",
        "proc/driver/nvidia/version": "NVRM version: 570\n",
    }
    gathered = doctor_facts.gather_facts(0, root=write_files(tmp_path, files))
    assert gathered.processor.name == "Arm Neoverse V1"
    assert gathered.cores == Cores(1, os.cpu_count() or 1, "cgroup")
    assert (gathered.memory.usable, gathered.memory.limit) == (2**29, "cgroup")
    expected = {"shared-memory-missing", "one-core", "little-memory", "omp-threads", "no-engine"}
    assert expected <= set(codes(gathered))
    assert ("gpu-unseen" in codes(gathered)) == (not torch.cuda.is_available())


def test_gather_facts_of_one_core_by_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_facts, "engine_pairs", list)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert codes(doctor_facts.gather_facts(0))["one-core"] == "warning"
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("engine", "precision", "reason"),
    [
        ("torch", "bfloat16", "emulated"),
        ("ncnn", "bfloat16", "not offered"),
        ("tpu", "float32", "tpu"),
    ],
)
def test_rate_engine_gives_a_reason_if_not_measured(
    engine: str, precision: str, reason: str
) -> None:
    rate = doctor_facts.rate_engine(engine, precision, parse_cpuinfo(ZEN_3, "x86_64"), 0)
    assert rate.images_per_second is None
    assert reason in (rate.reason or "")
    assert not rate.fails


def test_rate_engine_reports_a_failing_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> float:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(engines, "measure_rate", broken)
    rate = doctor_facts.rate_engine("torch", "float32", LARGE.processor, 0)
    assert rate.fails
    assert rate.reason == "OSError: libgomp.so.1: cannot open shared object file"


def test_report_text_shows_limits_and_missing_facts() -> None:
    facts = replace(
        LARGE,
        cores=Cores(1, 16, "cgroup"),
        shared_memory=None,
        gpus=(H200,),
        decoder=UNFILTERED,
        engines=(NCNN, EngineRate("torch", "float32", None, "not installed")),
    )
    text = Report(facts, CHOICE, CHOICE, tuple(find_problems(facts))).to_text()
    flat = " ".join(text.split())
    for part in (
        "1 usable of 16, limited by cgroup",
        "/dev/shm missing",
        "NVIDIA H200, 139 GiB, compute capability 9.0",
        "torch float32 – not installed",
        "decoder held by limits; no seccomp: it is forbidden here",
        "ncnn missing",
        "auto takes ncnn, float32, on cpu: by the processor's features.",
        "warning: one-core:",
        "error: shared-memory-missing:",
    ):
        assert part in flat
    assert max(map(len, text.splitlines())) <= 110


def test_read_decoder_reports_its_confinement(
    answer: tuple[dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox() as sandbox:
        assert answer[0]["decoder"] == json.loads(json.dumps(asdict(sandbox.confinement())))
    text = Report(LARGE, CHOICE, CHOICE, ()).to_text()
    assert "held by limits, seccomp, Landlock (ABI 7)" in text
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert doctor_facts.read_decoder() is None
    assert "does not start" in Report(replace(LARGE, decoder=None), CHOICE, CHOICE, ()).to_text()


def test_report_text_shows_short_and_long_runs() -> None:
    other = replace(CHOICE, engine="torch", reason="measured on this machine")
    text = Report(LARGE, CHOICE, other, ()).to_text()
    assert "auto takes in a short run ncnn" in text
    assert "auto takes in a long run torch" in text
    assert "No problems found." in text
    assert "auto finds no engine." in Report(LARGE, None, None, ()).to_text()


def test_report_hides_the_address_of_a_cluster() -> None:
    facts = replace(LARGE, environment={"RAY_ADDRESS": "ray://10.0.0.1", "OMP_NUM_THREADS": "1"})
    report = Report(facts, CHOICE, CHOICE, tuple(find_problems(facts)))
    assert json.loads(report.to_json())["environment"] == {
        "RAY_ADDRESS": "set",
        "OMP_NUM_THREADS": "1",
    }
    assert "10.0.0.1" not in report.to_json() + report.to_text()


@pytest.mark.parametrize(("changes", "code"), [({"shared_memory": None}, 1), ({}, 0)])
def test_doctor_exit_code_is_1_if_no_run_can_work(
    changes: dict[str, Any],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = replace(LARGE, **changes)
    report = Report(facts, CHOICE, CHOICE, tuple(find_problems(facts)))
    monkeypatch.setattr(doctor_report, "examine", lambda *_: report)
    assert cli.main(["doctor"]) == code
    captured = capsys.readouterr()
    assert "This machine" in captured.out
    assert ("no run can work on this machine" in captured.err) == bool(code)
