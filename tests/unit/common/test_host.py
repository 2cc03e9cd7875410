"""Tests of facts about the machine: real files of /proc and /sys, and those of others."""

import os
import shutil
from pathlib import Path

import joblib
import psutil
import pytest

from segrec_batch.common import host
from tests.support.machines import GRAVITON_3, ZEN_3, ZEN_4, write_files

SAPPHIRE_RAPIDS = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu vme de pse tsc msr ssse3 fma cx16 avx f16c rdrand hypervisor bmi1 avx2 smep erms \
avx512f avx512dq avx512ifma avx512cd sha_ni avx512bw avx512vl avx_vnni avx512_bf16 wbnoinvd \
avx512vbmi avx512_vbmi2 gfni vaes avx512_vnni avx512_bitalg tme avx512_vpopcntdq serialize \
amx_bf16 avx512_fp16 amx_tile amx_int8 flush_l1d arch_capabilities
"""
GRAVITON_2 = """\
processor       : 0
BogoMIPS        : 243.75
Features        : fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm \
lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant     : 0x3
CPU part        : 0xd0c
CPU revision    : 1
"""
BF16 = "AVX512_CORE_BF16"
AMX = "AVX512_CORE_AMX"


@pytest.fixture(autouse=True)
def _uncapped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "machine", "name", "has_bf16", "has_amx"),
    [
        (ZEN_3, "x86_64", "AMD Ryzen 9 5950X 16-Core Processor", False, False),
        (ZEN_4, "x86_64", "AMD EPYC", True, False),
        (SAPPHIRE_RAPIDS, "x86_64", "Intel(R) Xeon(R) Platinum 8488C", True, True),
        (SAPPHIRE_RAPIDS.replace("x_bf16", "x-bf16"), "x86_64", None, True, True),
        (GRAVITON_2, "aarch64", "Arm Neoverse N1", False, False),
        (GRAVITON_3, "aarch64", "Arm Neoverse V1", True, False),
        (GRAVITON_3.replace("d40", "fff"), "aarch64", None, True, False),
        ("", "riscv64", "riscv64", False, False),
        ("", "", "unknown", False, False),
        ("flags\x00 : :\n:::\nflags\n\ufffd", "x86_64", "x86_64", False, False),
    ],
)
def test_parse_cpuinfo_reads_name_and_features(
    text: str, machine: str, name: str | None, has_bf16: bool, has_amx: bool
) -> None:
    processor = host.parse_cpuinfo(text, machine)
    assert processor.architecture == machine
    assert name in (None, processor.name)
    assert (processor.has_native_bf16, processor.has_amx) == (has_bf16, has_amx)


def test_parse_cpuinfo_names_unknown_arm_by_numbers() -> None:
    text = GRAVITON_3.replace("0xd40", "0xabc")
    assert host.parse_cpuinfo(text, "aarch64").name == "ARM, implementer 0x41, part 0xabc"


def test_parse_cpuinfo_keeps_features_of_all_cores() -> None:
    both = host.parse_cpuinfo(GRAVITON_2 + "\n" + GRAVITON_3, "aarch64")
    assert "asimd" in both.features
    assert "bf16" not in both.features


@pytest.mark.parametrize(
    ("limit", "zen_4", "sapphire_rapids"),
    [  # has_native_bf16 of Zen 4; has_native_bf16 and has_amx of Sapphire Rapids
        ("AVX2", False, (False, False)),
        ("avx2_vnni_2", False, (False, False)),
        ("AVX512_CORE", False, (False, False)),
        ("AVX512_CORE_VNNI", False, (False, False)),
        (BF16, True, (True, False)),
        ("AVX512_CORE_FP16", True, (True, False)),
        (AMX, True, (True, True)),
        ("AVX512_CORE_AMX_FP16", True, (True, True)),
        ("ALL", True, (True, True)),
        ("DEFAULT", True, (True, True)),
        ("", True, (True, True)),
        ("misspelt", True, (True, True)),  # oneDNN ignores it, too
    ],
)
def test_onednn_cap_disables_bfloat16(
    limit: str, zen_4: bool, sapphire_rapids: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert host.parse_cpuinfo(ZEN_4, "x86_64").has_native_bf16 is zen_4
    intel = host.parse_cpuinfo(SAPPHIRE_RAPIDS, "x86_64")
    assert (intel.has_native_bf16, intel.has_amx) == sapphire_rapids
    assert host.parse_cpuinfo(GRAVITON_3, "aarch64").has_native_bf16  # it caps x86 only


def test_read_processor_agrees_with_torch() -> None:
    import torch

    processor = host.read_processor()
    assert processor.architecture == os.uname().machine
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("AVX2", "AVX512") and "ATEN_CPU_CAPABILITY" not in os.environ:
        assert ("avx512f" in processor.features) == (capability == "AVX512")
        assert "avx2" in processor.features


V1 = "4:memory:{0}\n3:cpuset:/\n1:cpu,cpuacct:{0}\n"
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"
GROUPS: list[tuple[dict[str, str], float | None]] = [  # files, and cores of the quota
    ({}, None),
    ({"proc/self/cgroup": "0::/\n"}, None),
    # version 2: at the root of the mount, as in a container; below it, as systemd does
    ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    ({"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
    ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
    ({"sys/fs/cgroup/cpu.max": "5000 100000\n"}, 0.05),
    ({"sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
    (
        {
            "proc/self/cgroup": "0::/user.slice/job:7.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/user.slice/job:7.scope/cpu.max": "max 100000\n",
        },
        4,
    ),
    (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/other/cpu.max": "100000 100000\n",
        },
        3,
    ),
    # a group outside the cgroup namespace: only the root of the mount is ours
    ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    # version 1: no quota; of a container, whose group has another name on the host; nested
    ({f"sys/fs/cgroup/cpu/{QUOTA}": "-1\n", f"sys/fs/cgroup/cpu/{PERIOD}": "100000\n"}, None),
    ({f"sys/fs/cgroup/cpu/{QUOTA}": "200000\n"}, None),
    (
        {
            "proc/self/cgroup": V1.format("/docker/abc"),
            f"sys/fs/cgroup/cpu/{QUOTA}": "250000\n",
            f"sys/fs/cgroup/cpu/{PERIOD}": "100000\n",
        },
        2.5,
    ),
    (
        {
            "proc/self/cgroup": V1.format("/slurm/job_1"),
            f"sys/fs/cgroup/cpu,cpuacct/slurm/job_1/{QUOTA}": "700000\n",
            f"sys/fs/cgroup/cpu,cpuacct/slurm/job_1/{PERIOD}": "100000\n",
            f"sys/fs/cgroup/cpu/{QUOTA}": "-1\n",
            f"sys/fs/cgroup/cpu/{PERIOD}": "100000\n",
        },
        7,
    ),
    # both: groups of version 2 under `unified`
    (
        {"proc/self/cgroup": "1:cpu:/\n0::/x\n", "sys/fs/cgroup/unified/x/cpu.max": "50000 100000"},
        0.5,
    ),
]


@pytest.mark.parametrize(("files", "quota"), GROUPS)
def test_usable_cores_follow_the_cgroup_quota(
    files: dict[str, str],
    quota: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = write_files(tmp_path, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    cores = host.read_cores(root)
    assert (cores.usable, cores.present) == (64 if quota is None else max(-(-quota // 1), 1), 64)
    assert cores.limit == (None if quota is None else "cgroup")
    assert host.usable_cores(root) == cores.usable


def test_usable_cores_ignore_a_quota_above_affinity(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"sys/fs/cgroup/cpu.max": "99900000 100000\n"})
    assert host.read_cores(root) == host.read_cores(tmp_path / "empty")


def test_usable_cores_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        cores = host.read_cores()
        assert (cores.usable, cores.present) == (1, os.cpu_count())
        assert cores.limit == ("affinity" if cores.present > 1 else None)
        assert joblib.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_usable_cores_are_at_most_those_of_joblib() -> None:
    """It sees fewer limits: none of groups below the root's."""
    assert 1 <= host.usable_cores() <= joblib.cpu_count()
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    if all(line.endswith(":/") for line in groups):
        assert host.usable_cores() == joblib.cpu_count()


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory.max": "536870912\n"}, 2**29),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        (
            {
                "proc/self/cgroup": V1.format("/docker/abc"),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n",
            },
            2**28,
        ),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "536870912\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
            },
            2**29,
        ),
    ],
)
def test_usable_memory_follows_the_cgroup_limit(
    files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    present = psutil.virtual_memory().total
    memory = host.read_memory(write_files(tmp_path, files))
    assert memory == host.Memory(limit or present, present, "cgroup" if limit else None)
    assert host.usable_memory(tmp_path) == memory.usable


def test_read_memory_agrees_with_psutil() -> None:
    memory = host.read_memory()
    assert memory.present == psutil.virtual_memory().total
    assert 0 < memory.usable <= memory.present


def test_read_space_agrees_with_the_file_system(tmp_path: Path) -> None:
    space, disk = host.read_space(tmp_path), psutil.disk_usage(str(tmp_path))
    assert space is not None
    assert (space.path, space.size) == (str(tmp_path), shutil.disk_usage(tmp_path).total)
    assert abs(space.free - disk.free) < 2**30  # others write, too
    assert host.read_space(tmp_path / "missing") is None


def test_read_shared_memory_is_none_if_missing(tmp_path: Path) -> None:
    assert host.read_shared_memory(tmp_path) is None
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    assert host.read_shared_memory(tmp_path) is not None


def test_has_nvidia_driver_finds_driver_or_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not host.has_nvidia_driver(tmp_path)
    (tmp_path / "proc" / "driver" / "nvidia").mkdir(parents=True)
    assert host.has_nvidia_driver(tmp_path)
    tool = tmp_path / "nvidia-smi"
    tool.touch(0o755)
    assert host.has_nvidia_driver(tmp_path / "empty")
