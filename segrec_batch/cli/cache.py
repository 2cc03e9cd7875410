"""`segrec cache`: make or renew a query cache."""

import argparse

from segrec_batch.cli.options import add_index, set_up
from segrec_batch.cli.output import check_places
from segrec_batch.common import console

_DESCRIPTION = (
    "Copy the newest snapshot of an index into a DuckDB file that is laid out for ranking. Run "
    "again, it takes in what has changed. The file takes the place of the index in other commands."
)
_EXAMPLES = """\
examples:
  segrec cache --index s3://bucket/index streets.duckdb
  segrec query --index streets.duckdb --image photo.jpg --class car
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    group = parser.add_argument_group("storage")
    add_index(group)
    group.add_argument("file", metavar="FILE", help="the query cache, e.g. streets.duckdb")
    group.add_argument("--rebuild", action="store_true", help="copy everything anew")
    set_up(parser, run, _DESCRIPTION, _EXAMPLES)


def run(a: argparse.Namespace) -> None:
    """Run the command."""
    from segrec_batch.search.cache import refresh_cache

    check_places({"FILE": a.file}, {"--index": a.index})
    done = refresh_cache(a.index, a.file, rebuild=a.rebuild)
    console.show_line(
        f"{a.file}: version {done.version}, {done.rows:,} rows; "
        f"{done.added:,} added, {done.removed:,} removed"
    )
