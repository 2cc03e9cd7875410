"""The `segrec` command: ask an index, in SQL or by example; draw sample scenes."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from segrec_batch import __version__, console, storage
from segrec_batch.errors import InputError

_WIDEST = 120  # characters of a cell of a table; csv and json keep all

EXAMPLES = """\
examples:
  # images whose car looks like the one in this image, where cars fill 29 to 96 % of the picture
  segrec query --index indexes/streets --uri data/images/0001.jpg --class car --coverage 0.29 0.96
  # the same for a new picture, as a contact sheet
  segrec query --index s3://bucket/index --image photo.jpg --class car --format html > sheet.html
  segrec sql --index indexes/streets "SELECT uri, coverage_car FROM images ORDER BY 2 DESC LIMIT 5"
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
    _add_query(
        commands.add_parser(
            "query",
            help="recommend images like one",
            epilog=EXAMPLES,
            description="Recommend images like one.",
            formatter_class=form,
        )
    )
    _add_sql(
        commands.add_parser(
            "sql",
            help="run SQL on an index",
            epilog=EXAMPLES,
            description="Run SQL on the views images, regions and failures.",
            formatter_class=form,
        )
    )
    _add_scenes(
        commands.add_parser(
            "scenes",
            help="draw labelled sample scenes",
            description="Draw street scenes with exact masks of cars, "
            "persons and trees, for trying out training and indexing.",
        )
    )
    return parser.parse_args(arguments)


def _add_query(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--index", required=True, metavar="INDEX", help="folder of the index (local or s3://)")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--image", metavar="FILE", help="a new picture: path, URI, or - for stdin")
    asked.add_argument("--image-id", metavar="ID", help="an image of the index, by id")
    asked.add_argument("--uri", metavar="URI", help="an image of the index, by path or URI")
    add("--class", dest="cls", metavar="CLASS", help="compare regions of this class, not images")
    add(
        "--coverage",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="only images in which the class fills this share, e.g. 0.29 0.96",
    )
    add("-k", type=int, default=10, help="how many (default: 10)")
    add(
        "--format",
        default="table",
        choices=("table", "json", "csv", "html"),
        help="html is a contact sheet (default: table)",
    )
    add("--output", metavar="FILE", help="write there, not to stdout")
    add("--version", type=int, metavar="N", help="ask an older version of the index")
    add("--device", default="cpu", help="for --image: cpu, cuda or auto (default: cpu)")
    parser.set_defaults(run=run_query)


def _add_sql(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument("--version", type=int, metavar="N", help="ask an older version")
    parser.add_argument("--format", default="table", choices=("table", "json", "csv"))
    parser.add_argument("sql", help='e.g. "SELECT class, count(*) FROM regions GROUP BY class"')
    parser.set_defaults(run=run_sql)


def _add_scenes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=240, help="scenes (default: 240)")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run_scenes)


def run_query(a: argparse.Namespace) -> None:
    """`segrec query`."""
    from segrec_batch.query.recommend import Criteria, Recommender
    from segrec_batch.store.index import open_snapshot

    criteria = Criteria(a.cls, tuple(a.coverage), a.k)
    recommender = Recommender(open_snapshot(storage.absolute(a.index), a.version))
    if a.image is not None:
        asked = recommender.new_picture(a.image, _read(a.image), criteria, a.device)
    elif a.image_id is not None:
        asked = recommender.indexed_image("image_id", a.image_id)
    else:
        asked = recommender.indexed_image("uri", storage.absolute(a.uri))
    found = recommender.recommend(asked, criteria)
    spec = recommender.snapshot.spec
    if spec.notice:
        console.say(f"warning: {spec.notice}")
    if a.format == "html":
        from segrec_batch.query.sheet import render_sheet

        cards = [item.card() for item in found]
        page = render_sheet(
            asked.card, cards, classes=spec.colours, caption=str(criteria), notice=spec.notice
        )
        _write(page, a.output)
        return
    sigma = "σ {}" if a.format == "table" else "coverage_{}"
    header = ("rank", "pearson", *map(sigma.format, spec.classes), "uri", "image_id")
    rows = [
        (r.rank, r.pearson, *(r.coverage[name] for name in spec.classes), r.uri, r.image_id)
        for r in found
    ]
    _write(_formatted(a.format, header, rows, str(criteria)), a.output)


def run_sql(a: argparse.Namespace) -> None:
    """`segrec sql`."""
    from segrec_batch.query.database import connect, query

    found = query(connect(a.index, a.version), a.sql)
    rows = [tuple(row.values()) for row in found.to_pylist()]
    _write(_formatted(a.format, tuple(found.column_names), rows, f"{len(rows)} rows"), None)


def run_scenes(a: argparse.Namespace) -> None:
    """`segrec scenes`."""
    from segrec_batch.scenes import write_scenes

    with console.ProgressMeter("scenes", a.count) as meter:
        write_scenes(a.output, a.count, a.seed, progress=lambda n: meter.advance(n - meter.done))
    print(f"{a.count} scenes in {a.output}: images/, masks/, classes.json")


def _read(image: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if image == "-" else storage.read_bytes(image)
    except OSError as error:
        raise InputError(f"{image} cannot be read: {error}") from error


def _formatted(
    kind: str, header: tuple[str, ...], rows: Sequence[tuple[object, ...]], title: str
) -> str:
    if kind == "json":
        return (
            json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=2, default=str)
            + "\n"
        )
    if kind == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([header, *rows])
        return out.getvalue()
    return console.table(title, header, [[_cell(value) for value in row] for row in rows])


def _cell(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _write(text: str, output: str | None) -> None:
    if output is None:
        sys.stdout.write(text)
    else:
        storage.write_bytes(output, text.encode())
        console.say(f"written to {storage.absolute(output)}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `segrec`."""
    parsed = parse_arguments(arguments)
    return console.run_command(lambda: parsed.run(parsed))


if __name__ == "__main__":
    sys.exit(main())
