"""Measure the memory of each process of an indexing run over time.

    python -m benchmarks.memory.run [--images 20000] [--size 64] [--workdir DIR]

The run indexes images of mixed shapes, sizes and formats, some of them broken (mixed_images.py), on
its own Ray. The model is small, since growth of memory with the number of images does not depend on
the model. Once a second the benchmark reads the resident memory of each process, without the
memory that it shares with the object store. It prints the peak of the largest process of each kind
by tenths of the time in which the model runs. The exit code is 1 if the last fifth of the second
half is above its first fifth by more than TOLERANCE, by the median.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil

from benchmarks.common.peak_memory import MIB, check_count, resident_bytes
from benchmarks.memory.mixed_images import BROKEN, write_images
from benchmarks.memory.random_model import random_model
from segrec_batch.common import console, logs
from segrec_batch.common.errors import SegrecError
from segrec_batch.index import snapshot as store

ROOT = Path(__file__).parents[2]
TOLERANCE = 1.1, 32 * MIB  # factor and bytes of growth that are noise
KINDS = ("driver", "actor", "worker", "decoder", "raylet", "object store", "gcs", "other")

Sample = dict[str, int]


class Processes:
    """A process and its descendants, by kind. Titles of processes tell actors from workers."""

    def __init__(self, pid: int) -> None:
        self._driver = psutil.Process(pid)
        self._known: dict[int, str] = {}

    def sample(self) -> Sample:
        """Return bytes of the largest process by kind, and the most object store memory of one."""
        sample: Sample = defaultdict(int)
        for process in (self._driver, *self._driver.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
                kind = self._find_kind(process)
                private, shared = resident_bytes(process.pid)
                sample[kind] = max(sample[kind], private)
                sample["object store"] = max(sample["object store"], shared)
        return dict(sample)

    def _find_kind(self, process: psutil.Process) -> str:
        if process.pid == self._driver.pid:
            return "driver"
        line = " ".join(process.cmdline())
        if "SegmentStage" in line or "MapWorker" in line:
            self._known[process.pid] = "actor"
        elif "ray::MapBatches" in line:
            self._known.setdefault(process.pid, "worker")
        marks = {
            "segrec_batch.images.sandbox": "decoder",
            "raylet/raylet": "raylet",
            "gcs_server": "gcs",
        }
        kind = next((kind for mark, kind in marks.items() if mark in line), "other")
        return self._known.get(process.pid, kind)


def watch(command: list[str], log: Path) -> list[Sample]:
    """Run a command and return a sample per second. Raises SegrecError if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    samples = []
    with log.open("w") as out:
        job = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=ROOT)  # noqa: S603
        processes = Processes(job.pid)
        while job.poll() is None:
            with suppress(psutil.NoSuchProcess):
                samples.append(processes.sample())
            time.sleep(1)
    if job.returncode:
        raise SegrecError(f"the job ended with {job.returncode}: {log.read_text()[-2000:]}")
    return samples


def find_growth(samples: list[Sample]) -> list[str]:
    """Return descriptions of the kinds of process whose memory grows over the second half."""
    half, fifth = samples[len(samples) // 2 :], max(1, len(samples) // 10)
    growth = []
    for kind in KINDS:
        early, late = (
            median(s.get(kind, 0) for s in part) for part in (half[:fifth], half[-fifth:])
        )
        if late > early * TOLERANCE[0] + TOLERANCE[1]:
            growth.append(f"{kind} ({early / MIB:,.0f} → {late / MIB:,.0f} MiB)")
    return growth


def run(a: argparse.Namespace) -> None:
    """Run the job over mixed images. Raises SegrecError if its memory grows."""
    with tempfile.TemporaryDirectory(dir=a.workdir) as folder:
        kinds = write_images(Path(folder), a.images)
        random_model(a.size, 4).save(f"{folder}/model")
        paths = {"images": "images", "model": "model", "index": "index"}
        options = [x for name, path in paths.items() for x in (f"--{name}", f"{folder}/{path}")]
        samples = watch([sys.executable, "jobs/index.py", *options], Path(folder) / "log")
        snapshot = store.open_snapshot(f"{folder}/index")
        check_count(snapshot.rows("failures"), sum(kinds[kind] for kind in BROKEN))
        check_count(snapshot.rows("images") + snapshot.rows("failures"), a.images)
    busy = [sample for sample in samples if "actor" in sample]
    tenths = [busy[len(busy) * i // 10 : len(busy) * (i + 1) // 10] for i in range(10)]
    print(f"{a.images:,} images, {len(busy):,} s; peak MiB of the largest process, by tenth\n")
    print(f"| {'kind':12} | {' | '.join(f'{i + 1:4}' for i in range(10))} |")
    print(f"| --- |{' ---: |' * 10}")
    for kind in KINDS:
        peaks = [max(s.get(kind, 0) for s in tenth) / MIB for tenth in tenths]
        print(f"| {kind:12} | {' | '.join(f'{peak:4.0f}' for peak in peaks)} |")
    if growth := find_growth(busy):
        raise SegrecError(f"memory grows: {', '.join(growth)}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=console.count, default=20_000)
    parser.add_argument("--size", type=console.count, default=64, help="input size of the model")
    parser.add_argument("--workdir", help="folder of temporary files (default: the system's)")
    a = parser.parse_args()
    sys.exit(logs.run_command(lambda: run(a)))


if __name__ == "__main__":
    main()
