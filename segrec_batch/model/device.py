"""The device of a model, and the transfer of images and results."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segrec_batch.common.errors import DeviceError


def resolve_device(name: str) -> str:
    """Return the name of an existing device; `auto` is `cuda` or `cpu`. Raises DeviceError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device {name}: torch finds no GPU; use --device cpu or auto")
    try:
        if torch.device(name).type == "cpu":  # also cpu:0
            return "cpu"
        torch.ones(1, device=name).add(1).item()  # a GPU may be too old for this PyTorch
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {name} is not available: {error}") from error
    return name


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 convolutions on GPUs with all 23 bits of the mantissa, not with 10."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class Upload:
    """Copy of images to a device, while a GPU computes earlier images."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.startswith("cuda") else None

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return an array as a tensor on the device; work that is launched later waits for it."""
        batch = torch.from_numpy(pixels)
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(batch.device)
        computing.wait_stream(self._stream)
        batch.record_stream(computing)
        return batch


class Download:
    """Copy of results to the host, without waiting; they are complete after `wait`."""

    def __init__(self, device: str) -> None:
        # blocking: otherwise the waiting thread would use a core
        self._done = torch.cuda.Event(blocking=True) if device.startswith("cuda") else None

    def __call__(self, result: Tensor) -> Tensor:
        """Return a tensor on the host, in pinned memory if it comes from a GPU."""
        host = result.to("cpu", non_blocking=self._done is not None)
        if self._done:
            self._done.record(torch.cuda.current_stream(result.device))
        return host

    def wait(self) -> None:
        """Wait until all results are complete."""
        if self._done:
            self._done.synchronize()
