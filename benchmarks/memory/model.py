"""Measure the memory of the model by engine, number of classes and shapes of the images.

    python -m benchmarks.memory.model [--size 624] [--batch 32] [--batches 4] [--classes 4 21]

Batches go through the class of an actor in a new process. The benchmark prints the peak memory
after the first and after the last batch. Shapes that change from batch to batch leave gaps in
the memory of a process.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from itertools import product

import numpy as np
import pyarrow as pa

from benchmarks.common.peak_memory import MIB, read_memory, resident_bytes
from benchmarks.memory.random_model import random_model
from segrec_batch.common import console, logs
from segrec_batch.common.host import usable_cores
from segrec_batch.images.decode import shapes_of_size
from segrec_batch.model.backbones import DEFAULT_BACKBONE
from segrec_batch.model.engines import EngineChoice
from segrec_batch.training.trainer import DEFAULT_SIZE


def measure_peaks(
    folder: str,
    choice: EngineChoice,
    threads: int,
    shapes: list[tuple[int, int]],
    batch: int,
    batches: int,
) -> tuple[int, list[int], float]:
    """Return bytes with the model loaded, peak after each batch, and CPU seconds of an image."""
    from segrec_batch.pipeline.segment import SegmentStage

    segment = SegmentStage(folder, choice, threads)
    loaded = resident_bytes(os.getpid())[0]
    start, peaks = time.process_time(), []
    for i in range(batches):
        segment(draw_batch(shapes, batch, seed=i))
        peaks.append(read_memory("VmHWM"))
    return loaded, peaks, (time.process_time() - start) / batches / batch


def draw_batch(shapes: list[tuple[int, int]], batch: int, seed: int) -> pa.Table:
    """Return DECODED rows of noise in random shapes, with masks of the largest size."""
    from segrec_batch.pipeline.stage_schema import DECODED

    rng, rows = np.random.default_rng(seed), []
    for i in range(batch):
        h, w = shapes[rng.integers(len(shapes))]
        pixels = rng.integers(0, 256, (h, w, 3), np.uint8).tobytes()
        row = {"uri": str(i), "height": 4 * h, "width": 4 * w, "shape": (h, w)}
        rows.append({**row, "source_size": 0, "source_etag": "", "pixels": pixels})
    return pa.Table.from_pylist(rows, DECODED)


def run(a: argparse.Namespace) -> None:
    """Measure all combinations and print a table."""
    columns = ("engine", "threads", "classes", "shapes", "loaded MiB", "first peak", "last peak")
    print(f"| {' | '.join(columns)} | CPU s an image |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    shapes = {
        "square": [(a.size, a.size)],
        "all": list(shapes_of_size(a.size, DEFAULT_BACKBONE.stride)),
    }
    for text, classes, name in product(a.engines, a.classes, shapes):
        engine, _, precision = text.partition(":")
        threads = min(usable_cores(), 8)  # as in the indexing job
        with tempfile.TemporaryDirectory() as folder:
            random_model(a.size, classes).save(folder)
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                choice = EngineChoice(engine, precision or "float32")
                arguments = (folder, choice, threads, shapes[name], a.batch, a.batches)
                loaded, peaks, seconds = pool.apply(measure_peaks, arguments)
        first, last = (f"{peak / MIB:,.0f}" for peak in (peaks[0], peaks[-1]))
        figures = f"{loaded / MIB:,.0f} | {first} | {last} | {seconds:.2f}"
        print(f"| {text} | {threads} | {classes} | {name} | {figures} |", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=console.count, default=DEFAULT_SIZE)
    parser.add_argument("--batch", type=console.count, default=32)
    parser.add_argument("--batches", type=console.count, default=4)
    parser.add_argument("--classes", type=console.count, nargs="+", default=[4, 21])
    parser.add_argument("--engines", nargs="+", default=["ncnn", "torch:float32", "torch:bfloat16"])
    a = parser.parse_args()
    sys.exit(logs.run_command(lambda: run(a)))


if __name__ == "__main__":
    main()
