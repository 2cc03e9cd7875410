"""`segrec doctor`: report the facts, speed and problems of this machine."""

import argparse

from segrec_batch.cli.options import set_up
from segrec_batch.common import console
from segrec_batch.common.errors import SegrecError

_DESCRIPTION = (
    "Report processor, cores, memory, disk space, GPUs and versions of this machine, measure each "
    "engine on one core, and warn of problems of a run. Takes some ten seconds. The exit "
    "code is 1 if no run can work here, else 0."
)
_EXAMPLES = """\
examples:
  segrec doctor
  # for a report of a problem, or for a program; its keys stay
  segrec doctor --format json > doctor.json
  # what an ordinary processor would do, on one that has bfloat16
  ONEDNN_MAX_CPU_ISA=AVX2 segrec doctor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument_group("output").add_argument
    add("--format", default="table", choices=("table", "json"), help="(default: table)")
    add(
        "--seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="how long to measure each engine (default: 1)",
    )
    set_up(parser, run, _DESCRIPTION, _EXAMPLES)


def run(a: argparse.Namespace) -> None:
    """Run the command. Raises SegrecError if no run can work on this machine."""
    from segrec_batch.doctor.facts import engine_pairs
    from segrec_batch.doctor.report import examine

    with console.ProgressMeter("engines measured", len(engine_pairs())) as meter:
        report = examine(a.seconds, meter.advance)
    console.show(report.to_json() if a.format == "json" else report.to_text())
    if report.has_errors:
        raise SegrecError("no run can work on this machine: see the errors of the report")
