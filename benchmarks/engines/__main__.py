"""Compare engines on VGG-16's 13 convolutions on the CPU with PyTorch in float32.

    torch-float32    PyTorch, channels-last: the reference of times and maps
    torch-bfloat16   the same in bfloat16; skipped on a processor without instructions for it
    ncnn             ncnn in float32, by Winograd's algorithm
    mnn              MNN in float32, by Winograd's algorithm: a peer

The maps of conv3_3, conv4_3 and conv5_3 are outputs. Images are computed one at a time: with one
thread, with a thread for each core, and in as many processes of one thread each. Every engine and
number of threads has its own process. The fastest of several rounds counts; in a round, all
processes compute one image at the same time.
"""

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.networks import BUILDERS, TAPS
from benchmarks.engines.worker import (
    REFERENCE,
    EngineCase,
    measure_network,
    prepare,
    start_process,
)
from benchmarks.gpu.case import write_shape
from segrec_batch.common import console, logs
from segrec_batch.common.host import read_processor, usable_cores
from segrec_batch.images.decode import Shape

log = logging.getLogger("segrec_batch.benchmarks")

EXAMPLES = """\
examples:
  python -m benchmarks.engines --report engines.json
  python -m benchmarks.engines --only torch-float32,ncnn --shapes 720x544 --repeat 5
  # on a processor without bfloat16 instructions, on which that is slow
  python -m benchmarks.engines --emulated
"""
CORES = usable_cores()
PACKAGES = {"ncnn": ("ncnn", "pip install ncnn"), "mnn": ("MNN", "pip install -e '.[bench]'")}


def find_obstacle(engine: str, emulated: bool) -> str:
    """Return the reason why an engine is skipped; an empty text if it is not."""
    package, install = PACKAGES.get(engine, ("torch", ""))
    if find_spec(package) is None:
        return f"{package} is not installed; install it with: {install}"
    if engine == "torch-bfloat16" and not emulated and not read_processor().has_native_bf16:
        return "this processor emulates bfloat16; --emulated measures it nevertheless"
    return ""


def measure(case: EngineCase) -> list[dict[str, Any]]:
    """Run an engine in all its processes; return a row for each shape.

    seconds: wall-clock time of an image. cpu: CPU seconds of an image. memory: bytes of all
    processes.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(case.processes)
    with ProcessPoolExecutor(case.processes, context, start_process, (barrier,)) as pool:
        futures = [pool.submit(measure_network, case) for _ in range(case.processes)]
        results = [future.result() for future in futures]
    rows = []
    for shape, same_shape in zip(case.shapes, zip(*results, strict=True), strict=True):
        rounds = np.array([row["seconds"] for row in same_shape]).max(axis=0)  # the slowest process
        cpu = np.array([row["cpu"] for row in same_shape]).mean(axis=0)
        row: dict[str, Any] = {
            "engine": case.engine,
            "mode": case.mode,
            "shape": write_shape(shape),
        }
        row |= {"seconds": float(rounds.min()) / case.processes, "cpu": float(cpu.min())}
        row |= {"memory": sum(row["memory"] for row in same_shape)}
        rows.append(
            row | {key: same_shape[0][key] for key in (*TAPS, "pearson") if key in same_shape[0]}
        )
    return rows


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add the ratios of the reference's times to those of each row, for one mode and shape."""
    keys = ("mode", "shape")
    reference = {tuple(r[k] for k in keys): r for r in rows if r["engine"] == REFERENCE}
    for row in rows:
        other = reference.get(tuple(row[k] for k in keys))
        if other:
            row["times as fast"] = other["seconds"] / row["seconds"]
            row["times less cpu"] = other["cpu"] / row["cpu"]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of times for each shape, and one of the differences."""
    header = ["engine", "", "ms", "CPU ms", "times as fast", "by CPU", "memory, MiB"]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        lines = [_format_times(row) for row in rows if row["shape"] == shape]
        console.show(console.table(f"{shape}: of an image", header, lines))
    lines = [
        [row["engine"], row["shape"], *(f"{row[tap]:.1e}" for tap in TAPS), f"{row['pearson']:.8f}"]
        for row in rows
        if "pearson" in row and row["engine"] != REFERENCE
    ]
    if lines:
        header = ["engine", "shape", *TAPS, "Pearson's r of the mean"]
        console.show(console.table(f"largest differences to {REFERENCE}", header, lines))


def _format_times(row: dict[str, Any]) -> list[str]:
    ratios = [f"{row[key]:.2f}" if key in row else "absent" for key in _RATIOS]
    times = [f"{row[key] * 1000:,.0f}" for key in ("seconds", "cpu")]
    return [row["engine"], row["mode"], *times, *ratios, f"{row['memory'] / 2**20:,.0f}"]


_RATIOS = ("times as fast", "times less cpu")


def main(a: argparse.Namespace) -> None:
    """Run the benchmark."""
    rows: list[dict[str, Any]] = []
    reasons = {engine: find_obstacle(engine, a.emulated) for engine in a.only}
    skipped = {engine: reason for engine, reason in reasons.items() if reason}
    for engine, reason in skipped.items():
        log.warning(f"{engine}: {reason}")
    chosen = [engine for engine in BUILDERS if engine in a.only and engine not in skipped]
    modes = dict.fromkeys([(1, 1), (a.threads, 1), (1, a.threads)])
    with tempfile.TemporaryDirectory(prefix="segrec-engines-", dir=a.workdir) as folder:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            pool.submit(prepare, folder, a.shapes, a.weights).result()
        for threads, processes in modes:
            for engine in chosen:
                case = EngineCase(folder, engine, threads, processes, a.shapes, a.repeat)
                log.info(f"{engine}, {case.mode}")
                rows += measure(case)
    add_ratios(rows)
    show(rows)
    if a.report:
        about = {"cores": CORES, "weights": a.weights, "repeat": a.repeat, "skipped": skipped}
        text = json.dumps({**about, "rows": rows}, indent=2, ensure_ascii=False)
        Path(a.report).write_text(text + "\n")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    shapes = "224x224,320x240,720x544"
    add("--only", type=_parse_engines, default=tuple(BUILDERS), help=f"of {','.join(BUILDERS)}")
    add("--shapes", type=_parse_shapes, default=_parse_shapes(shapes), metavar="WxH,…", help=shapes)
    add("--threads", type=console.count, default=CORES, metavar="N", help=f"default: {CORES}")
    add("--repeat", type=console.count, default=3, metavar="N", help="rounds (default: 3)")
    add("--weights", default="random:0", metavar="SPEC", help="as of train (default: random:0)")
    add("--emulated", action="store_true", help="bfloat16 also where the processor emulates it")
    add("--workdir", default=tempfile.gettempdir(), metavar="DIR")
    add("--report", metavar="FILE", help="write all figures as JSON")
    return parser.parse_args()


def _parse_engines(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(BUILDERS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {','.join(BUILDERS)}")
    return names


def _parse_shapes(text: str) -> tuple[Shape, ...]:
    sizes = [[int(side) for side in size.split("x")] for size in text.split(",")]
    if any(len(size) != 2 or size[0] % 16 or size[1] % 16 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text}: WIDTHxHEIGHT, multiples of 16")
    return tuple((height, width) for width, height in sizes)


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
