"""The device a model runs on: which it is, how images get there and results back."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segrec_batch.common.errors import DeviceError


def resolve_device(name: str) -> str:
    """`auto` → `cuda` where there is a GPU, else `cpu`; any other name must exist (DeviceError)."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"device {name} asked for, but torch sees no GPU; say --device cpu or auto"
        )
    try:
        if torch.device(name).type == "cpu":  # also cpu:0
            return "cpu"
        torch.ones(1, device=name).add(1).item()  # a GPU may be too old for this PyTorch
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {name} is not available: {error}") from error
    return name


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions of float32 are that on GPUs, too, which otherwise keep 10 bits of a mantissa."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class Upload:
    """Copies images to a device; to a GPU while it computes what it was given before."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.startswith("cuda") else None

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """An array as a tensor on the device. Work launched afterwards waits for it."""
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
    """Copies results to the host without waiting for them.

    What it returns holds the results from the end of `wait` on.
    """

    def __init__(self, device: str) -> None:
        # else the thread that waits for it would take a core
        self._done = torch.cuda.Event(blocking=True) if device.startswith("cuda") else None

    def __call__(self, result: Tensor) -> Tensor:
        """A tensor on the host, in pinned memory if it comes from a GPU."""
        host = result.to("cpu", non_blocking=self._done is not None)
        if self._done:
            self._done.record(torch.cuda.current_stream(result.device))
        return host

    def wait(self) -> None:
        """Return when all is there."""
        if self._done:
            self._done.synchronize()
