"""Speed of JPEG decoders on the cores of the host and on the device.

The processes that decode with Pillow import no torch.
"""

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import GpuCase, Row, write_shape
from segrec_batch.images.decode import Shape, decode

log = logging.getLogger("segrec_batch.benchmarks")

Decoder = Callable[[bytes], Any]
_HOST_DECODERS = ("Pillow", "torchvision", "TorchCodec")
_DEVICE_BATCH = 64  # JPEGs that nvJPEG gets together
_CHUNK = 8  # JPEGs of one task of a process
_TORCHCODEC = (0, 16)  # the first version that decodes images


def measure_decoding(case: GpuCase) -> Iterator[Row]:
    """Yield JPEGs/s of each decoder: one process, one for each core, the device."""
    for decoder in _HOST_DECODERS:
        reason = _find_obstacle(decoder)
        if reason:
            yield {"decoder": decoder, "where": "host", "skipped": reason}
            continue
        for processes in dict.fromkeys((1, case.cores)):
            log.info(f"  {decoder}, {processes} processes")
            yield from _measure_guarded(_measure_host, case, decoder, processes)
    for decoder in ("torchvision, nvJPEG", "torchvision, nvJPEG, and resize", "TorchCodec, nvJPEG"):
        reason = _find_obstacle("TorchCodec") if decoder.startswith("TorchCodec") else ""
        if not case.is_cuda or reason:
            yield {"decoder": decoder, "where": "device", "skipped": reason or "needs CUDA"}
            continue
        log.info(f"  {decoder}")
        yield from _measure_guarded(_measure_device, case, decoder)
    if case.is_cuda:
        from benchmarks.gpu.bare import measure_peak_memory

        yield from measure_peak_memory(case)


def _measure_guarded(
    measure: Callable[..., Row], case: GpuCase, decoder: str, *processes: int
) -> Iterator[Row]:
    row: Row = {"decoder": decoder, "where": "device" if "nvJPEG" in decoder else "host"}
    row |= {"processes": processes[0]} if processes else {}
    try:
        yield row | measure(case, decoder, *processes)
    except Exception as error:  # other decoders may succeed
        yield row | {"error": f"{type(error).__name__}: {error}"}


def _find_obstacle(decoder: str) -> str:
    """Return the reason why a decoder cannot be used; an empty text if it can."""
    package = {"torchvision": "torchvision", "TorchCodec": "torchcodec"}.get(decoder)
    if package is None:
        return ""
    if find_spec(package) is None:
        return f"{package} is not installed"
    installed = version(package)
    if package == "torchcodec" and tuple(map(int, installed.split(".")[:2])) < _TORCHCODEC:
        return f"torchcodec {installed} does not decode images; 0.16 does"
    return ""


def _measure_host(case: GpuCase, decoder: str, processes: int) -> Row:
    """Return JPEGs/s of a pool of processes that have the JPEGs in memory and keep the results.

    Pillow also resizes, as in the indexing job.
    """
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes + 1)
    count = case.sizes.decoded * processes
    arguments = (ready, decoder, case.images, case.sizes.shapes[0])
    with context.Pool(processes, _load, arguments) as pool:
        ready.wait(60)
        starts = range(0, count, _CHUNK)
        tasks = [(start, min(_CHUNK, count - start)) for start in starts]
        clock = time.perf_counter()
        pool.starmap(_decode_chunk, tasks, chunksize=1)
        seconds = time.perf_counter() - clock
    resized = write_shape(case.sizes.shapes[0]) if decoder == "Pillow" else "no"
    return {"images/s": count / seconds, "images": count, "resized": resized}


class _Process:
    """State of a process of the pool: its decoder, and JPEGs in memory."""

    run: Decoder
    jpegs: list[bytes]


def _load(ready: threading.Barrier, decoder: str, paths: list[str], shape: Shape) -> None:
    _Process.jpegs = [Path(path).read_bytes() for path in paths]
    _Process.run = staticmethod(_load_host_decoder(decoder, shape))
    _Process.run(_Process.jpegs[0])
    ready.wait()


def _load_host_decoder(decoder: str, shape: Shape) -> Decoder:
    if decoder == "Pillow":
        return lambda jpeg: decode(jpeg, [shape])
    import torch

    torch.set_num_threads(1)
    if decoder == "torchvision":
        from torchvision.io import decode_jpeg

        return lambda jpeg: decode_jpeg(_tensor(jpeg))
    from torchcodec import decoders

    run: Decoder = decoders.decode_jpeg
    return run


def _decode_chunk(start: int, count: int) -> None:
    jpegs = _Process.jpegs
    for i in range(start, start + count):
        _Process.run(jpegs[i % len(jpegs)])


def _tensor(jpeg: bytes) -> Any:
    import torch

    return torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)


def _measure_device(case: GpuCase, decoder: str) -> Row:
    """Return JPEGs/s of batches from the memory of the host to uint8 tensors on the device."""
    import torch

    jpegs = [Path(path).read_bytes() for path in case.images]
    batch = [_tensor(jpeg) for jpeg in islice(cycle(jpegs), _DEVICE_BATCH)]
    run = _load_device_decoder(decoder, case)
    run(batch)
    torch.cuda.synchronize()
    done, clock = 0, time.perf_counter()
    while (seconds := time.perf_counter() - clock) < case.sizes.seconds:
        run(batch)
        torch.cuda.synchronize()
        done += len(batch)
    resized = write_shape(case.sizes.shapes[0]) if decoder.endswith("resize") else "no"
    return {"images/s": done / seconds, "images": done, "resized": resized}


def _load_device_decoder(decoder: str, case: GpuCase) -> Callable[[list[Any]], Any]:
    import torch

    if decoder.startswith("TorchCodec"):
        from torchcodec import decoders

        return lambda batch: [decoders.decode_jpeg(jpeg, device=case.device) for jpeg in batch]
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode_batch(batch: list[Any]) -> Any:
        return decode_jpeg(batch, mode=ImageReadMode.RGB, device=case.device)

    def decode_and_resize(batch: list[Any]) -> Any:
        pixels = torch.stack(decode_batch(batch)).to(torch.bfloat16)
        return torch.nn.functional.interpolate(
            pixels, case.sizes.shapes[0], mode="bilinear", antialias=True
        )

    return decode_and_resize if decoder.endswith("resize") else decode_batch
