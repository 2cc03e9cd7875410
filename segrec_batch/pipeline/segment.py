"""The stage of the indexing job that runs the model: a plain class with Arrow tables in and out.

It is independent of Ray. Rows that failed before pass unchanged.
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
    give_back,
    keep_memory,
    lacks_memory,
    load_segmenter,
)
from segrec_batch.model.segmented_image import FIELDS, SegmentedImage, decode_pixels, to_arrow
from segrec_batch.pipeline.stage_schema import SEGMENTED, to_described
from segrec_batch.pipeline.tally import Occupancy, charge

log = logging.getLogger(__name__)
_AT_ONCE_IN_TORCH = 4


class SegmentBatch:
    """Runs the model, and the descriptors on its device, over DECODED rows.

    The model is loaded once. Two concurrent calls keep a GPU busy: one feeds it while the other
    packs its results.
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
        # images per call; on a GPU as many as it holds. In torch on a CPU few are as fast and need
        # less memory; ncnn distributes them to its threads
        self.at_once = _AT_ONCE_IN_TORCH if (engine.engine, device) == ("torch", "cpu") else None
        self._last: Shape | None = None
        self._before_another_shape = give_back if device == "cpu" else lambda: None
        self._device = threading.Lock()
        # with ncnn two calls may run at once, which keeps its threads busy
        self._alone: AbstractContextManager[Any] = (
            nullcontext() if engine.engine == "ncnn" else self._device
        )

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Segment DECODED rows and return SEGMENTED rows; images of one shape run together.

        Raises:
            DeviceError: a single image is too large for the memory of the device.
        """
        frames = _frames(decoded)
        for shape, group in groupby(frames, key=lambda frame: frame.shape):
            if shape != self._last:
                self._before_another_shape()
            self._last = shape
            self._segment(list(group))
        images: list[SegmentedImage | None] = [None] * decoded.num_rows
        vectors: list[list[DescriptorVector] | None] = [None] * decoded.num_rows
        for frame in frames:
            images[frame.row], vectors[frame.row] = frame.image, frame.vectors
        columns = {field.name: decoded[field.name] for field in decoded.schema}
        columns |= dict(zip([field.name for field in FIELDS], to_arrow(images), strict=True))
        columns["described"] = to_described(vectors)
        if not self.keeps_pixels:
            columns["pixels"] = pa.nulls(decoded.num_rows, pa.binary())
        return pa.table([columns[name] for name in SEGMENTED.names], schema=SEGMENTED)

    def _segment(self, frames: Sequence["_Frame"]) -> None:
        """Segment images of one shape, as many at a time as the device holds."""
        done = 0
        while done < len(frames):
            batch = frames[done : done + (self.at_once or len(frames))]
            try:
                self._segment_batch(batch)
                done += len(batch)
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                self._halve(len(batch), error)

    def _segment_batch(self, frames: Sequence["_Frame"]) -> None:
        batch = np.stack([frame.pixels for frame in frames])
        with self._alone:
            pending = self.segmenter.launch(batch, [frame.mask_shape for frame in frames])
        segmentation = pending.result()
        images = [SegmentedImage.of(segmentation, i, f.pixels) for i, f in enumerate(frames)]
        by_descriptor = [descriptor(images, self._device) for descriptor in self.descriptors]
        for i, frame in enumerate(frames):
            frame.image = images[i]
            frame.vectors = [vectors[i] for vectors in by_descriptor]

    def _halve(self, size: int, error: Exception) -> None:
        if size == 1:
            raise DeviceError(
                f"the device has too little memory for one image ({error}); end other programs "
                "on it, or train a model with a smaller --input-size"
            ) from error
        self.at_once = min(self.at_once or size, size // 2)
        traceback.clear_frames(error.__traceback__)  # frees the tensors that they hold
        if self.segmenter.device != "cpu":
            import torch

            torch.cuda.empty_cache()
        log.warning("out of memory on the device: from now on %d at a time", self.at_once)


@dataclass
class _Frame:
    """Pixels of one DECODED row, and the results of the model."""

    row: int
    pixels: NDArray[np.uint8]
    mask_shape: Shape
    image: SegmentedImage | None = None
    vectors: list[DescriptorVector] | None = None

    @property
    def shape(self) -> Shape:
        return self.pixels.shape[0], self.pixels.shape[1]


def _frames(decoded: pa.Table) -> list[_Frame]:
    """Return the rows that have pixels, ordered by shape."""
    columns = (decoded[name].to_pylist() for name in ("shape", "height", "width"))
    frames = [
        _Frame(row, decode_pixels(content.as_buffer(), shape), mask_shape(height, width))
        for row, (content, shape, height, width) in enumerate(
            zip(decoded["pixels"], *columns, strict=True)
        )
        if shape is not None
    ]
    return sorted(frames, key=lambda frame: (*frame.shape, *frame.mask_shape))


class TimedSegmentBatch:
    """Measures the time in the calls of a stage and between them."""

    def __init__(
        self, stage: Callable[..., Callable[[pa.Table], pa.Table]], **options: Any
    ) -> None:
        self._stage = stage(**options)
        self._occupancy = Occupancy()

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Return SEGMENTED rows of DECODED rows."""
        starved = self._occupancy.enter()
        try:
            segmented = self._stage(decoded)
        finally:
            segment = self._occupancy.leave()
        return charge(segmented, segment=segment, starved=starved)
