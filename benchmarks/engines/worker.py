"""Measurement of one engine inside a process of the benchmark."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.peak_memory import read_memory, reset_peak
from benchmarks.engines.networks import BUILDERS, TAPS, Floats
from benchmarks.gpu.case import write_shape
from segrec_batch.images.decode import Shape

REFERENCE = "torch-float32"
MODULES = {"ncnn": "ncnn", "mnn": "MNN.nn"}
_WAIT = 300  # seconds for the slowest process of a round


@dataclass(frozen=True)
class EngineCase:
    """One engine and its threads in each of several processes; `folder` has weights and images."""

    folder: str
    engine: str
    threads: int
    processes: int
    shapes: tuple[Shape, ...]
    repeat: int

    @property
    def mode(self) -> str:
        """Threads and processes in words."""
        if self.processes > 1:
            return f"{self.processes} processes"
        return "1 thread" if self.threads == 1 else f"{self.threads} threads"

    @property
    def has_comparison(self) -> bool:
        """True if maps are compared with those of the reference."""
        return (self.threads, self.processes) == (1, 1)


class _Process:
    """State of a process of the pool: the barrier of all processes."""

    barrier: Any


def start_process(barrier: Any) -> None:
    """Store the barrier of all processes, and discard standard output, to which MNN writes."""
    _Process.barrier = barrier
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def prepare(folder: str, shapes: Sequence[Shape], weights: str) -> None:
    """Write weights and a normalised image of each shape to a folder."""
    from segrec_batch.model.backbones.base import IMAGENET_MEAN, IMAGENET_STD
    from segrec_batch.model.weights import load_weights
    from segrec_batch.sample_data import render_scene

    arrays = {name: tensor.numpy() for name, tensor in load_weights(weights).state.items()}
    np.savez(Path(folder, "weights.npz"), allow_pickle=False, **arrays)
    for height, width in shapes:
        pixels = render_scene(0, 0, 0, (width, height)).image / np.float32(255)
        image = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
        chw = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)  # (H, W, C) -> (C, H, W)
        np.save(Path(folder, f"{write_shape((height, width))}.npy"), chw)


def measure_network(case: EngineCase) -> list[dict[str, Any]]:
    """Return seconds, CPU seconds, memory and differences for each shape, in this process."""
    with np.load(Path(case.folder, "weights.npz")) as file:
        state = {name: file[name] for name in file.files}
    # modules imported here do not count as memory of the network
    import_module(MODULES.get(case.engine, "segrec_batch.model.weights"))
    before = read_memory("VmRSS")
    run = BUILDERS[case.engine](state, case.threads)
    rows = []
    for shape in case.shapes:
        image = np.load(Path(case.folder, f"{write_shape(shape)}.npy"))
        with suppress(OSError):  # where a sandbox forbids it, the peak includes earlier work
            reset_peak()
        maps = run(image)
        row: dict[str, Any] = {"seconds": [], "cpu": []}
        for _ in range(case.repeat):
            _Process.barrier.wait(_WAIT)
            start, spent = time.perf_counter(), time.process_time()
            run(image)
            row["seconds"].append(time.perf_counter() - start)
            row["cpu"].append(time.process_time() - spent)
        row["memory"] = read_memory("VmHWM") - before
        rows.append(row | (_compare(case, shape, maps) if case.has_comparison else {}))
    return rows


def _compare(case: EngineCase, shape: Shape, maps: Any) -> dict[str, float]:
    """Return the differences of the maps from those of the reference, which writes its own.

    For each tap: the largest difference over the reference's largest value; then Pearson's r of the
    mean of conv5_3.
    """
    path = Path(case.folder, f"reference_{write_shape(shape)}.npz")
    if case.engine == REFERENCE:
        np.savez(path, **maps)
    if not path.exists():
        return {}
    with np.load(path) as reference:
        differences = {tap: _difference(maps[tap], reference[tap]) for tap in TAPS}
        means = [x[TAPS[-1]].astype(np.float64).mean(axis=(1, 2)) for x in (maps, reference)]
    return {**differences, "pearson": float(np.corrcoef(*means)[0, 1])}


def _difference(values: Floats, expected: Floats) -> float:
    return float(np.abs(values - expected).max() / np.abs(expected).max())
