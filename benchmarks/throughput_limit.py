"""(a) of throughput.py, the limit: the bare convolutions of VGG-16 on a batch that is there."""

import time
from collections.abc import Callable
from typing import Any

import torch
from segrec_batch.model.segmenter import Normalise
from throughput_case import CORES, Case
from torch import Tensor, nn
from torchvision.models import vgg16

from segrec_batch.decode import decode
from segrec_batch.model.bundle import load_model
from segrec_batch.model.device import full_float32, keep_memory, resolve_device
from segrec_batch.storage import read_many

CONVOLUTIONS = 30  # of vgg16().features, up to the ReLU of conv5_3
CPU_BATCHES = 1, 4, 8  # larger ones are no faster there
CUDA_BATCHES = 1, 2, 4  # times the batch of segrec
SECONDS = 8.0  # of forwards that are timed, for each size of batch
MATRIX = 8192


def limit(case: Case) -> dict[str, Any]:
    """Pictures/s of the best batch; on a GPU also the share of its bf16 matrix product."""
    torch.set_num_threads(CORES)
    device = resolve_device(case.device)
    if device == "cpu":
        keep_memory()  # as segrec does: a tenth faster, and so the harder limit
    network, pictures = _network(case, device), _pictures(case, device)
    sizes = _sizes(case, device)
    measured = {size: _rate(network, pictures, size) for size in sizes}
    rates = {size: rate for size, (rate, _) in measured.items()}
    best = max(rates, key=rates.__getitem__)
    flops = operations(network, pictures[:1])
    found = {"rates": rates, "images/s": rates[best], "flops": flops}
    found["cpu"] = min(cpu for _, cpu in measured.values())
    if device == "cuda":
        found["peak bytes"] = torch.cuda.max_memory_allocated()
        found["peak flops/s"] = matrix_peak()
        found["share of peak"] = rates[best] * flops / found["peak flops/s"]
    return found


def _sizes(case: Case, device: str) -> list[int]:
    """Of batches, in ascending order."""
    return [case.batch_size * n for n in CUDA_BATCHES] if device == "cuda" else list(CPU_BATCHES)


def _network(case: Case, device: str) -> nn.Module:
    model = load_model(case.model)
    features = vgg16(weights=None).features
    features.load_state_dict(dict(model.backbone))
    dtype = getattr(torch, model.spec.dtype)
    network = features[:CONVOLUTIONS].eval().requires_grad_(False).to(device, dtype)
    return network.to(memory_format=torch.channels_last)


def _pictures(case: Case, device: str) -> Tensor:
    """A few pictures as the network takes them: (B, 3, H, W), as many as the largest batch."""
    spec, wanted = case.spec, _sizes(case, device)[-1]
    contents = read_many(case.paths()[:wanted])
    pixels = [torch.from_numpy(decode(c, spec.shapes).pixels) for c in contents]
    normalise = Normalise(spec.minmax, spec.mean, spec.std, spec.dtype).to(device)
    x = torch.cat([normalise(p[None].to(device)) for p in pixels])
    repeated = x.repeat(-(-wanted // len(x)), 1, 1, 1)[:wanted]
    return repeated.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
@full_float32()
def _rate(network: nn.Module, pictures: Tensor, size: int) -> tuple[float, float]:
    """Pictures/s of forwards over all pictures, warm; CPU seconds of a picture."""
    batches = pictures.split(size)
    network(batches[0])
    _wait(pictures)
    done, spent, start = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        for batch in batches:
            network(batch)
            done += len(batch)
            if pictures.device.type == "cpu" and time.perf_counter() - start > SECONDS:
                break
        _wait(pictures)
    rate = done / (time.perf_counter() - start)
    return rate, (time.process_time() - spent) / done


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def operations(network: nn.Module, picture: Tensor) -> int:
    """Additions and multiplications of the convolutions of one picture, from their shapes."""
    counts: list[int] = []

    def count(layer: nn.Conv2d, _: Any, output: Tensor) -> None:
        counts.append(2 * layer.weight.numel() * output.shape[-2] * output.shape[-1])

    handles = [m.register_forward_hook(count) for m in network if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        network(picture)
    for handle in handles:
        handle.remove()
    return sum(counts)


def matrix_peak() -> float:
    """Operations/s of a product of two random bf16 matrices of 8192², by CUDA events."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = min(_timed(lambda: a @ b) for _ in range(30))
    return float(2 * MATRIX**3 / seconds)


def _timed(work: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000
