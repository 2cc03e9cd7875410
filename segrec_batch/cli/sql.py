"""`segrec sql`: run SQL on an index."""

import argparse
import logging

from segrec_batch.cli.options import INDEX_OR_CACHE, add_index, add_output, add_version, set_up
from segrec_batch.cli.output import formatted, put
from segrec_batch.common.errors import InputError

log = logging.getLogger(__name__)

_DESCRIPTION = (
    "Run a query on the views images, regions, descriptors and failures. It can read nothing else, "
    "and change nothing."
)
_EXAMPLES = """\
examples:
  segrec sql --index indexes/streets "SELECT uri, coverage_car FROM images ORDER BY 2 DESC LIMIT 5"
  segrec sql --index indexes/streets -p name=car 'SELECT count(*) FROM regions WHERE class = $name'
  segrec sql --index s3://bucket/index --format parquet --output rows.parquet "FROM failures"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    storage = parser.add_argument_group("storage")
    add_index(storage, INDEX_OR_CACHE)
    add_version(storage)
    query = parser.add_argument_group("query")
    add = query.add_argument
    add("sql", metavar="SQL", help='e.g. "SELECT class, count(*) FROM regions GROUP BY class"')
    add(
        "-p",
        "--parameter",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="the value of $NAME in the SQL",
    )
    add(
        "--timeout",
        type=float,
        default=600,
        metavar="S",
        help="give up after so many seconds (default: 600)",
    )
    add("--explain", action="store_true", help="print how much the query read")
    add_output(parser.add_argument_group("output"), ("table", "csv", "json", "parquet"))
    set_up(parser, run, _DESCRIPTION, _EXAMPLES)


def run(a: argparse.Namespace) -> None:
    """Run the command."""
    from segrec_batch.search.database import open_index
    from segrec_batch.search.sql.connection import PROFILED, Access, read_last_work
    from segrec_batch.search.sql.guard import run_untrusted
    from segrec_batch.search.sql.limits import Limits, exit_after

    if not 0 < a.timeout <= 10**7:
        raise InputError(f"--timeout {a.timeout:g}: give seconds above 0, at most 10000000")
    parameters = dict(_parameter(text) for text in a.parameters)
    settings = PROFILED if a.explain else {}
    database = open_index(a.index, a.version, Access.SEALED, settings)
    with exit_after(a.timeout + min(a.timeout, 10)):
        table = run_untrusted(database, a.sql, parameters, Limits(seconds=a.timeout))
    if a.explain:
        log.info(str(read_last_work(database.connection)))
    title = f"{table.num_rows} rows"
    put(formatted(a.format, table.column_names, table.columns, title), a.output, a.format)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"-p {text}: give NAME=TEXT")
    return name, value
