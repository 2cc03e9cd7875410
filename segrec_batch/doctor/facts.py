"""Facts of a machine that matter to runs on it."""

import os
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from segrec_batch import __version__
from segrec_batch.common import host
from segrec_batch.common.errors import DecoderError, DeviceError
from segrec_batch.common.host import Cores, Memory, Processor, Space
from segrec_batch.images.confinement import Confinement
from segrec_batch.images.sandbox import Sandbox
from segrec_batch.model import engine_choice, engines

INSTRUCTION_SETS = {
    "x86_64": ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16"),
    "aarch64": ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
}
PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "ncnn",
    "numpy",
    "scipy",
    "scikit-learn",
    "pyarrow",
    "deltalake",
    "duckdb",
    "pillow",
    "opencv-python-headless",
    "fsspec",
    "s3fs",
)
VARIABLES = (
    "RAY_ADDRESS",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "CUDA_VISIBLE_DEVICES",
    "TMPDIR",
)


@dataclass(frozen=True)
class Gpu:
    """A GPU of torch; `problem` is the reason why it cannot compute, None if it can."""

    device: str
    name: str
    memory: int
    compute_capability: str
    problem: str | None


@dataclass(frozen=True)
class EngineRate:
    """Images/s of one thread at 224 × 224, or the reason why they were not measured.

    `fails` is true if the engine is installed and raised an error.
    """

    engine: str
    precision: str
    images_per_second: float | None
    reason: str | None
    fails: bool = False


@dataclass(frozen=True)
class Facts:
    """The facts from which the problems of a machine follow.

    `gpu_notice` is the message of torch without a GPU. `decoder` is the confinement of the process
    that decodes images, None if it does not start. `environment` has the VARIABLES that are set,
    `versions` the packages, None for one that is not installed.
    """

    processor: Processor
    cores: Cores
    memory: Memory
    shared_memory: Space | None
    temporary_folder: Space | None
    has_nvidia_driver: bool
    gpus: tuple[Gpu, ...]
    gpu_notice: str
    engines: tuple[EngineRate, ...]
    decoder: Confinement | None
    environment: Mapping[str, str]
    versions: Mapping[str, str | None]


def gather_facts(
    seconds: float, progress: Callable[[], None] = lambda: None, root: Path = host.ROOT
) -> Facts:
    """Return the facts of this machine.

    Args:
        seconds: time to measure each engine.
        progress: called after each engine.
        root: see `host`.
    """
    processor = host.read_processor(root)
    gpus, notice = read_gpus()
    rates = []
    for engine, precision in engine_pairs():
        rates.append(rate_engine(engine, precision, processor, seconds))
        progress()
    return Facts(
        processor,
        host.read_cores(root),
        host.read_memory(root),
        host.read_shared_memory(root),
        host.read_temporary_folder(),
        host.has_nvidia_driver(root),
        gpus,
        notice,
        tuple(rates),
        read_decoder(),
        {name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
        read_versions(),
    )


def engine_pairs() -> list[tuple[str, str]]:
    """Return all pairs of engine and precision."""
    return [(e, p) for e in engines.ENGINES for p in engines.PRECISIONS]


def rate_engine(engine: str, precision: str, processor: Processor, seconds: float) -> EngineRate:
    """Measure an engine on one thread of the CPU, unless it is missing or has to emulate."""
    reason = engines.explain_missing_engine(engine)
    if not reason and (engine, precision) not in engine_choice.list_candidates(processor):
        emulated = engine == "torch" and precision == "bfloat16" and not processor.has_native_bf16
        reason = "emulated on this processor, slow" if emulated else "not offered"
    if reason:
        return EngineRate(engine, precision, None, reason)
    try:
        rate = engines.measure_rate(engine, precision, threads=1, seconds=seconds)
    except Exception as error:  # a library that is installed and broken is a finding
        return EngineRate(engine, precision, None, f"{type(error).__name__}: {error}", fails=True)
    return EngineRate(engine, precision, rate, None)


def read_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs of torch, and its message if there are none."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return (), f"torch cannot be imported: {error}"
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = tuple(_gpu(i) for i in range(count))
    if torch.version.cuda is None:
        return gpus, "this torch is built without CUDA"
    return gpus, "; ".join(str(warning.message).strip() for warning in messages)


def _gpu(number: int) -> Gpu:
    import torch

    from segrec_batch.model.device import resolve_device

    device, about = f"cuda:{number}", torch.cuda.get_device_properties(number)
    problem = None
    try:
        resolve_device(device)
    except DeviceError as error:
        problem = str(error)
    capability = f"{about.major}.{about.minor}"
    return Gpu(device, about.name, about.total_memory, capability, problem)


def read_decoder() -> Confinement | None:
    """Start a process that decodes, and return its confinement; None if it fails."""
    with Sandbox() as sandbox:
        try:
            return sandbox.confinement()
        except DecoderError:  # its message is on stderr
            return None


def read_versions() -> dict[str, str | None]:
    """Return the versions of Python, segrec_batch and its dependencies."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    own = {"python": platform.python_version(), "segrec-batch": __version__}
    return {**own, **{package: installed(package) for package in PACKAGES}}
