"""Memory of every part of an indexing run over time, and of the model by size of its input.

    python benchmarks/memory.py run [--images 20000] [--size 64] [--workdir DIR]
    python benchmarks/memory.py model [--size 624] [--batch 32] [--batches 4] [--classes 4 21]

`run` indexes images of mixed shapes, sizes and formats, some broken (see mixed.py), with
jobs/index.py on a Ray of its own. The model is small, for memory that grows with the number of
images does so with any. Once a second it adds up what is resident in each process, without what
it shares with the object store. Prints the peak of the largest process of each kind by tenths of
the time in which the model runs; ends with an error if the last fifth is above the first fifth of
the second half by more than TOLERANCE, by the median.

`model` runs batches through an actor's class in a process of its own: peaks by arithmetic,
classes and shapes of the images, after a batch and after several, beside what is known to be
needed. Shapes that come in another order each time leave holes in the memory of a process.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pyarrow as pa
from measured import check
from mixed import BROKEN, write_images

from segrec_batch.common import console, logs
from segrec_batch.common.errors import SegrecError
from segrec_batch.common.host import usable_cores
from segrec_batch.images.decode import shapes_of_size
from segrec_batch.index import snapshot as store
from segrec_batch.model.architecture import Tap
from segrec_batch.model.backbone import load_weights
from segrec_batch.model.bundle import Model
from segrec_batch.model.describe import random_rotation
from segrec_batch.model.engines import EngineChoice
from segrec_batch.model.spec import ModelSpec
from segrec_batch.training.run import DEFAULT_LAYERS, DEFAULT_SIZE

ROOT = Path(__file__).parents[1]
MIB = 2**20
TOLERANCE = 1.1, 32 * MIB  # up to this factor and these bytes is noise
KINDS = ("driver", "actor", "worker", "decoder", "raylet", "object store", "gcs", "other")

Sample = dict[str, int]


def random_model(size: int, classes: int) -> Model:
    """Default layers, random weights, a random head: `classes` with the background."""
    weights, taps = load_weights("random:0"), [Tap.parse(t) for t in DEFAULT_LAYERS.split(",")]
    rng = np.random.default_rng(0)
    head = {
        f"svm.{tap}": rng.standard_normal((classes, tap.source.channels), np.float32)
        / tap.source.channels
        for tap in taps
    }
    head |= {"svm.bias": np.zeros(classes, np.float32)}
    head["sign_bits.centre"] = np.zeros(512, np.float32)
    head["sign_bits.rotation"] = random_rotation(512).numpy()
    spec = ModelSpec(
        classes=tuple(f"class_{k}" for k in range(1, classes)),
        taps=tuple(map(str, taps)),
        components=tuple(range(classes)),
        shapes=shapes_of_size(size),
        mean=weights.mean,
        std=weights.std,
        weights=weights.origin,
        weights_fingerprint=weights.fingerprint,
    )
    return Model(spec, head, weights.arrays)


class Processes:
    """The processes below one, by kind. An actor or worker is named after what it is doing."""

    def __init__(self, pid: int) -> None:
        self._driver = psutil.Process(pid)
        self._known: dict[int, str] = {}

    def sample(self) -> Sample:
        """Bytes of the largest process of each kind; of the object store what one has in use."""
        found: Sample = defaultdict(int)
        for process in (self._driver, *self._driver.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
                kind = self._kind(process)
                private, shared = _resident(process.pid)
                found[kind] = max(found[kind], private)
                found["object store"] = max(found["object store"], shared)
        return dict(found)

    def _kind(self, process: psutil.Process) -> str:
        if process.pid == self._driver.pid:
            return "driver"
        line = " ".join(process.cmdline())
        if "SegmentBatch" in line or "MapWorker" in line:
            self._known[process.pid] = "actor"
        elif "ray::MapBatches" in line:
            self._known.setdefault(process.pid, "worker")
        marks = {
            "segrec_batch.images.sandbox": "decoder",
            "raylet/raylet": "raylet",
            "gcs_server": "gcs",
        }
        named = next((kind for mark, kind in marks.items() if mark in line), "other")
        return self._known.get(process.pid, named)


def _resident(pid: int) -> tuple[int, int]:
    """Bytes that are in memory: of a process itself, and of shared memory."""
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    sizes = {line[0]: 1024 * int(line[1]) for line in lines if line and line[0].startswith("Rss")}
    if not sizes:
        raise psutil.ZombieProcess(pid)
    return sizes["RssAnon:"] + sizes["RssFile:"], sizes["RssShmem:"]


def watch(command: list[str], log: Path) -> list[Sample]:
    """Run a command; a sample a second."""
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


def growing(samples: list[Sample]) -> list[str]:
    """Kinds of process whose memory grows over the second half."""
    half, fifth = samples[len(samples) // 2 :], max(1, len(samples) // 10)
    found = []
    for kind in KINDS:
        early, late = (
            median(s.get(kind, 0) for s in part) for part in (half[:fifth], half[-fifth:])
        )
        if late > early * TOLERANCE[0] + TOLERANCE[1]:
            found.append(f"{kind} ({early / MIB:,.0f} → {late / MIB:,.0f} MiB)")
    return found


def run(a: argparse.Namespace) -> None:
    """The job over mixed images. Raises SegrecError if its memory grows."""
    with tempfile.TemporaryDirectory(dir=a.workdir) as folder:
        kinds = write_images(Path(folder), a.images)
        random_model(a.size, 4).save(f"{folder}/model")
        given = {"images": "images", "model": "model", "index": "index"}
        options = [x for name, path in given.items() for x in (f"--{name}", f"{folder}/{path}")]
        samples = watch([sys.executable, "jobs/index.py", *options], Path(folder) / "log")
        snapshot = store.open_snapshot(f"{folder}/index")
        check(snapshot.rows("failures"), sum(kinds[kind] for kind in BROKEN))
        check(snapshot.rows("images") + snapshot.rows("failures"), a.images)
    busy = [sample for sample in samples if "actor" in sample]
    tenths = [busy[len(busy) * i // 10 : len(busy) * (i + 1) // 10] for i in range(10)]
    print(f"{a.images:,} images, {len(busy):,} s; peak MiB of the largest process, by tenth\n")
    print(f"| {'kind':12} | {' | '.join(f'{i + 1:4}' for i in range(10))} |")
    print(f"| --- |{' ---: |' * 10}")
    for kind in KINDS:
        peaks = [max(s.get(kind, 0) for s in tenth) / MIB for tenth in tenths]
        print(f"| {kind:12} | {' | '.join(f'{peak:4.0f}' for peak in peaks)} |")
    if found := growing(busy):
        raise SegrecError(f"memory grows: {', '.join(found)}")


def peaks_of_batches(
    folder: str,
    choice: EngineChoice,
    threads: int,
    shapes: list[tuple[int, int]],
    batch: int,
    batches: int,
) -> tuple[int, list[int], float]:
    """Bytes once the model is loaded; the peak after each batch; CPU seconds of an image."""
    from segrec_batch.pipeline.segment import SegmentBatch

    segment = SegmentBatch(folder, choice, threads)
    loaded = _resident(os.getpid())[0]
    start, peaks = time.process_time(), []
    for i in range(batches):
        segment(decoded(shapes, batch, seed=i))
        (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
        peaks.append(1024 * int(line.split()[1]))
    return loaded, peaks, (time.process_time() - start) / batches / batch


def decoded(shapes: list[tuple[int, int]], batch: int, seed: int) -> pa.Table:
    """DECODED rows of noise, of shapes by chance, whose masks are as large as masks can be."""
    from segrec_batch.pipeline.stage_schema import DECODED

    rng, rows = np.random.default_rng(seed), []
    for i in range(batch):
        h, w = shapes[rng.integers(len(shapes))]
        pixels = rng.integers(0, 256, (h, w, 3), np.uint8).tobytes()
        facts = {"uri": str(i), "height": 4 * h, "width": 4 * w, "shape": (h, w)}
        rows.append({**facts, "source_size": 0, "source_etag": "", "pixels": pixels})
    return pa.Table.from_pylist(rows, DECODED)


def model(a: argparse.Namespace) -> None:
    """Peaks of batches."""
    columns = ("engine", "threads", "classes", "shapes", "loaded MiB", "first peak", "last peak")
    print(f"| {' | '.join(columns)} | CPU s an image |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    shapes = {"square": [(a.size, a.size)], "all": list(shapes_of_size(a.size))}
    for text, classes, name in product(a.engines, a.classes, shapes):
        engine, _, precision = text.partition(":")
        threads = min(usable_cores(), 8)  # as the indexing job lays them out
        with tempfile.TemporaryDirectory() as folder:
            random_model(a.size, classes).save(folder)
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                choice = EngineChoice(engine, precision or "float32")
                given = (folder, choice, threads, shapes[name], a.batch, a.batches)
                loaded, peaks, seconds = pool.apply(peaks_of_batches, given)
        first, last = (f"{peak / MIB:,.0f}" for peak in (peaks[0], peaks[-1]))
        figures = f"{loaded / MIB:,.0f} | {first} | {last} | {seconds:.2f}"
        print(f"| {text} | {threads} | {classes} | {name} | {figures} |", flush=True)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    job = commands.add_parser("run")
    job.add_argument("--images", type=console.count, default=20_000)
    job.add_argument("--size", type=console.count, default=64, help="of the model's input")
    job.add_argument("--workdir", help="where the files are (default: the system's)")
    job.set_defaults(command=run)
    single = commands.add_parser("model")
    single.add_argument("--size", type=console.count, default=DEFAULT_SIZE)
    single.add_argument("--batch", type=console.count, default=32)
    single.add_argument("--batches", type=console.count, default=4)
    single.add_argument("--classes", type=console.count, nargs="+", default=[4, 21])
    single.add_argument("--engines", nargs="+", default=["ncnn", "torch:float32", "torch:bfloat16"])
    single.set_defaults(command=model)
    a = parser.parse_args()
    sys.exit(logs.run_command(lambda: a.command(a)))


if __name__ == "__main__":
    main()
