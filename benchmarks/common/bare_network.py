"""Speed and number of operations of the convolutions of VGG-16 alone."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segrec_batch.images.decode import Shape
from segrec_batch.model.backbones.vgg import VGG16_LAYERS as LAYERS

MATRIX = 8192
_KERNEL = 9  # cells of a 3×3 convolution
_PRODUCTS = 30


def count_operations(shape: Shape) -> int:
    """Return the multiplications and additions of all 13 convolutions on one image.

    shape: height and width of the image, multiples of 16.

    >>> count_operations((224, 224))
    30693261312
    """
    total, inputs = 0, 3
    for layer in LAYERS.values():
        cells = (shape[0] // layer.stride) * (shape[1] // layer.stride)
        total += 2 * _KERNEL * inputs * layer.channels * cells
        inputs = layer.channels
    return total


@torch.inference_mode()
def measure_rate(
    run: Callable[[Tensor], Any], batches: Sequence[Tensor], seconds: float
) -> tuple[float, float]:
    """Return images/s and CPU seconds per image of `run`, warm, over repeated batches.

    batches: tensors (B, 3, H, W) of one device; a GPU gets all of them before the function waits.
    seconds: minimum time of the measurement.
    """
    run(batches[0])
    wait(batches[0])
    images, spent, start = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - start < seconds:
        for batch in batches:
            run(batch)
            images += len(batch)
            if not batch.is_cuda and time.perf_counter() - start > seconds:
                break
        wait(batches[0])
    rate = images / (time.perf_counter() - start)
    return rate, (time.process_time() - spent) / images


def wait(x: Tensor) -> None:
    """Wait until the device of a tensor has finished its work."""
    if x.is_cuda:
        torch.cuda.synchronize()


def measure_matrix_peak(device: str = "cuda", side: int = MATRIX) -> dict[str, float]:
    """Return operations/s of a product of two random bf16 matrices of side²: best and median."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    measure = _measure_by_events if a.is_cuda else _measure_seconds
    seconds = [measure(lambda: a @ b) for _ in range(_PRODUCTS)]
    operations = 2 * side**3
    return {"best": operations / min(seconds), "median": operations / statistics.median(seconds)}


def _measure_by_events(work: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _measure_seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
