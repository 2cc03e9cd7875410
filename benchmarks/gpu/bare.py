"""Measurements of a device: its matrix product, and variants of the bare convolutions."""

import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.bare_network import count_operations, measure_matrix_peak, measure_rate
from benchmarks.gpu.case import GpuCase, Row, write_shape
from segrec_batch.model.device import resolve_device
from segrec_batch.model.network import Backbone
from segrec_batch.model.weights import load_weights

log = logging.getLogger("segrec_batch.benchmarks")

TAPS = ("conv3_3", "conv4_3", "conv5_3")
REPEATS = 4  # batches in the queue of a GPU
_WARM = 3  # passes before a graph is captured, in which cuDNN chooses its algorithms

Maps = Mapping[str, Tensor]
Network = Callable[[Tensor], Maps]


def describe_device(case: GpuCase) -> Iterator[Row]:
    """Yield names and versions. Raises DeviceError where the device does not exist."""
    resolve_device(case.device)
    row = {"device": platform.processor() or platform.machine(), "cores": case.cores}
    if case.is_cuda:
        properties = torch.cuda.get_device_properties(0)
        row = {"device": properties.name, "memory": properties.total_memory, "cores": case.cores}
        row |= {"capability": f"{properties.major}.{properties.minor}"}
    versions: Row = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    yield row | versions


def measure_peak(case: GpuCase) -> Iterator[Row]:
    """Yield the speed of a product of two bf16 matrices."""
    side = case.sizes.matrix
    rates = measure_matrix_peak(case.device, side)
    yield {"matrix": side, "flops/s": rates["best"], "median flops/s": rates["median"]}
    yield from measure_peak_memory(case)


def measure_bare(case: GpuCase) -> Iterator[Row]:
    """Yield the speed of the backbone as it is and as CUDA graphs, then with cuDNN's search."""
    yield from _measure_variant(case, "eager", lambda network, _: network)
    yield from _measure_graphs(case, "CUDA graph")
    torch.backends.cudnn.benchmark = True
    if case.is_cuda:
        yield from _measure_variant(case, "eager, cudnn.benchmark", lambda network, _: network)
    yield from _measure_graphs(case, "CUDA graph, cudnn.benchmark")
    yield from measure_peak_memory(case)


def _measure_graphs(case: GpuCase, variant: str) -> Iterator[Row]:
    if case.is_cuda:
        yield from _measure_variant(case, variant, GraphedNetwork, pads=True)
    else:
        yield {"variant": variant, "skipped": "needs CUDA"}


def measure_compiled(case: GpuCase) -> Iterator[Row]:
    """Yield the speed of the backbone compiled in the default mode."""
    yield from _measure_variant(case, "compiled", lambda network, _: _compile(network))
    yield from measure_peak_memory(case)


def measure_autotuned(case: GpuCase) -> Iterator[Row]:
    """Yield the speed of the backbone compiled with a search for the fastest kernels."""
    mode = "max-autotune-no-cudagraphs"
    yield from _measure_variant(case, mode, lambda network, _: _compile(network, mode))
    yield from measure_peak_memory(case)


def measure_peak_memory(case: GpuCase) -> Iterator[Row]:
    """Yield the peak of the bytes that this process allocated on a GPU; nothing on a CPU."""
    if case.is_cuda:
        yield {"peak bytes": torch.cuda.max_memory_allocated()}


def _compile(network: Network, mode: str = "default") -> Network:
    # a dynamic batch would be compiled into other kernels than the static one
    compiled: Network = torch.compile(network, mode=mode, dynamic=False)
    return compiled


class GraphedNetwork:
    """A network captured as a CUDA graph for batches of one shape, channels-last.

    A smaller batch is padded with images of the previous batch.
    """

    def __init__(self, network: Network, batch: Tensor) -> None:
        self._input = batch.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(_WARM):
                network(self._input)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self._maps = network(self._input)

    def __call__(self, batch: Tensor) -> Maps:
        """Return the maps of images (b, 3, H, W), b at most that of the captured batch.

        The next call overwrites the maps.
        """
        self._input[: len(batch)].copy_(batch)
        self._graph.replay()
        return {name: maps[: len(batch)] for name, maps in self._maps.items()}


def _measure_variant(
    case: GpuCase,
    variant: str,
    prepare: Callable[[Network, Tensor], Network],
    pads: bool = False,
) -> Iterator[Row]:
    """Yield a row for each shape and batch size, with its error if it fails.

    prepare: builds the variant from a network and a batch. pads: it also accepts smaller batches.
    """
    network = Backbone(load_weights("random:0").state, TAPS).to(case.device, torch.bfloat16)
    for shape in case.sizes.shapes:
        for size in case.sizes.batches:
            row: Row = {"variant": variant, "shape": write_shape(shape), "batch": size}
            log.info(f"  {variant}, {row['shape']}, batches of {size}")
            try:
                x = _draw_batch(case, (size, 3, *shape))
                run = prepare(network, x)
                row["difference"] = _difference(network, run, x[: (size + 1) // 2] if pads else x)
                rate, cpu = measure_rate(run, [x] * REPEATS, case.sizes.seconds)
                row |= {"images/s": rate, "flops/s": rate * count_operations(shape), "cpu": cpu}
            except Exception as error:  # other shapes and sizes may succeed
                row["error"] = f"{type(error).__name__}: {error}"
            yield row
            run = x = None  # type: ignore[assignment]
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


def _draw_batch(case: GpuCase, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator(case.device).manual_seed(0)
    x = torch.randn(shape, generator=generator, device=case.device)
    return x.to(torch.bfloat16, memory_format=torch.channels_last)


@torch.inference_mode()
def _difference(network: Network, run: Network, x: Tensor) -> float:
    """Return the largest difference of conv5_3 from the eager network, relative to its maximum."""
    expected: Any = network(x)[TAPS[-1]].float()
    values = run(x)[TAPS[-1]].float()
    return float((values - expected).abs().max() / expected.abs().max())
