"""The `segrec` command: ask an index, by SQL or example; draw scenes; examine the machine."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segrec_batch import __version__
from segrec_batch.cli import doctor as cli_doctor
from segrec_batch.cli import feedback as cli_feedback
from segrec_batch.cli.answers import (
    INDEX,
    SHEETS,
    add_criteria,
    asked_image,
    contact_sheet,
    given_criteria,
    known_roots,
    put,
    start_decoder,
)
from segrec_batch.cli.options import add_images_root
from segrec_batch.cli.places import check_places
from segrec_batch.common import console, logs
from segrec_batch.common.errors import InputError

if TYPE_CHECKING:
    from segrec_batch.search.filters import Criteria
    from segrec_batch.search.recommend import QueryImage, Recommendation, Recommender

log = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  # images whose car looks like the one in this image, where cars fill 29 to 96 % of the image
  segrec query --index indexes/streets --uri data/images/0001.jpg --class car --coverage 0.29 0.96
  # the same for a new image, as a contact sheet
  segrec query --index s3://bucket/index --image photo.jpg --class car --format html > sheet.html
  # by another descriptor that the index has
  segrec query --index indexes/streets --image photo.jpg --method texture
  segrec sql --index indexes/streets "SELECT uri, coverage_car FROM images ORDER BY 2 DESC LIMIT 5"
  segrec sql --index indexes/streets -p name=car 'SELECT count(*) FROM regions WHERE class = $name'
  # a local copy laid out for ranking; it takes the place of the index in the commands above
  segrec duckdb --index s3://bucket/index streets.duckdb
  segrec scenes --output demo/scenes --count 240
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "segrec", description=__doc__, epilog=EXAMPLES, formatter_class=form
    )
    parser.add_argument("--version", action="version", version=f"segrec {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add, text, description in (
        ("query", _add_query, "recommend images like one", "Recommend images like one."),
        (
            "sql",
            _add_sql,
            "run SQL on an index",
            "Run a query on the views images, regions, descriptors and failures. It can read "
            "nothing else, and change nothing.",
        ),
        (
            "duckdb",
            _add_duckdb,
            "make or renew a query cache",
            "Copy the newest snapshot of an index into a DuckDB file that is laid out for ranking. "
            "Run again, it takes in what has changed.",
        ),
        (
            "scenes",
            _add_scenes,
            "draw labelled sample scenes",
            "Draw street scenes with exact masks of cars, persons and trees, for trying out "
            "training and indexing.",
        ),
    ):
        add(
            commands.add_parser(
                name, help=text, description=description, epilog=EXAMPLES, formatter_class=form
            )
        )
    cli_feedback.add_commands(commands)
    cli_doctor.add_command(commands)
    return parser.parse_args(arguments)


def _add_query(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--index", required=True, metavar="INDEX", help=INDEX)
    add_criteria(parser)
    add("--penalise", action="store_true", help="with --epsilon: put the others last, keep them")
    add(
        "--rerank",
        choices=("mask_iou", "foreground_iou"),
        help="order the first --depth by overlap of the masks, class by class or of all foreground",
    )
    add("--depth", type=int, default=100, metavar="N", help="for --rerank (default: 100)")
    add(
        "--format",
        default="table",
        choices=("table", "csv", "json", "parquet", "html", "png"),
        help="html and png are contact sheets (default: table)",
    )
    add("--output", metavar="FILE", help="write there, not to stdout")
    add_images_root(parser, "for contact sheets, fetch images")
    add("--explain", action="store_true", help="say how much the query read")
    parser.set_defaults(run=run_query)


def _add_sql(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--index", required=True, metavar="INDEX", help=INDEX)
    add("--version", type=int, metavar="N", help="ask an older version")
    add("--format", default="table", choices=("table", "csv", "json", "parquet"))
    add("--output", metavar="FILE", help="write there, not to stdout")
    add("--explain", action="store_true", help="say how much the query read")
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
    add("sql", help='e.g. "SELECT class, count(*) FROM regions GROUP BY class"')
    parser.set_defaults(run=run_sql)


def _add_duckdb(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument("--rebuild", action="store_true", help="copy everything anew")
    parser.add_argument("file", metavar="FILE", help="the query cache, e.g. streets.duckdb")
    parser.set_defaults(run=run_duckdb)


def _add_scenes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=240, help="scenes (default: 240)")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run_scenes)


def run_query(a: argparse.Namespace) -> None:
    """`segrec query`."""
    start_decoder(a)
    from segrec_batch.search.database import open_index
    from segrec_batch.search.recommend import Recommender
    from segrec_batch.search.sql.work import WATCHED, last_work

    criteria = replace(given_criteria(a), penalise=a.penalise, rerank=a.rerank, depth=a.depth)
    settings = WATCHED if a.explain else {}
    recommender = Recommender(open_index(a.index, a.version, settings=settings))
    asked = asked_image(a, recommender, criteria)
    found = recommender.recommend(asked, criteria)
    if a.explain:
        log.info(str(last_work(recommender.database.connection)))
    if recommender.database.spec.notice:
        log.warning(recommender.database.spec.notice)
    put(_answer(a.format, recommender, asked, found, criteria, a.images_roots), a.output, a.format)


def _answer(
    kind: str,
    recommender: "Recommender",
    asked: "QueryImage",
    found: "list[Recommendation]",
    criteria: "Criteria",
    roots: Sequence[str],
) -> bytes:
    from segrec_batch.cli.output import formatted

    spec = recommender.database.spec
    if kind in SHEETS:
        from segrec_batch.search.recommend import cards

        shown = cards(asked, found, criteria.method, known_roots(recommender, roots))
        return contact_sheet(kind, shown, spec, criteria, str(criteria))
    sigma, share = ("σ {}", _bar) if kind == "table" else ("coverage_{}", float)
    score = "pearson" if criteria.method == "pearson" else "score"
    names = ["rank", score, *map(sigma.format, spec.classes), "uri", "image_id"]
    columns: list[list[Any]] = [
        [r.rank for r in found],
        [r.score for r in found],
        *[[share(r.coverage[name]) for r in found] for name in spec.classes],
        [r.uri for r in found],
        [r.image_id for r in found],
    ]
    if criteria.reranked:
        names.insert(2, "mask_iou")
        columns.insert(2, [r.mask_iou for r in found])
    return formatted(kind, names, columns, str(criteria))


def _bar(share: float) -> str:
    return f"{share:.3f} {console.share_bar(share)}"


def run_sql(a: argparse.Namespace) -> None:
    """`segrec sql`."""
    from segrec_batch.cli.output import formatted
    from segrec_batch.search.database import open_index
    from segrec_batch.search.sql.connection import Access
    from segrec_batch.search.sql.guard import ask
    from segrec_batch.search.sql.limits import Limits, last_resort
    from segrec_batch.search.sql.work import WATCHED, last_work

    if not 0 < a.timeout <= 10**7:
        raise InputError(f"--timeout {a.timeout:g}: give seconds above 0, at most 10000000")
    parameters = dict(_parameter(text) for text in a.parameters)
    settings = WATCHED if a.explain else {}
    database = open_index(a.index, a.version, Access.SEALED, settings)
    with last_resort(a.timeout + min(a.timeout, 10)):
        found = ask(database, a.sql, parameters, Limits(seconds=a.timeout))
    if a.explain:
        log.info(str(last_work(database.connection)))
    title = f"{found.num_rows} rows"
    put(formatted(a.format, found.column_names, found.columns, title), a.output, a.format)


def _parameter(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not given or not name.isidentifier():
        raise InputError(f"-p {text}: give NAME=TEXT")
    return name, value


def run_duckdb(a: argparse.Namespace) -> None:
    """`segrec duckdb`."""
    from segrec_batch.search.cache import refresh_cache

    check_places({"FILE": a.file}, {"--index": a.index})
    done = refresh_cache(a.index, a.file, rebuild=a.rebuild)
    console.show_line(
        f"{a.file}: version {done.version}, {done.rows:,} rows; "
        f"{done.added:,} added, {done.removed:,} removed"
    )


def run_scenes(a: argparse.Namespace) -> None:
    """`segrec scenes`."""
    from segrec_batch.sample_data import write_scenes

    check_places({"--output": a.output})
    with console.ProgressMeter("scenes", a.count) as meter:
        write_scenes(a.output, a.count, a.seed, progress=lambda n: meter.advance(n - meter.done))
    console.show_line(f"{a.count} scenes in {a.output}: images/, masks/, classes.json")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `segrec`."""
    parsed = parse_arguments(arguments)
    return logs.run_command(lambda: parsed.run(parsed))


if __name__ == "__main__":
    sys.exit(main())
