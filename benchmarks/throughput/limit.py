"""(a) The limit: the bare convolutions of VGG-16 on images in memory."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import vgg16

from benchmarks.common.bare_network import count_operations, measure_matrix_peak, measure_rate
from benchmarks.throughput.case import CORES, Case
from segrec_batch.images.decode import decode
from segrec_batch.model.backbones import DEFAULT_BACKBONE
from segrec_batch.model.bundle import load_model
from segrec_batch.model.class_maps import normalise
from segrec_batch.model.device import full_float32
from segrec_batch.model.engines import keep_memory
from segrec_batch.model.torch_engine import Normalise, as_tensors
from segrec_batch.sources.storage import read_many

CONVOLUTIONS = 30  # of vgg16().features, up to the ReLU of conv5_3
CPU_BATCHES = 1, 4  # images; larger batches are not faster on a CPU
CUDA_BATCHES = 1, 2, 4  # multiples of the batch of segrec
SECONDS = 8.0  # time of each measurement


def measure_limit(case: Case) -> dict[str, Any]:
    """Return images/s of the fastest variant; on a GPU also its share of the matrix product."""
    if case.device == "cpu":
        keep_memory()  # as segrec does; it is a tenth faster
    measure = _measure_ncnn if case.choice.engine == "ncnn" else _measure_torch
    measured = measure(case)
    rates = {variant: rate for variant, (rate, _) in measured.items()}
    best = max(rates, key=rates.__getitem__)
    result: dict[str, Any] = {
        "rates": rates,
        "images/s": rates[best],
        "flops": count_operations(case.shape),
    }
    result["cpu"] = min(cpu for _, cpu in measured.values())
    if case.device == "cuda":
        result["peak bytes"] = torch.cuda.max_memory_allocated()
        result["peak flops/s"] = measure_matrix_peak()["best"]
        result["share of peak"] = rates[best] * result["flops"] / result["peak flops/s"]
    return result


Rates = dict[str, tuple[float, float]]  # images/s and CPU seconds per image, by variant


def _measure_ncnn(case: Case) -> Rates:
    """Measure all threads on one image, and a thread per image in one network and in several."""
    from segrec_batch.model.ncnn_network import NcnnNetwork  # a machine with a GPU may lack it

    state, images = load_model(case.model).backbone, _images(case, CORES)
    scaled = [normalise(image, case.spec.scaling) for image in images]
    threaded = NcnnNetwork(state, [DEFAULT_BACKBONE.feature_layer], threads=CORES)
    networks = [NcnnNetwork(state, [DEFAULT_BACKBONE.feature_layer]) for _ in range(CORES)]
    shared = [lambda x=x: networks[0](x) for x in scaled]
    separate = [lambda n=n, x=x: n(x) for n, x in zip(networks, scaled, strict=True)]
    return {
        f"{CORES} threads an image": _measure_parallel([lambda: threaded(scaled[0])]),
        "a thread an image": _measure_parallel(shared),
        "a thread an image, a network each": _measure_parallel(separate),
    }


def _measure_parallel(runs: Sequence[Callable[[], Any]]) -> tuple[float, float]:
    """Return images/s and CPU seconds per image of functions that run in parallel threads."""

    def repeat(run: Callable[[], Any]) -> int:
        done = 0
        while time.perf_counter() < end:
            run()
            done += 1
        return done

    for run in runs:
        run()
    spent, start = time.process_time(), time.perf_counter()
    end = start + SECONDS
    with ThreadPoolExecutor(len(runs)) as threads:
        done = sum(threads.map(repeat, runs))
    return done / (time.perf_counter() - start), (time.process_time() - spent) / done


def _measure_torch(case: Case) -> Rates:
    """Measure batches of several sizes, on all threads."""
    torch.set_num_threads(CORES)
    sizes = (
        [case.batch_size * n for n in CUDA_BATCHES] if case.device == "cuda" else list(CPU_BATCHES)
    )
    network, images = _network(case), _batch(case, sizes[-1])
    with full_float32():
        return {
            f"batches of {size}": measure_rate(network, images.split(size), SECONDS)
            for size in sizes
        }


def _network(case: Case) -> nn.Module:
    features = vgg16(weights=None).features
    features.load_state_dict(as_tensors(load_model(case.model).backbone))
    dtype = getattr(torch, case.choice.precision)
    network = features[:CONVOLUTIONS].eval().requires_grad_(False).to(case.device, dtype)
    channels_last: nn.Module = network.to(memory_format=torch.channels_last)
    return channels_last


def _images(case: Case, count: int) -> list[NDArray[np.uint8]]:
    """Return images as the model takes them, (H, W, 3)."""
    files = [c for c in read_many(case.paths()[:count]) if isinstance(c, bytes)]
    images = [decode(c, case.spec.shapes).pixels for c in files]
    return [images[i % len(images)] for i in range(count)]


def _batch(case: Case, count: int) -> Tensor:
    """Return images as the network takes them, (B, 3, H, W)."""
    scale = Normalise(case.spec.scaling, case.choice.precision).to(case.device)
    few = torch.from_numpy(np.stack(_images(case, min(count, 8)))).to(case.device)
    repeated: Tensor = scale(few).repeat(-(-count // len(few)), 1, 1, 1)[:count]
    return repeated.contiguous(memory_format=torch.channels_last)
