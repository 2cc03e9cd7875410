"""Measure one GPU without Ray: tests that need it, the bare network, decoding, the whole job.

    tests      the tests that are marked gpu
    peak       a product of two bf16 matrices, the ceiling of the shares below
    bare       VGG-16's 13 convolutions with three taps, bf16, channels-last: eager, with cuDNN's
               search for algorithms, as CUDA graphs of padded batches
    whole      the whole job, its stages chained in Python processes, on JPEGs of 640×480
    decode     decoding of these JPEGs on the cores of the host and on the device
    compiled   the bare network by torch.compile in its default mode
    autotuned  the same with a search for the fastest kernels

Each part has its own process: if it fails, its error is in the report, and the next part runs.
Parts for which no time is left are reported as not run. Torch, torchvision, NumPy, PyArrow, Pillow,
scikit-learn, psutil, rich and fsspec are needed; neither Ray nor DuckDB nor Delta Lake is.
The exit code is 1 if a part failed; a missed goal is not a failure.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.timed_parts import Outcome, Part, run_part
from benchmarks.gpu.case import SMALL, GpuCase, Sizes
from benchmarks.gpu.tables import check_goals, show
from segrec_batch.common import logs
from segrec_batch.common.errors import DeviceError
from segrec_batch.common.host import usable_cores

log = logging.getLogger("segrec_batch.benchmarks")

EXAMPLES = """\
examples:
  python -m benchmarks.gpu --report gpu.json
  # the parts that the first run had no time for
  python -m benchmarks.gpu --only peak,compiled,autotuned --report compiled.json
  # every line that can run without a GPU, in about three minutes of two cores
  python -m benchmarks.gpu --device cpu --small
"""
SECONDS = 330
PARTS = (
    Part("device", "benchmarks.gpu.bare:describe_device", 60, 2),
    Part("tests", "benchmarks.gpu.whole:run_tests", 90, 15),
    Part("peak", "benchmarks.gpu.bare:measure_peak", 40, 5),
    Part("bare", "benchmarks.gpu.bare:measure_bare", 90, 15),
    Part("prepare", "benchmarks.gpu.case:prepare", 60, 10),
    Part("whole", "benchmarks.gpu.whole:measure_whole", 120, 40),
    Part("decode", "benchmarks.gpu.decode:measure_decoding", 60, 15),
    Part("compiled", "benchmarks.gpu.bare:measure_compiled", 120, 25),
    Part("autotuned", "benchmarks.gpu.bare:measure_autotuned", 180, 40),
)
NAMES = tuple(part.name for part in PARTS if part.name not in ("device", "prepare"))
NEED_FILES = {"whole", "decode"}  # parts that read the files of `prepare`


def run_parts(case: GpuCase, chosen: set[str], seconds: float) -> dict[str, Outcome]:
    """Run the parts in order, within a time limit. Raises DeviceError for an unknown device."""
    start = time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    names = chosen | {"device"} | ({"prepare"} if chosen & NEED_FILES else set())
    for part in PARTS:
        if part.name not in names:
            continue
        spent = time.perf_counter() - start
        log.info(f"{spent:.0f} s: {part.name}")
        outcome = outcomes[part.name] = run_part(part, case, seconds - spent)
        log.info(f"  {outcome.status}, {outcome.seconds:.0f} s")
        if outcome.error:
            log.warning(outcome.error.strip().rsplit("\n", 1)[-1])
        if part.name == "device" and outcome.has_failed:
            raise DeviceError(outcome.error.strip().rsplit("Error: ", 1)[-1])
    return outcomes


def write_report(path: str, case: GpuCase, outcomes: dict[str, Outcome], seconds: float) -> None:
    """Write all rows, errors and goals as JSON."""
    report: dict[str, Any] = {"device": case.device, "sizes": asdict(case.sizes)}
    report |= {"seconds": seconds, "goals": check_goals(case, outcomes)}
    report |= {"parts": {name: asdict(outcome) for name, outcome in outcomes.items()}}
    Path(path).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def main(a: argparse.Namespace) -> None:
    """Run the benchmark. Exits with 1 if a part failed."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="segrec-gpu-", dir=a.workdir) as folder:
        cores = usable_cores()
        case = GpuCase(folder, a.device, cores, SMALL if a.small else Sizes())
        outcomes = run_parts(case, set(a.only), a.seconds)
        show(case, outcomes)
        if a.report:
            write_report(a.report, case, outcomes, time.perf_counter() - start)
    if any(outcome.has_failed for outcome in outcomes.values()):
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda", choices=("cuda", "cpu"), help="default: cuda")
    add("--small", action="store_true", help="tiny shapes and batches, few repeats: a rehearsal")
    add(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help=f"of all parts (default: {SECONDS})",
    )
    add("--only", type=_parse_names, default=NAMES, metavar="NAMES", help=f"of {','.join(NAMES)}")
    add("--workdir", default=tempfile.gettempdir(), metavar="DIR")
    add("--report", metavar="FILE", help="write all figures and errors as JSON")
    return parser.parse_args()


def _parse_names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(NAMES):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {','.join(NAMES)}")
    return names


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
