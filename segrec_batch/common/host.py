"""Facts about this machine, read from Linux's files: processor, cores, memory, disk space.

Each reader takes `root`, the folder that contains /proc, /sys and /dev; tests pass other folders.
"""

import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - Ray keeps its objects there

# Values of MAX_CPU_ISA, which limits the instructions of oneDNN; it ignores other values.
# Source: oneDNN, src/cpu/x64/cpu_isa_traits.cpp.
_ISA_WITHOUT_BF16 = frozenset(
    ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
)
_ISA_WITHOUT_AMX = _ISA_WITHOUT_BF16 | {
    "avx512_core_bf16",
    "avx512_core_fp16",
    "avx10_1_512",
    "avx10_2",
    "avx10_2_512",
}
_ARM_PARTS = {  # (implementer, part), as in /proc/cpuinfo
    ("0x41", "0xd08"): "Arm Cortex-A72",  # Graviton 1, Raspberry Pi 4
    ("0x41", "0xd0b"): "Arm Cortex-A76",  # Raspberry Pi 5
    ("0x41", "0xd0c"): "Arm Neoverse N1",  # Graviton 2, Ampere Altra
    ("0x41", "0xd40"): "Arm Neoverse V1",  # Graviton 3
    ("0x41", "0xd49"): "Arm Neoverse N2",
    ("0x41", "0xd4f"): "Arm Neoverse V2",  # Graviton 4, NVIDIA Grace
    ("0xc0", "0xac3"): "AmpereOne",
}


@dataclass(frozen=True)
class Processor:
    """A processor.

    The environment variable ONEDNN_MAX_CPU_ISA limits the instructions that oneDNN, and so PyTorch,
    uses on x86. The properties respect it: a Zen 4 that is limited to AVX2 has no native bfloat16.

    Attributes:
        name: name for people.
        architecture: `x86_64`, `aarch64`, …
        features: Linux's names of instructions that all cores have, such as `avx512_bf16`.
    """

    name: str
    architecture: str
    features: frozenset[str]

    @property
    def has_native_bf16(self) -> bool:
        """True if PyTorch has instructions for bfloat16 and does not emulate it."""
        if self.architecture.startswith(("aarch64", "arm")):
            return "bf16" in self.features
        is_limited = isa_limit().lower() in _ISA_WITHOUT_BF16
        return self.has_amx or ("avx512_bf16" in self.features and not is_limited)

    @property
    def has_amx(self) -> bool:
        """True if PyTorch multiplies bfloat16 matrices with AMX."""
        return "amx_bf16" in self.features and isa_limit().lower() not in _ISA_WITHOUT_AMX


def isa_limit() -> str:
    """Return the instruction limit of oneDNN from the environment; empty if not set."""
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # oneDNN reads them in this order
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def read_processor(root: Path = ROOT) -> Processor:
    """Return the processor of this machine; its features are empty if /proc/cpuinfo lists none."""
    return parse_cpuinfo(_text(root / "proc/cpuinfo"), platform.machine())


def parse_cpuinfo(text: str, architecture: str) -> Processor:
    r"""Return the processor that /proc/cpuinfo describes; `architecture` replaces a missing name.

    >>> parse_cpuinfo("CPU implementer: 0x41\nCPU part: 0xd40", "aarch64").name
    'Arm Neoverse V1'
    """
    values: dict[str, dict[str, None]] = {}  # key → its values in order, each once
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            values.setdefault(key.strip(), {})[value.strip()] = None
    cores = [
        frozenset(line.replace("-", "_").split())
        for key in ("flags", "Features")
        for line in values.get(key, ())
    ]
    part = (next(iter(values.get(k, ())), "") for k in ("CPU implementer", "CPU part"))
    names = (*values.get("model name", ()), _name_arm_processor(*part), architecture)
    features = frozenset.intersection(*cores) if cores else frozenset()
    return Processor(next(filter(None, names), "unknown"), architecture, features)


def _name_arm_processor(implementer: str, part: str) -> str:
    unknown = f"ARM, implementer {implementer}, part {part}" if implementer and part else ""
    return _ARM_PARTS.get((implementer, part), unknown)


@dataclass(frozen=True)
class Cores:
    """Numbers of logical cores: usable by this process, and present in the machine.

    `limit` is the cause of a difference: `affinity`, `cgroup` or None.
    """

    usable: int
    present: int
    limit: str | None


@dataclass(frozen=True)
class Memory:
    """Bytes of memory: usable by this process, and present in the machine.

    `limit` is the cause of a difference: `cgroup` or None.
    """

    usable: int
    present: int
    limit: str | None


@dataclass(frozen=True)
class Space:
    """Size and free bytes of the file system of a folder."""

    path: str
    size: int
    free: int


def usable_cores(root: Path = ROOT) -> int:
    """Return the number of cores that this process may use, at least 1."""
    return read_cores(root).usable


def read_cores(root: Path = ROOT) -> Cores:
    """Return the cores of this machine, limited by CPU affinity and by quotas of control groups."""
    # not joblib.cpu_count(): it takes 0.2 s to import and ignores quotas of nested groups
    present = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    quota = min(_quotas(root), default=math.inf)
    if quota < allowed:
        return Cores(max(math.ceil(quota), 1), present, "cgroup")
    return Cores(allowed, present, "affinity" if allowed < present else None)


def usable_memory(root: Path = ROOT) -> int:
    """Return the bytes of memory that this process may use, at most the limit of its cgroup."""
    return read_memory(root).usable


def read_memory(root: Path = ROOT) -> Memory:
    """Return the memory of this machine, limited by control groups."""
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = min(_memory_limits(root), default=present)
    return Memory(min(limit, present), present, "cgroup" if limit < present else None)


def read_space(folder: str | Path) -> Space | None:
    """Return the space of the file system of a folder; None if it does not exist."""
    try:
        size, _, free = shutil.disk_usage(folder)
    except OSError:
        return None
    return Space(str(folder), size, free)


def read_shared_memory(root: Path = ROOT) -> Space | None:
    """Return the space of SHARED_MEMORY; None if it does not exist."""
    return read_space(root / SHARED_MEMORY.lstrip("/"))


def read_temporary_folder() -> Space | None:
    """Return the space of the folder for temporary files; None if no such folder is writable."""
    with suppress(OSError):
        return read_space(tempfile.gettempdir())
    return None


def has_nvidia_driver(root: Path = ROOT) -> bool:
    """Return whether the NVIDIA driver is loaded or its tool is installed."""
    loaded = (root / "proc/driver/nvidia", root / "dev/nvidia0")
    return any(path.exists() for path in loaded) or shutil.which("nvidia-smi") is not None


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas that bind this process, in cores."""
    for folder in _groups(root, "cpu"):
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")  # version 1: -1 is no quota
        texts = [_text(folder / "cpu.max"), " ".join(_text(folder / name) for name in files)]
        for text in texts:
            figures = list(_positive(text.split()))
            if len(figures) == 2:
                yield figures[0] / figures[1]


def _memory_limits(root: Path) -> Iterator[int]:
    """Yield the memory limits that bind this process, in bytes."""
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            yield from _positive(_text(folder / name).split())


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, from the root downwards.

    The limits of a group apply to all groups below it. In a container, /proc/self/cgroup may name
    a group that only the host sees; then the root of the mount is the container's group.
    """
    mount = root / "sys/fs/cgroup"
    yield from (mount, mount / "unified", mount / controller)
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = PurePosixPath(path).parts[1:]
        if ".." in parts or (controllers and controller not in controllers.split(",")):
            continue
        for base in (mount / controllers, mount / (controller if controllers else "unified")):
            yield from (base.joinpath(*parts[: i + 1]) for i in range(len(parts)))


def _positive(words: Iterable[str]) -> Iterator[int]:
    """Yield the numbers above 0; other words, such as `max`, mean no limit."""
    return (int(word) for word in words if word.isdecimal() and int(word) > 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
