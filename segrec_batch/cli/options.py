"""Option groups that several commands share."""

import argparse

from segrec_batch.model.engines import ENGINES, PRECISIONS


def add_engine_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --engine and --precision: how the model is run, for `engines.choose_engine`."""
    parser.add_argument(
        "--engine",
        default="auto",
        choices=("auto", *ENGINES),
        help="library that runs the model; auto takes the fastest on this processor or GPU, see "
        "`segrec doctor` (default: auto)",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", *PRECISIONS),
        help="arithmetic of the backbone; auto takes bfloat16 only where it is native and the "
        "fastest (default: auto)",
    )


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add --log-format and --quiet, for `logs.run_command`."""
    group = parser.add_argument_group("logging")
    group.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: messages are lines of JSON on stderr, without bars and tables (default: text)",
    )
    group.add_argument("--quiet", action="store_true", help="show warnings and errors only")


def add_images_root(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add --images-root: below which folders images of an index may be fetched.

    purpose: how its help begins, such as "show images".
    """
    parser.add_argument(
        "--images-root",
        dest="images_roots",
        action="append",
        default=[],
        metavar="URI",
        help=f"{purpose} below this folder only; may be given several times (default: the folders "
        "that the index says it was made from)",
    )
