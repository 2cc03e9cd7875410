"""Choice of the engine and the precision that are fastest on this machine."""

import sys
from collections.abc import Mapping

from segrec_batch.common.errors import EngineError
from segrec_batch.common.host import Processor, read_processor
from segrec_batch.model import engines
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec, find_backbone
from segrec_batch.model.engines import (
    PRECISIONS,
    Candidate,
    EngineChoice,
    explain_missing_engine,
    resolve_engine,
)

LONG_RUN = 2**25
"""Pixels of a run that justifies a measurement: a minute of two cores with AVX2."""
_AMPERE = (8, 0)  # compute capability of the first GPUs that compute in bfloat16

Rates = Mapping[Candidate, float]
"""Images/s."""


def list_candidates(processor: Processor) -> list[Candidate]:
    """Return the engines and precisions that a CPU computes natively, the likely fastest first.

    Measured in docs/operations.md. ncnn's Winograd algorithm saves more than bfloat16, except on
    processors with AMX, which have a matrix unit.
    """
    order = [("ncnn", "float32"), ("torch", "float32")]
    if processor.has_native_bf16:
        order.insert(0 if processor.has_amx else 1, ("torch", "bfloat16"))
    return [
        (engine, precision) for engine, precision in order if not explain_missing_engine(engine)
    ]


def choose_engine(
    engine: str = "auto",
    precision: str = "auto",
    device: str = "cpu",
    work: float = 0.0,
    backbone: BackboneSpec = DEFAULT_BACKBONE,
) -> EngineChoice:
    """Choose engine and precision for this machine.

    Args:
        engine, precision: A name, or `auto` for the fastest.
        device: cpu, cuda or cuda:N.
        work: Pixels of all images of the run; from LONG_RUN on, the function measures the
            candidates, which takes a few seconds.
        backbone: The network.

    Raises:
        EngineError: Engine or precision do not exist here, or do not go together.
    """
    engine = resolve_engine(engine, backbone)
    check_names(engine, precision)
    if device != "cpu":
        return _choose_for_gpu(engine, precision, device)
    processor = read_processor()
    matches = match_candidates(engine, precision, processor)
    if not matches:
        return choose_emulated(processor.name)
    if "auto" not in (engine, precision):
        return EngineChoice(*matches[0], device, "as requested")
    if len(matches) == 1 or work < LONG_RUN:
        return EngineChoice(*matches[0], device, explain(processor))
    return choose_fastest([measure_candidates(matches, backbone.name)], device)


def find_device(name: str) -> str:
    """Return a device that exists, see `device.resolve_device`; `cpu` does not import torch.

    Raises DeviceError.
    """
    if name == "cpu":
        return name
    from segrec_batch.model.device import resolve_device  # imports torch, which takes seconds

    return resolve_device(name)


def match_candidates(engine: str, precision: str, processor: Processor) -> list[Candidate]:
    """Return the candidates with an engine and a precision, each of which may be `auto`."""
    return [
        candidate
        for candidate in list_candidates(processor)
        if engine in ("auto", candidate[0]) and precision in ("auto", candidate[1])
    ]


def choose_emulated(processor: str) -> EngineChoice:
    """Return torch in bfloat16, which the user named, on a processor that emulates it."""
    return EngineChoice("torch", "bfloat16", "cpu", "as requested", processor)


def check_names(engine: str, precision: str) -> None:
    """Raise EngineError for an engine or a precision that do not exist or do not go together."""
    if engine != "auto" and (reason := explain_missing_engine(engine)):
        raise EngineError(f"--engine {engine}: {reason}")
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"--precision {precision}: there are auto, {', '.join(PRECISIONS)}")
    if (engine, precision) == ("ncnn", "bfloat16"):
        raise EngineError(
            "--engine ncnn computes in float32; say --precision float32, or --engine torch"
        )


def _choose_for_gpu(engine: str, precision: str, device: str) -> EngineChoice:
    if engine == "ncnn":
        raise EngineError(
            f"--engine ncnn runs on CPUs; say --engine torch for device {device}, or --device cpu"
        )
    gpu = _gpu_without_bf16(device)
    if precision == "auto":
        if gpu:
            return EngineChoice("torch", "float32", device, f"{gpu} has no bfloat16 arithmetic")
        return EngineChoice("torch", "bfloat16", device, "tensor cores, sums in float32")
    emulated_on = gpu if precision == "bfloat16" else ""
    return EngineChoice("torch", precision, device, "as requested", emulated_on)


def _gpu_without_bf16(device: str) -> str:
    """Return the name of a GPU of this machine that is older than Ampere; empty for others."""
    torch = sys.modules.get("torch")  # imported by `find_device` if the GPU is of this machine
    if torch is None or not torch.cuda.is_available():
        return ""
    if torch.cuda.get_device_capability(device) >= _AMPERE:
        return ""
    return str(torch.cuda.get_device_name(device))


def explain(processor: Processor) -> str:
    """Return the reason why the first of `list_candidates` is likely the fastest."""
    features = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "sve", "asimd")
    best = next((name for name in features if name in processor.features), processor.architecture)
    return f"by the processor's features: {processor.name}, {best}"


def choose_fastest(measured: list[Rates], device: str = "cpu") -> EngineChoice:
    """Choose the candidate with the largest sum of rates over machines that all measured it."""
    common = set.intersection(*(set(rates) for rates in measured))
    sums = {c: sum(rates[c] for rates in measured) for c in measured[0] if c in common}
    best = max(sums, key=lambda candidate: sums[candidate])
    figures = "; ".join(f"{e} {p} {rate:.1f}" for (e, p), rate in sums.items())
    machines = "this machine" if len(measured) == 1 else f"{len(measured)} nodes"
    return EngineChoice(
        *best, device, f"measured on {machines}, images/s of a thread at 224×224: {figures}"
    )


def measure_candidates(
    matches: list[Candidate], backbone: str = DEFAULT_BACKBONE.name, seconds: float = 0.5
) -> dict[Candidate, float]:
    """Return images/s of one thread by engine and precision, see `engines.measure_rate`."""
    spec = find_backbone(backbone)
    return {(e, p): engines.measure_rate(e, p, seconds=seconds, backbone=spec) for e, p in matches}
