"""Engines: the libraries that run a model, and their speed on this machine.

Engine and precision belong to a run, not to a model: rows of one index may come from different
engines, within the tolerances of docs/segmentation.md.
"""

import ctypes
import logging
import math
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
from segrec_batch.common.host import usable_cores
from segrec_batch.images.decode import Shape
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec, Tap
from segrec_batch.model.bundle import Model, check_backbone
from segrec_batch.model.segmentation import Segmenter
from segrec_batch.model.spec import Scaling

log = logging.getLogger(__name__)

ENGINES = ("ncnn", "torch")
PRECISIONS = ("float32", "bfloat16")
Candidate = tuple[str, str]
"""An engine and a precision."""
BYTES_PER_PIXEL = 2_560
"""Bytes of the maps and the workspace of an image in ncnn, for each of its pixels."""
FeatureMaps = Callable[[NDArray[np.uint8]], Mapping[str, Any]]
"""uint8 (B, H, W, 3) of one shape → {layer: (B, C, h, w)}, NumPy arrays or torch tensors."""

_EMULATED_COST = 9  # time of emulated bfloat16 over that of float32 (VGG-16, 224 × 224, Zen 3)
_BATCH = 4  # images that torch runs together on a CPU
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENAS = -1, -4, -8  # of mallopt(3)
_MEMORY_ERRORS = ("out of memory", "ALLOC_FAILED", "unable to find an engine")  # the last: cuDNN


@dataclass(frozen=True)
class EngineChoice:
    """An engine, its precision (float32 or bfloat16), its device, and the reason of the choice.

    emulated_on: name of the processor if it has to emulate the precision; else empty.
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
        """A sentence about a precision that the processor has to emulate."""
        if not self.emulated_on:
            return None
        return (
            f"{self.emulated_on} has no bfloat16 instructions and emulates them: about "
            f"{_EMULATED_COST} times slower than torch in float32, and 20 times slower than ncnn; "
            "say --precision float32"
        )


def explain_missing_engine(name: str) -> str | None:
    """Return the reason why an engine cannot be used on this machine; None if it can."""
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


def resolve_engine(engine: str, backbone: BackboneSpec) -> str:
    """Return the engine, or the only one that runs a backbone if it is `auto`.

    Raises EngineError for an engine that does not run the backbone.
    """
    if engine == "auto":
        return engine if backbone.engines == ENGINES else backbone.engines[0]
    if engine in ENGINES and engine not in backbone.engines:
        engines = " and ".join(backbone.engines)
        raise EngineError(f"--engine {engine}: {backbone.title} runs in {engines} only")
    return engine


def report_engine(choice: EngineChoice) -> None:
    """Log the engine and the reason of its choice, and warn of emulated arithmetic."""
    details = {"engine": choice.engine, "precision": choice.precision, "device": choice.device}
    log.info(f"engine: {choice} ({choice.reason})", extra={"event": "engine", **details})
    if choice.warning:
        log.warning(choice.warning)


def load_segmenter(
    model: Model,
    choice: EngineChoice,
    threads: int | None = None,
    batches: bool = False,
    few: bool = False,
) -> Segmenter:
    """Load a model into an engine.

    Args:
        model: The model.
        choice: Engine, precision and device.
        threads: Threads on a CPU; None takes all usable cores.
        batches: True for calls with many images; ncnn then gives each thread whole images.
        few: True for so few images that loading time matters more than speed.

    Raises:
        DeviceError: The device does not exist.
        EngineError: The engine does not run the backbone.
        ModelError: A tensor of the backbone is missing.
    """
    backbone = model.spec.backbone_spec
    resolve_engine(choice.engine, backbone)
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


def load_feature_maps(
    state: Mapping[str, NDArray[np.float32]],
    taps: tuple[Tap, ...],
    choice: EngineChoice,
    scaling: Scaling | None = None,
    threads: int | None = None,
    images: int = 1,
    backbone: BackboneSpec = DEFAULT_BACKBONE,
) -> FeatureMaps:
    """Load a backbone alone: the maps of the taps' layers and of its feature layer.

    Args:
        state: Weights of the backbone by name.
        taps: Taps whose layers are returned.
        choice: Engine, precision and device.
        scaling: Normalisation of pixels.
        threads: Threads that compute an image; None takes all usable cores.
        images: Images that ncnn computes at a time.
        backbone: The network.
    """
    scaling = scaling or Scaling()
    resolve_engine(choice.engine, backbone)
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


def measure_rate(
    engine: str,
    precision: str,
    threads: int = 1,
    shape: Shape = (224, 224),
    seconds: float = 1.0,
    backbone: BackboneSpec = DEFAULT_BACKBONE,
) -> float:
    """Return images/s of a backbone on the CPU, with random weights.

    Takes about `seconds`, after one pass to warm up; the fastest pass counts. One thread is
    measured in CPU seconds, which other processes affect little.
    """
    with _restored_threads(engine):
        choice = EngineChoice(engine, precision)
        state = random_arrays(backbone)
        run = load_feature_maps(state, (), choice, threads=threads, backbone=backbone)
        return _measure_rate(run, _BATCH if engine == "torch" else 1, threads, shape, seconds)


def _measure_rate(
    run: FeatureMaps, images: int, threads: int, shape: Shape, seconds: float
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
def _restored_threads(engine: str) -> Iterator[None]:
    """Restore torch's number of threads after the block."""
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
    """Return random weights of a backbone, of the magnitude of trained ones (He 2015)."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in backbone.tensors.items():
        if len(shape) > 1:
            scale = np.float32((2 / math.prod(shape[1:])) ** 0.5)
            arrays[name] = rng.standard_normal(shape, np.float32) * scale
        else:
            arrays[name] = np.full(shape, name.endswith(("weight", "running_var")), np.float32)
    return arrays


def keep_memory() -> None:
    """Let this process keep freed memory, up to 2 GiB, where its C library is glibc.

    Otherwise the kernel provides and clears the pages of every large array, which takes a tenth of
    the time of VGG-16 on a CPU. Arrays of other sizes do not fit into this memory, see
    `release_memory`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENAS, 1)):
            mallopt(parameter, value)


def release_memory() -> None:
    """Return freed memory to the kernel before the process needs arrays of other sizes.

    Otherwise each size leaves gaps that no other size fills, and memory grows several times.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def is_memory_error(error: Exception) -> bool:
    """Return True if the device had too little memory; engines have no type for this error."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _MEMORY_ERRORS)
