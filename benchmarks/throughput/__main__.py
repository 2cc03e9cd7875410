"""Speed of the whole indexing job next to the bare model and to common alternatives.

    (a) the limit   VGG-16's bare convolutions in the same engine, on images in memory
    (b) segrec      the whole job: read, decode, segment, describe, encode, write, commit
    (c) DataLoader  a PyTorch loop, torchvision's VGG-16 in float32, that saves the same columns
    (d) Ray Data    the chain of its documentation: read_images, map, map_batches, write_parquet

All run on the same images, in turn, each in a new process. Each of (b) to (d) indexes N images and
then 2 N: the difference is its rate without start-up, which the ratios use; the rate of the whole
2 N is printed beside it. (c) and (d), which are slower, take fewer images.

The benchmark also prints the CPU seconds of (b) by process, and (s) the rate of each stage of
segrec alone and the bytes that it passes on. Without --model, it trains a model with random
filters, which are as fast, on drawn scenes, at the default input size and at 224. All figures are
written as JSON.
"""

import argparse
import json
import logging
import math
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.cpu_time import watch
from benchmarks.throughput.case import CORES, Case, draw_images, list_sources
from benchmarks.throughput.rates import Run, compute_ratios
from benchmarks.throughput.tables import (
    cpu_table,
    limit_table,
    rates_table,
    ratios_table,
    stages_table,
)
from segrec_batch.cli.options import add_engine
from segrec_batch.common import console, logs
from segrec_batch.common.host import read_processor
from segrec_batch.model.engine_choice import choose_engine, find_device
from segrec_batch.model.engines import EngineChoice

log = logging.getLogger("segrec_batch.benchmarks")

EXAMPLES = """\
examples:
  python -m benchmarks.throughput
  python -m benchmarks.throughput --images camvid/val/images --model model --repeat 3
  # on a machine with a GPU that has neither Ray nor DuckDB nor Delta Lake
  python -m benchmarks.throughput --without-ray --device cuda --report throughput.json
"""
COUNTS = {"cpu": 32, "cuda": 8192}  # images at the default input size; more at smaller sizes
STAGE_IMAGES = 32  # maximum number of images of a stage alone on a CPU
SIZES = (624, 224)
PEERS_BATCH = 4  # on a CPU, as in Ray Data's guide: float32 maps of 32 images take 6 GB
STEPS = {  # by --without-ray
    False: {
        "b": "benchmarks.throughput.segrec:run_job",
        "c": "benchmarks.throughput.peers:run_data_loader",
        "d": "benchmarks.throughput.peers:run_ray_data",
    },
    True: {
        "b": "benchmarks.throughput.segrec:run_chained",
        "c": "benchmarks.throughput.peers:run_data_loader",
    },
}
DIVISORS = {"cpu": {"b": 1, "c": 3, "d": 5}, "cuda": {"b": 1, "c": 4, "d": 4}}


def find_targets(case: Case) -> dict[str, float]:
    """Return the goals on this processor or GPU: minimum ratios of (b) to the other ways."""
    if case.device == "cuda":
        return {"a": 0.9}
    processor = read_processor()
    small = case.shape[0] * case.shape[1] < 2 * min(SIZES) ** 2
    loop = 2.0 if small and "avx512f" not in processor.features else 2.5
    return {"a": 0.9, "c": 4.5 if processor.has_amx else loop, "d": 4.0}


def measure(case: Case, count: int, a: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen ways and stages; return limits, runs and stages."""
    steps = {way: step for way, step in STEPS[a.without_ray].items() if way in a.only}
    runs = {way: Run(way, max(count // DIVISORS[case.device][way], 1)) for way in steps}
    results: dict[str, Any] = {"limits": [], "runs": runs, "stages": {}}
    for number in range(a.repeat):
        if "a" in a.only:
            log.info(f"(a) round {number + 1}")
            limit = watch("benchmarks.throughput.limit:measure_limit", case.taking(count, "a"))
            results["limits"].append(limit.result)
        for way, step in steps.items():
            runs[way].add_round(step, case)
    if "s" in a.only:
        log.info("each stage alone")
        few = min(count, STAGE_IMAGES if case.device == "cpu" else 256)
        results["stages"] = watch(
            "benchmarks.throughput.stages:measure_stages", case.taking(few, "s")
        ).result
        if not a.without_ray:
            commit = watch(
                "benchmarks.throughput.stages:measure_commit", case.taking(few, "commit")
            ).result
            results["stages"]["commit of one part"] = commit
    return results


def to_report(results: dict[str, Any], case: Case) -> dict[str, Any]:
    """Return all measurements as plain JSON values."""
    runs = {
        way: {
            "count": run.count,
            "rates": run.rates,
            "whole": run.whole,
            "start_up": run.start_up,
            "cpu": run.cpu,
            "cpu_by_process": [[w.cpu for w in pair] for pair in run.pairs],
            "result": [twice.result for _, twice in run.pairs],
        }
        for way, run in results["runs"].items()
    }
    ratios = {f"b/{way}": values for way, values in compute_ratios(results).items()}
    about: dict[str, Any] = {
        "shape": case.shape,
        "weights": case.spec.weights,
        "engine": asdict(case.choice),
    }
    about |= {"cores": CORES, "processor": read_processor().name, "batch_size": case.batch_size}
    about |= {"targets": find_targets(case)}
    return {**about, "ratios": ratios, **results, "runs": runs}


def show(results: dict[str, Any], case: Case) -> None:
    """Print all tables."""
    shape = "×".join(map(str, case.shape[::-1]))
    log.info(
        f"images as {shape}, {CORES} cores of {read_processor().name}, batches of "
        f"{case.batch_size}; backbone weights: {case.spec.weights}; engine: {case.choice} "
        f"({case.choice.reason})"
    )
    limits = results["limits"]
    best = statistics.median(limit["images/s"] for limit in limits) if limits else None
    if limits:
        console.show(limit_table(limits))
    if results["runs"]:
        console.show(rates_table(results["runs"], limits))
    if ratios := compute_ratios(results):
        console.show(ratios_table(ratios, find_targets(case)))
    if results["stages"]:
        console.show(stages_table(results["stages"], best))
    if run := results["runs"].get("b"):
        once, twice = run.pairs[-1]
        console.show(cpu_table(once.cpu, twice.cpu, run.count))


def main(a: argparse.Namespace) -> None:
    """Run the benchmark."""
    reports = []
    with tempfile.TemporaryDirectory(prefix="segrec-throughput-", dir=a.workdir) as name:
        device = find_device(a.device)
        # infinite work: the engine is measured, as for a long run
        choice = choose_engine(a.engine, a.precision, device, work=math.inf)
        for number, size in enumerate([None] if a.model else a.input_size):
            folder = Path(name, str(number))
            folder.mkdir()
            count = a.count or COUNTS[device] * _factor(size)
            case = _prepare(folder, size, choice, count, a)
            results = measure(case, count, a)
            show(results, case)
            reports.append(to_report(results, case))
    Path(a.report).write_text(json.dumps(reports, indent=2, ensure_ascii=False) + "\n")
    log.info(f"all figures are in {a.report}")


def _factor(size: int | None) -> int:
    """Return the factor on the number of images of a size: smaller images take less time."""
    return 1 if size is None else max(round(SIZES[0] ** 2 / size**2 / 2), 1)


def _prepare(
    folder: Path, size: int | None, choice: EngineChoice, count: int, a: argparse.Namespace
) -> Case:
    """List or draw images, and train a model of an input size unless the user names one."""
    if a.images:
        sources = list_sources(a.images, 2 * count)
    else:
        sources = draw_images(folder / "scenes", 2 * count)
    model = a.model
    if size is not None:
        log.info(f"training a model of input size {size}, backbone weights random:0")
        model = watch("benchmarks.throughput.case:train_model", (folder, size)).result
    peers = a.batch_size if choice.device == "cuda" else min(PEERS_BATCH, a.batch_size)
    return Case(str(folder), tuple(sources), model, choice, a.batch_size, peers, a.peers_threads)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", metavar="DIR", help="images of one size (default: scenes of 640×480)")
    add("--model", metavar="MODEL", help="model bundle (default: one trained on drawn scenes)")
    add(
        "--input-size",
        type=console.count,
        nargs="+",
        default=list(SIZES),
        metavar="N",
        help=f"of that model, one after the other (default: {' '.join(map(str, SIZES))})",
    )
    add_engine(parser)
    add("--count", type=console.count, metavar="N", help=f"images (default: {COUNTS})")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--batch-size", type=console.count, default=32, metavar="N", help="of segrec (default: 32)")
    add("--peers-threads", type=console.count, metavar="N", help="of an actor of (d); Ray gives 1")
    add(
        "--only",
        type=_parse_ways,
        default="abcds",
        metavar="a,b,c,d,s",
        help="some of these; s: stages",
    )
    add("--without-ray", action="store_true", help="(b) as stages chained in Python, and no (d)")
    add("--repeat", type=console.count, default=1, metavar="N", help="rounds (default: 1)")
    add("--workdir", default=tempfile.gettempdir(), metavar="DIR")
    add(
        "--report",
        default="throughput.json",
        metavar="FILE",
        help="all figures as JSON (default: throughput.json)",
    )
    return parser.parse_args()


def _parse_ways(text: str) -> str:
    ways = text.replace(",", "")
    if not ways or set(ways) - set("abcds"):
        raise argparse.ArgumentTypeError(f"{text}: choose from a,b,c,d,s")
    return ways


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
