"""The stage of the indexing job that runs the model: a plain class, Arrow table in and out.

Nothing here knows Ray. A row that failed before passes untouched.
"""

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from segrec_batch.common.errors import DeviceError
from segrec_batch.images.decode import Shape, mask_shape
from segrec_batch.model.bundle import load_model
from segrec_batch.model.engines import (
    EngineChoice,
    give_back,
    keep_memory,
    lacks_memory,
    load_segmenter,
)
from segrec_batch.model.segmentation import Segmentation
from segrec_batch.pipeline.stage_schema import SEGMENTED
from segrec_batch.pipeline.tally import Occupancy, charge

Row = dict[str, Any]

log = logging.getLogger(__name__)
_AT_ONCE_IN_TORCH = 4
_WITHOUT_PIXELS = pa.schema([field for field in SEGMENTED if field.name != "pixels"])


class SegmentBatch:
    """Runs the model, and the descriptors that are on its device, over DECODED rows. Loads them
    once. Two calls at a time keep a GPU busy: one feeds it while the other one packs its results.
    """

    def __init__(self, model: str, engine: EngineChoice, threads: int | None = None) -> None:
        from segrec_batch.descriptors import runtime as describer

        device = engine.device
        if device == "cpu":
            keep_memory()
        if engine.engine == "ncnn":  # whose threads take images of their own
            threadpool_limits(1, user_api="blas")
        bundle = load_model(model)
        spec = bundle.spec
        self.segmenter = load_segmenter(bundle, engine, threads, batches=True)
        names, device = describer.on_device(spec), self.segmenter.device
        self.descriptors = describer.load(model, names, device, engine.precision)
        self.keeps_pixels = describer.read_pixels(describer.on_host(spec))
        # images; on a GPU as many as it holds. On a CPU few are as fast in torch, and take less
        # memory; ncnn shares them out among its threads
        self.at_once = _AT_ONCE_IN_TORCH if (engine.engine, device) == ("torch", "cpu") else None
        self._last: Shape | None = None
        self._before_another_shape = give_back if device == "cpu" else lambda: None
        self._device = threading.Lock()
        # ncnn's threads are busiest if they may turn to the next batch
        self._alone: AbstractContextManager[Any] = (
            nullcontext() if engine.engine == "ncnn" else self._device
        )

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """DECODED rows → SEGMENTED rows; images of one shape go through the model together.

        Raises DeviceError if a single image is too much for the device's memory.
        """
        rows: list[Row] = decoded.drop_columns("pixels").to_pylist()
        for row, pixels in zip(rows, decoded["pixels"], strict=True):
            row["pixels"] = pixels.as_buffer()
        good = [row for row in rows if row["shape"]]
        for row in good:
            row["mask_shape"] = mask_shape(row["height"], row["width"])
        good.sort(key=lambda row: (*row["shape"], *row["mask_shape"]))
        for shape, members in groupby(good, key=lambda row: tuple(row["shape"])):
            if shape != self._last:
                self._before_another_shape()
            self._last = shape
            self._segment(shape, list(members))
        for row in rows:
            del row["pixels"]
        segmented = pa.Table.from_pylist(rows, _WITHOUT_PIXELS)
        kept = decoded["pixels"] if self.keeps_pixels else pa.nulls(len(rows), pa.binary())
        place = SEGMENTED.get_field_index("pixels")
        return segmented.add_column(place, SEGMENTED.field(place), kept)

    def _segment(self, shape: Shape, rows: Sequence[Row]) -> None:
        """Add what the model finds to rows of one shape, as many at a time as the device holds."""
        done = 0
        while done < len(rows):
            batch = rows[done : done + (self.at_once or len(rows))]
            try:
                self._segment_batch(shape, batch)
                done += len(batch)
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                self._halve(len(batch), error)

    def _segment_batch(self, shape: Shape, rows: Sequence[Row]) -> None:
        pixels = [np.frombuffer(row["pixels"], np.uint8).reshape(*shape, 3) for row in rows]
        batch = np.stack(pixels)
        with self._alone:
            launched = self.segmenter.launch(batch, [row["mask_shape"] for row in rows])
        found = launched.result()
        for i, row in enumerate(rows):
            row.update(_segmented(found, i), described=[])
        for descriptor in self.descriptors:
            descriptor(rows, self._device)

    def _halve(self, size: int, error: Exception) -> None:
        if size == 1:
            raise DeviceError(
                f"the device has too little memory for one image ({error}); free it of other "
                "programs, or train a model with a smaller --input-size"
            ) from error
        self.at_once = min(self.at_once or size, size // 2)
        traceback.clear_frames(error.__traceback__)  # which hold what it was at
        if self.segmenter.device != "cpu":
            import torch

            torch.cuda.empty_cache()
        log.warning("out of memory on the device: from now on %d at a time", self.at_once)


def _segmented(found: Segmentation, i: int) -> Row:
    return {
        "grid": found.labels[i].shape,
        "labels": found.labels[i].tobytes(),
        "common": found.common[i].tobytes(),
        "counts": found.counts[i],
        "feature": found.feature[i],
        "region_features": found.region_features[i].ravel(),
        "sign_bits": found.sign_bits[i],
        "mask": found.masks[i].tobytes(),
    }


class TimedSegmentBatch:
    """SegmentBatch, or what stands for it, and the time in its calls and between them."""

    def __init__(self, stage: Callable[..., Callable[[pa.Table], pa.Table]], **given: Any) -> None:
        self._stage = stage(**given)
        self._occupancy = Occupancy()

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """DECODED rows → SEGMENTED rows."""
        starved = self._occupancy.enter()
        try:
            segmented = self._stage(decoded)
        finally:
            segment = self._occupancy.leave()
        return charge(segmented, segment=segment, starved=starved)
