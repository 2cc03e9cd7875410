"""(a) of throughput.py, the limit: the bare convolutions of VGG-16 on a batch that is there."""

from typing import Any

import torch
from bare import count_operations, measure_matrix_peak, measure_rate
from throughput_case import CORES, Case
from torch import Tensor, nn
from torchvision.models import vgg16

from segrec_batch.decode import decode
from segrec_batch.model.bundle import load_model
from segrec_batch.model.device import full_float32, keep_memory, resolve_device
from segrec_batch.model.segmenter import Normalise
from segrec_batch.storage import read_many

CONVOLUTIONS = 30  # of vgg16().features, up to the ReLU of conv5_3
CPU_BATCHES = 1, 4, 8  # larger ones are no faster there
CUDA_BATCHES = 1, 2, 4  # times the batch of segrec
SECONDS = 8.0  # of forwards that are timed, for each size of batch


def limit(case: Case) -> dict[str, Any]:
    """Pictures/s of the best batch; on a GPU also the share of its bf16 matrix product."""
    torch.set_num_threads(CORES)
    device = resolve_device(case.device)
    if device == "cpu":
        keep_memory()  # as segrec does: a tenth faster, and so the harder limit
    network, pictures = _network(case, device), _pictures(case, device)
    sizes = _sizes(case, device)
    with full_float32():
        measured = {size: measure_rate(network, pictures.split(size), SECONDS) for size in sizes}
    rates = {size: rate for size, (rate, _) in measured.items()}
    best = max(rates, key=rates.__getitem__)
    flops = count_operations(case.shape)
    found = {"rates": rates, "images/s": rates[best], "flops": flops}
    found["cpu"] = min(cpu for _, cpu in measured.values())
    if device == "cuda":
        found["peak bytes"] = torch.cuda.max_memory_allocated()
        found["peak flops/s"] = measure_matrix_peak()["best"]
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
