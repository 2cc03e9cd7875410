"""`segrec index` with a model that only sleeps, and a record of place and time of each stage.

Tests of many nodes run this program: two cores cannot show that six are faster, but any number of
actors can sleep at once. Images are read and decoded and rows are written as in `segrec index`.
$SEGREC_NOTES: the file of notes; $SEGREC_SLEEP: seconds per image.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from segrec_batch.cli.main import main
from segrec_batch.images.decode import Shape
from segrec_batch.model.backbones import DEFAULT_BACKBONE
from segrec_batch.model.engines import EngineChoice
from segrec_batch.model.segmentation import Segmentation
from segrec_batch.model.spec import COMMON_GRID
from segrec_batch.pipeline import chain
from segrec_batch.pipeline.segment import SegmentStage
from segrec_batch.pipeline.stages import decode_batch


class Sleeper:
    """Segmenter that sleeps and returns images of background only."""

    device = "cpu"

    def __init__(self, classes: int, seconds: float) -> None:
        self.classes, self.seconds = classes, seconds

    def launch(self, pixels: NDArray[np.uint8], masks: Sequence[Shape]) -> "Slept":
        time.sleep(self.seconds * len(pixels))
        n, channels, stride = len(pixels), DEFAULT_BACKBONE.feature_length, DEFAULT_BACKBONE.stride
        grid = pixels.shape[1] // stride, pixels.shape[2] // stride
        counts = np.zeros((n, self.classes), np.int64)
        counts[:, 0] = grid[0] * grid[1]
        result = Segmentation(
            labels=np.zeros((n, *grid), np.uint8),
            common=np.zeros((n, COMMON_GRID, COMMON_GRID), np.uint8),
            counts=counts,
            feature=np.ones((n, channels), np.float32),
            region_features=np.ones((n, self.classes, channels), np.float32),
            sign_bits=np.zeros((n, DEFAULT_BACKBONE.sign_words), np.int64),
            masks=[np.zeros(shape, np.uint8) for shape in masks],
        )
        return Slept(result)


@dataclass(frozen=True)
class Slept:
    """A `PendingSegmentation` that is complete."""

    found: Segmentation

    def result(self) -> Segmentation:
        return self.found


class Timed(SegmentStage):
    """Reaches the actors by value, since it is of `__main__`, with the two values below."""

    notes = os.environ.get("SEGREC_NOTES", "")
    seconds = float(os.environ.get("SEGREC_SLEEP", "0"))

    def __init__(self, model: str, engine: EngineChoice, threads: int | None = None) -> None:
        # a GPU of these tests is only a number
        SegmentStage.__init__(self, model, EngineChoice("ncnn", "float32"), threads)
        self.asked_for = engine.device
        self._launch_lock = self._device_lock  # a sleeper stands for a device: one batch at a time
        self.segmenter: Any = Sleeper(len(self.segmenter.model.spec.all_classes), self.seconds)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        start = time.time()
        result = SegmentStage.__call__(self, decoded)
        note(self.notes, "segment", decoded, start, self.asked_for)
        return result


def note(path: str, stage: str, rows: pa.Table, start: float, device: str = "") -> None:
    """Append a line to the notes: stage, images, start, end and place."""
    line = {
        "stage": stage, "uris": rows["uri"].to_pylist(), "start": start, "end": time.time(),
        "node": ray.get_runtime_context().get_node_id(), "pid": os.getpid(), "device": device,
    }  # fmt: skip
    with open(path, "a") as file:  # noqa: PTH123
        file.write(json.dumps(line) + "\n")


def decode(sources: pa.Table, shapes: Sequence[Shape], path: str = Timed.notes) -> pa.Table:
    """Run `decode_batch` and note it."""
    start = time.time()
    result = decode_batch(sources, shapes)
    note(path, "decode", sources, start)
    return result


if __name__ == "__main__":
    chain.SegmentStage = Timed  # type: ignore[misc]
    chain.decode_batch = decode
    sys.exit(main(["index", *sys.argv[1:]]))
