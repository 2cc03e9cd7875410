"""Engines: the libraries that run a model, and which of them is fastest on this machine.

Engine and precision are how a run goes about its work, not what a model is: rows of one index may
come from different engines, within the tolerances of docs/segmentation.md.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import EngineError
from segrec_batch.common.host import Processor, read_processor, usable_cores
from segrec_batch.images.decode import Shape
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec, Tap
from segrec_batch.model.bundle import Model, check_backbone
from segrec_batch.model.segmentation import Segmenter
from segrec_batch.model.spec import Scaling

log = logging.getLogger(__name__)

ENGINES = ("ncnn", "torch")
PRECISIONS = ("float32", "bfloat16")
Candidate = tuple[str, str]  # engine, precision

EMULATED_COST = 9
"""How many times the time of float32 emulated bfloat16 takes (VGG-16 at 224 × 224, Zen 3)."""
LONG = 2**25
"""Pixels from which on a run repays a calibration: about a minute of two cores with AVX2."""
_BATCH = 4  # images that torch runs together on a CPU
_AMPERE = (8, 0)  # compute capability of the first GPUs that compute in bfloat16
PER_PIXEL = 2_560  # bytes of the maps and workspace of an image in ncnn, for each of its pixels


@dataclass(frozen=True)
class EngineChoice:
    """An engine, its precision (float32 or bfloat16), its device, and why they were chosen.

    emulated_on: the processor that has to emulate the precision; empty if it is native.
    """

    engine: str
    precision: str
    device: str = "cpu"
    reason: str = ""
    emulated_on: str = ""

    def __str__(self) -> str:
        return f"{self.engine}, {self.precision}, on {self.device}"

    @property
    def warning(self) -> str | None:
        """A sentence on arithmetic that this processor has to emulate."""
        if not self.emulated_on:
            return None
        return (
            f"{self.emulated_on} has no bfloat16 instructions and emulates them: about "
            f"{EMULATED_COST} times slower than torch in float32, and 20 times slower than ncnn; "
            "say --precision float32"
        )


def missing_engine(name: str) -> str | None:
    """Return why an engine cannot be used on this machine; None if it can."""
    if name not in ENGINES:
        return f"there is no engine {name}; there are {', '.join(ENGINES)}"
    if find_spec(name) is None:
        return f"the package {name} is not installed; install it with: pip install {name}"
    if name == "ncnn":  # torch takes seconds to import
        try:
            import_module(name)
        except ImportError as error:
            return f"the package {name} cannot be imported: {error}"
    return None


def candidates(processor: Processor) -> list[Candidate]:
    """Return the engines and precisions that a CPU computes natively, the likeliest fastest first.

    Measured: docs/operations.md. ncnn's Winograd algorithm saves more than bfloat16 does, but for
    AMX, which has a matrix unit of its own.
    """
    order = [("ncnn", "float32"), ("torch", "float32")]
    if processor.has_native_bf16:
        order.insert(0 if processor.has_amx else 1, ("torch", "bfloat16"))
    return [(engine, precision) for engine, precision in order if not missing_engine(engine)]


def choose_engine(
    engine: str = "auto",
    precision: str = "auto",
    device: str = "cpu",
    work: float = 0.0,
    backbone: BackboneSpec = DEFAULT_BACKBONE,
) -> EngineChoice:
    """Choose engine and precision for this machine.

    engine, precision: a name, or `auto` for what is fastest here. device: cpu, cuda or cuda:N.
    work: pixels of all images of the run; much of it is worth a calibration of a few seconds.
    Raises EngineError for what does not exist here, or does not go together.
    """
    engine = engine_of(engine, backbone)
    check_names(engine, precision)
    if device != "cpu":
        return _choose_for_gpu(engine, precision, device)
    found = match_candidates(engine, precision, read_processor())
    if not found:
        return choose_emulated(read_processor().name)
    if "auto" not in (engine, precision):
        return EngineChoice(*found[0], device, "as asked for")
    if len(found) == 1 or work < LONG:
        return EngineChoice(*found[0], device, explain(read_processor()))
    return choose_fastest([measure_candidates(found)], device)


def engine_of(engine: str, backbone: BackboneSpec) -> str:
    """Return the engine, or the only one that runs a backbone if it is `auto`.

    Raises EngineError for an engine that does not run the backbone.
    """
    if engine == "auto":
        return engine if backbone.engines == ENGINES else backbone.engines[0]
    if engine in ENGINES and engine not in backbone.engines:
        engines = " and ".join(backbone.engines)
        raise EngineError(f"--engine {engine}: {backbone.title} runs in {engines} only")
    return engine


def find_device(name: str) -> str:
    """Return a device that exists, see `device.resolve_device`; `cpu` needs no torch for that.

    Raises DeviceError.
    """
    if name == "cpu":
        return name
    from segrec_batch.model.device import resolve_device  # imports torch, which takes seconds

    return resolve_device(name)


def match_candidates(engine: str, precision: str, processor: Processor) -> list[Candidate]:
    """Return those of `candidates` that have the engine and precision asked for, or `auto`."""
    return [
        candidate
        for candidate in candidates(processor)
        if engine in ("auto", candidate[0]) and precision in ("auto", candidate[1])
    ]


def choose_emulated(processor: str) -> EngineChoice:
    """Return torch in bfloat16, as asked for, on a processor that has to emulate it."""
    return EngineChoice("torch", "bfloat16", "cpu", "as asked for", processor)


def check_names(engine: str, precision: str) -> None:
    """Raise EngineError for an engine or a precision that do not exist or do not go together."""
    if engine != "auto" and (why := missing_engine(engine)):
        raise EngineError(f"--engine {engine}: {why}")
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
    emulated = gpu if precision == "bfloat16" else ""
    return EngineChoice("torch", precision, device, "as asked for", emulated)


def _gpu_without_bf16(device: str) -> str:
    """Return the name of a GPU that is older than Ampere; empty if it is not, or not here."""
    torch = sys.modules.get("torch")  # who asks for a GPU of this machine has imported it
    if torch is None or not torch.cuda.is_available():
        return ""
    if torch.cuda.get_device_capability(device) >= _AMPERE:
        return ""
    return str(torch.cuda.get_device_name(device))


def explain(processor: Processor) -> str:
    """Return why the first of `candidates` is likely the fastest."""
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "sve", "asimd")
    best = next((name for name in known if name in processor.features), processor.architecture)
    return f"by the processor's features: {processor.name}, {best}"


Rates = Mapping[Candidate, float]


def choose_fastest(measured: list[Rates], device: str = "cpu") -> EngineChoice:
    """Choose what has the largest sum of rates over machines, of what all of them measured."""
    common = set.intersection(*(set(rates) for rates in measured))
    sums = {c: sum(rates[c] for rates in measured) for c in measured[0] if c in common}
    best = max(sums, key=lambda candidate: sums[candidate])
    figures = "; ".join(f"{e} {p} {rate:.1f}" for (e, p), rate in sums.items())
    where = "this machine" if len(measured) == 1 else f"{len(measured)} nodes"
    return EngineChoice(
        *best, device, f"measured on {where}, images/s of a thread at 224×224: {figures}"
    )


def measure_candidates(found: list[Candidate], seconds: float = 0.5) -> dict[Candidate, float]:
    """Return images/s of one thread for each engine and precision, see `measure_rate`."""
    return {(e, p): measure_rate(e, p, seconds=seconds) for e, p in found}


def measure_rate(
    engine: str,
    precision: str,
    threads: int = 1,
    shape: Shape = (224, 224),
    seconds: float = 1.0,
) -> float:
    """Return images/s of the bare backbone on the CPU, on weights drawn at random.

    Takes about `seconds`, after one forward pass to warm up; the fastest pass counts. Of a single
    thread it is CPU seconds that count, which other work on the machine does not change much.
    """
    with _kept_threads(engine):
        choice = EngineChoice(engine, precision)
        run = load_feature_maps(random_arrays(DEFAULT_BACKBONE), (), choice, threads=threads)
        return _measure_rate(run, _BATCH if engine == "torch" else 1, threads, shape, seconds)


def _measure_rate(
    run: "FeatureMaps", images: int, threads: int, shape: Shape, seconds: float
) -> float:
    batch = np.random.default_rng(0).integers(0, 256, (images, *shape, 3), np.uint8)
    clock = time.process_time if threads == 1 else time.perf_counter
    run(batch)
    end = time.perf_counter() + seconds
    passes: list[float] = []
    while not passes or time.perf_counter() < end:
        start = clock()
        run(batch)
        passes.append(clock() - start)
    return images / max(min(passes), 1e-6)


@contextmanager
def _kept_threads(engine: str) -> Iterator[None]:
    """Leave torch with as many threads after a block as it had before."""
    if engine != "torch":
        yield
        return
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_arrays(backbone: BackboneSpec) -> dict[str, NDArray[np.float32]]:
    """Return weights of a backbone drawn at random, of the size of trained ones (He 2015)."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in backbone.tensors.items():
        if len(shape) > 1:
            scale = np.float32((2 / math.prod(shape[1:])) ** 0.5)
            arrays[name] = rng.standard_normal(shape, np.float32) * scale
        else:
            arrays[name] = np.full(shape, name.endswith(("weight", "running_var")), np.float32)
    return arrays


def load_segmenter(
    model: Model,
    choice: EngineChoice,
    threads: int | None = None,
    batches: bool = False,
    few: bool = False,
) -> Segmenter:
    """Load a model into an engine.

    threads: that a CPU gives it; all usable cores if None. batches: whether it will be called with
    many images at a time, of which ncnn then gives each thread some. few: whether for so few images
    that what loads faster is better than what runs faster. Raises DeviceError, ModelError.
    """
    backbone = model.spec.backbone_spec
    engine_of(choice.engine, backbone)
    check_backbone(model.backbone, backbone)
    if choice.engine == "ncnn":
        from segrec_batch.model.ncnn_engine import NcnnSegmenter, Threads

        count = threads or usable_cores()
        return NcnnSegmenter(model, Threads(images=count) if batches else Threads(count), few)
    import torch

    from segrec_batch.model.torch_engine import TorchSegmenter

    if threads:
        torch.set_num_threads(threads)
    return TorchSegmenter(model, choice.device, choice.precision)


FeatureMaps = Callable[[NDArray[np.uint8]], Mapping[str, Any]]
"""uint8 (B, H, W, 3) of one shape → {layer: (B, C, h, w)}, NumPy arrays or torch tensors."""


def load_feature_maps(
    state: Mapping[str, NDArray[np.float32]],
    taps: tuple[Tap, ...],
    choice: EngineChoice,
    scaling: Scaling | None = None,
    threads: int | None = None,
    images: int = 1,
    backbone: BackboneSpec = DEFAULT_BACKBONE,
) -> FeatureMaps:
    """Load the backbone alone into an engine: the maps of the taps' layers and of `feature_layer`.

    state: weights of the backbone by name. threads: that compute an image; all usable cores if
    None. images: that ncnn computes at a time.
    """
    scaling = scaling or Scaling()
    engine_of(choice.engine, backbone)
    layers = list(dict.fromkeys([*(tap.layer for tap in taps), backbone.feature_layer]))
    if choice.engine == "ncnn":
        from segrec_batch.model.ncnn_engine import NcnnFeatureMaps, Threads

        shared = Threads(threads or usable_cores(), images)
        return NcnnFeatureMaps(state, layers, scaling, shared, backbone)
    import torch

    from segrec_batch.model.torch_engine import FeatureMaps, Normalise, as_tensors

    if threads:
        torch.set_num_threads(threads)
    normalise = Normalise(scaling, choice.precision)
    return FeatureMaps(as_tensors(state), layers, normalise, choice.device, backbone)


def report_engine(choice: EngineChoice) -> None:
    """Say which engine was chosen and why, and warn of arithmetic that has to be emulated."""
    figures = {"engine": choice.engine, "precision": choice.precision, "device": choice.device}
    log.info(f"engine: {choice} ({choice.reason})", extra={"event": "engine", **figures})
    if choice.warning:
        log.warning(choice.warning)
