"""`segrec evaluate categories`: how well the feature of an image tells its category."""

import argparse
from typing import TYPE_CHECKING

from segrec_batch.api.categories import evaluate_categories
from segrec_batch.cli.options import (
    add_dominant_class,
    add_index,
    add_version,
    check_dominant_class,
    defaults,
)

if TYPE_CHECKING:
    from segrec_batch.evaluation.report import Report

SUMMARY = "measure how well the feature of an image tells its category"
EXAMPLES = """\
examples:
  # the category of an image is the name of its folder
  segrec evaluate categories --index INDEX --labels folder --report reports/categories
  # or the dominant class, where it fills 29 to 96 % of the image by its label mask
  segrec evaluate categories --index INDEX --labels masks --masks data/masks \\
      --classes classes.json --report reports/categories
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the report."""
    default = defaults(evaluate_categories)
    storage = parser.add_argument_group("storage")
    add_index(storage, "an index, or a query cache")
    add_version(storage)
    group = parser.add_argument_group("categories")
    add = group.add_argument
    add(
        "--labels",
        required=True,
        choices=("folder", "masks"),
        help="the category is the name of the folder, or the dominant class by label masks",
    )
    add_dominant_class(group, default["window"])
    add(
        "--test-share",
        type=float,
        default=default["test_share"],
        metavar="SHARE",
        help="share of the images of each category to test on (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of the split and the bootstrap (default: 0)")


def run(a: argparse.Namespace) -> "Report":
    """Return the report that the arguments name."""
    check_dominant_class(a)
    options = {name: vars(a)[name] for name in defaults(evaluate_categories)}
    return evaluate_categories(a.index, a.labels, **options)
