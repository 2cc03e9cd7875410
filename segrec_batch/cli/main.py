"""Index images by semantic segmentation, recommend similar ones, evaluate, maintain."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from segrec_batch import __version__
from segrec_batch.cli.options import HelpFormatter, describe
from segrec_batch.common import logs

COMMANDS = {  # each is a module of this package, with `add_arguments`
    "train": "fit the segmentation model on labelled images",
    "index": "index the images of a folder or bucket",
    "describe": "switch descriptors on in a model",
    "query": "recommend images like one",
    "sql": "run SQL on an index",
    "cache": "make or renew a query cache",
    "recommend": "recommend images for each image of an index",
    "feedback": "find images by marking results",
    "evaluate": "write an evaluation report",
    "maintain": "compact, vacuum, purge, verify or roll back an index",
    "doctor": "report the facts and problems of this machine",
    "scenes": "draw labelled sample scenes",
    "completion": "print the completion script of a shell",
}
_FORMER_NAMES = {"duckdb": "cache"}
_EXAMPLES = """\
examples:
  segrec scenes --output demo/scenes --count 240
  segrec train --images demo/scenes/images --masks demo/scenes/masks \\
      --classes demo/scenes/classes.json --output demo/model
  segrec index --images demo/scenes/images --model demo/model --index demo/index
  segrec query --index demo/index --image photo.jpg --class car
  segrec sql --index demo/index "SELECT uri, coverage_car FROM images ORDER BY 2 DESC LIMIT 5"

`segrec COMMAND --help` has the options and examples of a command; `python -m segrec_batch` is the
same as `segrec`. SEGREC_TRACEBACK=1 adds the traceback to the message of an unexpected error.
"""


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser of `segrec`, with the options of one command, or of all for None."""
    parser = argparse.ArgumentParser("segrec", formatter_class=HelpFormatter)
    describe(parser, __doc__ or "", _EXAMPLES)
    parser.add_argument("--version", action="version", version=f"segrec {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", prog="segrec"
    )
    for name, summary in COMMANDS.items():
        one = commands.add_parser(name, help=summary, formatter_class=HelpFormatter)
        if command in (name, None):
            importlib.import_module(f"segrec_batch.cli.{name}").add_arguments(one)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `segrec` and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), None)
    command = "" if at is None else _FORMER_NAMES.get(words[at], words[at])
    if at is not None:
        words[at] = command
    parsed = build_parser(command).parse_args(words)
    return logs.run_command(lambda: parsed.run(parsed), parsed.log_format, parsed.quiet)


if __name__ == "__main__":
    sys.exit(main())
