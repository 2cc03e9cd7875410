"""`segrec scenes`: draw labelled sample scenes."""

import argparse
from pathlib import Path

from segrec_batch.cli.options import set_up
from segrec_batch.cli.output import check_places
from segrec_batch.common import console

_DESCRIPTION = (
    "Draw street scenes with exact masks of cars, persons and trees, for trying out training and "
    "indexing."
)
_EXAMPLES = """\
examples:
  segrec scenes --output demo/scenes --count 240
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument_group("output").add_argument
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the scenes")
    add("--count", type=int, default=240, metavar="N", help="scenes (default: 240)")
    add("--seed", type=int, default=0, help="of the drawing (default: 0)")
    set_up(parser, run, _DESCRIPTION, _EXAMPLES)


def run(a: argparse.Namespace) -> None:
    """Run the command."""
    from segrec_batch.sample_data import write_scenes

    check_places({"--output": a.output})
    with console.ProgressMeter("scenes", a.count) as meter:
        write_scenes(a.output, a.count, a.seed, progress=lambda n: meter.advance(n - meter.done))
    console.show_line(f"{a.count} scenes in {a.output}: images/, masks/, classes.json")
