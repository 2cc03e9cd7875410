"""The stage of the indexing job that runs the model: a class with Arrow tables in and out.

It is independent of Ray. Rows that failed in an earlier stage pass unchanged.
"""

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from segrec_batch.common.errors import DeviceError
from segrec_batch.descriptors.inputs import DescriptorVector
from segrec_batch.images.decode import Shape, mask_shape
from segrec_batch.model.bundle import load_model
from segrec_batch.model.engines import (
    EngineChoice,
    is_memory_error,
    keep_memory,
    load_segmenter,
    release_memory,
)
from segrec_batch.model.segmented_image import FIELDS, SegmentedImage, decode_pixels, to_arrow
from segrec_batch.pipeline.stage_schema import SEGMENTED, encode_vectors
from segrec_batch.pipeline.tally import Occupancy, add_cost

log = logging.getLogger(__name__)
_TORCH_CPU_BATCH = 4


class SegmentStage:
    """The model and the descriptors that compute on its device, applied to DECODED rows.

    The model is loaded once. Two concurrent calls keep a GPU busy: while it computes for one call,
    the other call packs its results.
    """

    def __init__(self, model: str, engine: EngineChoice, threads: int | None = None) -> None:
        from segrec_batch.descriptors import runtime

        device = engine.device
        if device == "cpu":
            keep_memory()
        if engine.engine == "ncnn":  # its threads process one image each
            threadpool_limits(1, user_api="blas")
        bundle = load_model(model)
        spec = bundle.spec
        self.segmenter = load_segmenter(bundle, engine, threads, batches=True)
        names, device = runtime.on_device(spec), self.segmenter.device
        self.descriptors = runtime.load(model, names, device, engine.precision)
        self.keeps_pixels = runtime.read_pixels(runtime.on_host(spec))
        # maximum number of images per call; None on a GPU until its memory is full. On a CPU, torch
        # is as fast with few images and needs less memory; ncnn distributes all images to its
        # threads
        self.max_batch = _TORCH_CPU_BATCH if (engine.engine, device) == ("torch", "cpu") else None
        self._last_shape: Shape | None = None
        self._release_memory = release_memory if device == "cpu" else lambda: None
        self._device_lock = threading.Lock()
        # ncnn runs two calls at once, which keeps its threads busy
        self._launch_lock: AbstractContextManager[Any] = (
            nullcontext() if engine.engine == "ncnn" else self._device_lock
        )

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Return SEGMENTED rows of DECODED rows; images of one shape run together.

        Raises:
            DeviceError: a single image is too large for the memory of the device.
        """
        frames = _make_frames(decoded)
        for shape, group in groupby(frames, key=lambda frame: frame.shape):
            if shape != self._last_shape:
                self._release_memory()
            self._last_shape = shape
            self._segment(list(group))
        images: list[SegmentedImage | None] = [None] * decoded.num_rows
        vectors: list[list[DescriptorVector] | None] = [None] * decoded.num_rows
        for frame in frames:
            images[frame.row], vectors[frame.row] = frame.image, frame.vectors
        columns = {field.name: decoded[field.name] for field in decoded.schema}
        columns |= dict(zip([field.name for field in FIELDS], to_arrow(images), strict=True))
        columns["described"] = encode_vectors(vectors)
        if not self.keeps_pixels:
            columns["pixels"] = pa.nulls(decoded.num_rows, pa.binary())
        return pa.table([columns[name] for name in SEGMENTED.names], schema=SEGMENTED)

    def _segment(self, frames: Sequence["_Frame"]) -> None:
        """Segment images of one shape, as many at a time as the device holds."""
        start = 0
        while start < len(frames):
            batch = frames[start : start + (self.max_batch or len(frames))]
            try:
                self._segment_batch(batch)
                start += len(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_memory_error(error):
                    raise
                self._halve_batch(len(batch), error)

    def _segment_batch(self, frames: Sequence["_Frame"]) -> None:
        batch = np.stack([frame.pixels for frame in frames])
        with self._launch_lock:
            pending = self.segmenter.launch(batch, [frame.mask_shape for frame in frames])
        segmentation = pending.result()
        images = [SegmentedImage.of(segmentation, i, f.pixels) for i, f in enumerate(frames)]
        by_descriptor = [descriptor(images, self._device_lock) for descriptor in self.descriptors]
        for i, frame in enumerate(frames):
            frame.image = images[i]
            frame.vectors = [vectors[i] for vectors in by_descriptor]

    def _halve_batch(self, size: int, error: Exception) -> None:
        if size == 1:
            raise DeviceError(
                f"the device has too little memory for one image ({error}); end other programs "
                "on it, or train a model with a smaller --input-size"
            ) from error
        self.max_batch = min(self.max_batch or size, size // 2)
        traceback.clear_frames(error.__traceback__)  # frees the tensors of the failed call
        if self.segmenter.device != "cpu":
            import torch

            torch.cuda.empty_cache()
        log.warning(
            "out of memory on the device: continuing with %d images at a time", self.max_batch
        )


@dataclass
class _Frame:
    """Pixels of one DECODED row, and the results of the model for them."""

    row: int
    pixels: NDArray[np.uint8]
    mask_shape: Shape
    image: SegmentedImage | None = None
    vectors: list[DescriptorVector] | None = None

    @property
    def shape(self) -> Shape:
        return self.pixels.shape[0], self.pixels.shape[1]


def _make_frames(decoded: pa.Table) -> list[_Frame]:
    """Return a frame for each row that has pixels, ordered by shape."""
    columns = (decoded[name].to_pylist() for name in ("shape", "height", "width"))
    frames = [
        _Frame(row, decode_pixels(content.as_buffer(), shape), mask_shape(height, width))
        for row, (content, shape, height, width) in enumerate(
            zip(decoded["pixels"], *columns, strict=True)
        )
        if shape is not None
    ]
    return sorted(frames, key=lambda frame: (*frame.shape, *frame.mask_shape))


class TimedSegmentStage:
    """A stage with its costs: the time in its calls, and between them."""

    def __init__(
        self, stage: Callable[..., Callable[[pa.Table], pa.Table]], **options: Any
    ) -> None:
        self._stage = stage(**options)
        self._occupancy = Occupancy()

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Return SEGMENTED rows of DECODED rows."""
        idle_seconds = self._occupancy.enter()
        try:
            segmented = self._stage(decoded)
        finally:
            busy_seconds = self._occupancy.leave()
        return add_cost(segmented, segment=busy_seconds, starved=idle_seconds)
