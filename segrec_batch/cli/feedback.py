"""`segrec feedback`: mark results of a query, and get the next round of results."""

import argparse
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segrec_batch.cli.options import (
    INDEX_OR_CACHE,
    Group,
    HelpFormatter,
    add_images_roots,
    add_index,
    add_output,
    add_query,
    add_version,
    describe,
    query_filters,
    set_up,
)
from segrec_batch.cli.output import SHEETS, check_places, contact_sheet, formatted, put
from segrec_batch.cli.query import known_roots, read_query, start_decoder
from segrec_batch.common import console
from segrec_batch.common.errors import IndexStateError, InputError

if TYPE_CHECKING:
    from segrec_batch.search.feedback.session import Session
    from segrec_batch.search.recommend import Recommender

log = logging.getLogger(__name__)

_EXAMPLES = """\
examples:
  # round 0: the ten images most like one; the session is kept in a file (local or s3://)
  segrec feedback start --index INDEX --uri data/images/0001.jpg --session search.parquet
  # marks, by the ranks of the round shown last, and round 1, ranked by Rocchio
  segrec feedback mark --session search.parquet --relevant 1 3 5 --somewhat 2 --not 4
  # the next round, ranked by an SVM on all marks so far
  segrec feedback mark --session search.parquet --relevant 1 2 --not 9 --by svm
  # the last round as a contact sheet; then a check that the index still gives the same rounds
  segrec feedback show --session search.parquet --format html --output search.html
  segrec feedback replay --session search.parquet
"""
_DESCRIPTION = (
    "Relevance feedback: mark images as relevant, somewhat relevant or not relevant; the next "
    "round follows from all marks so far. A session is one Parquet file."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    describe(parser, _DESCRIPTION, _EXAMPLES)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    for name, add, run, text in (
        ("start", _add_start, _start, "Run a query and begin a session: round 0."),
        ("mark", _add_mark, _mark, "Mark images of the last round; the next round follows."),
        ("show", _add_show, _show, "Show a round again."),
        ("replay", _add_moved, _replay, "Rank all rounds again; exit code 1 if one differs."),
    ):
        step = steps.add_parser(name, help=text, formatter_class=HelpFormatter)
        storage = step.add_argument_group("storage")
        storage.add_argument("--session", required=True, metavar="FILE", help="the session")
        add(step, storage)
        set_up(step, run, text, _EXAMPLES)


WEIGHTS = {"alpha": 1.0, "beta": 0.75, "gamma": 0.15, "c": 1.0}  # defaults


def _add_start(parser: argparse.ArgumentParser, storage: Group) -> None:
    add_index(storage, INDEX_OR_CACHE)
    add_version(storage)
    storage.add_argument("--overwrite", action="store_true", help="replace a session of this name")
    add = add_query(parser).add_argument
    add("--keep-marked", action="store_true", help="show marked images again")
    for name, text in (
        ("alpha", "weight of the query, by Rocchio"),
        ("beta", "weight of relevant images, by Rocchio"),
        ("gamma", "weight of images that are not relevant, by Rocchio"),
    ):
        value = WEIGHTS[name]
        add(f"--{name}", type=float, default=value, help=f"{text} (default: {value:g})")
    add(
        "--C",
        dest="c",
        type=float,
        default=WEIGHTS["c"],
        help=f"C of the SVM (default: {WEIGHTS['c']:g})",
    )


def _add_mark(parser: argparse.ArgumentParser, storage: Group) -> None:
    add = parser.add_argument_group("marks").add_argument
    for option, dest, text in (
        ("--relevant", "relevant", "ranks of relevant images"),
        ("--somewhat", "somewhat", "ranks of somewhat relevant images"),
        ("--not", "not_relevant", "ranks of images that are not relevant"),
    ):
        add(option, dest=dest, nargs="+", type=int, default=[], metavar="RANK", help=text)
    add("--by", default="rocchio", choices=("rocchio", "svm"), help="(default: rocchio)")
    add("--round", type=int, metavar="N", help="mark round N again, and drop later rounds")
    _add_moved(parser, storage)


def _add_show(parser: argparse.ArgumentParser, storage: Group) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--round", type=int, metavar="N", help="number of the round (default: the last)"
    )
    add_output(output, ("table", "csv", "json", *SHEETS))
    add_images_roots(storage, "for contact sheets, fetch images")
    _add_moved(parser, storage)


def _add_moved(parser: argparse.ArgumentParser, storage: Group) -> None:
    storage.add_argument("--index", metavar="INDEX", help="location of the index, if it has moved")


def _start(a: argparse.Namespace) -> None:
    start_decoder(a)
    from segrec_batch.search.database import open_index
    from segrec_batch.search.feedback.refine import Weights
    from segrec_batch.search.feedback.rounds import start
    from segrec_batch.search.feedback.session import read, write
    from segrec_batch.search.recommend import Recommender
    from segrec_batch.sources import storage

    check_places({"--session": a.session}, {"--index": a.index})
    if _exists(a.session):
        if not a.overwrite:
            raise InputError(f"{a.session} exists: continue it with mark, or give --overwrite")
        read(a.session)  # raises for a file that is no session
    filters = query_filters(a)
    recommender = Recommender(open_index(a.index, a.version))
    session = start(
        recommender,
        recommender.resolve(read_query(a, filters)),
        filters,
        Weights(a.alpha, a.beta, a.gamma, a.c),
        index=storage.absolute(a.index),
        keep_marked=a.keep_marked,
    )
    write(session, a.session)
    _print(session, recommender)


def _exists(uri: str) -> bool:
    from segrec_batch.sources import storage

    return not isinstance(storage.read_many([uri], [1])[0], FileNotFoundError)


def _mark(a: argparse.Namespace) -> None:
    from segrec_batch.search.feedback.rounds import mark, resume
    from segrec_batch.search.feedback.session import read, write

    session = read(a.session)
    recommender = resume(session, a.index)
    session = mark(recommender, session, _marks(a), a.by, a.round)
    write(session, a.session)
    _print(session, recommender)


def _marks(a: argparse.Namespace) -> Mapping[int, float]:
    from segrec_batch.search.feedback.refine import NOT_RELEVANT, RELEVANT, SOMEWHAT

    named = [(a.relevant, RELEVANT), (a.somewhat, SOMEWHAT), (a.not_relevant, NOT_RELEVANT)]
    pairs = [(rank, value) for ranks, value in named for rank in dict.fromkeys(ranks)]
    marks = dict(pairs)
    if len(marks) < len(pairs):
        raise InputError("a rank is named twice: an image has one mark")
    return marks


def _show(a: argparse.Namespace) -> None:
    start_decoder(a)
    from segrec_batch.search.feedback.rounds import resume, round_results
    from segrec_batch.search.feedback.session import read

    session = read(a.session)
    number = session.last if a.round is None else a.round
    if a.format not in SHEETS:
        put(_rows(session, number, a.format), a.output, a.format)
        return
    recommender, caption = resume(session, a.index), session.caption(number)
    results = round_results(recommender, session, number)
    cards = results.cards(known_roots(recommender, a.images_roots))
    spec = recommender.database.spec
    put(contact_sheet(a.format, cards, spec, session.filters, caption), a.output, a.format)


def _replay(a: argparse.Namespace) -> None:
    """Rank all rounds again. Raises IndexStateError if a ranking differs."""
    from segrec_batch.search.feedback.rounds import replay, resume
    from segrec_batch.search.feedback.session import read

    session = read(a.session)
    rounds = replay(resume(session, a.index), session)
    rows = [[str(r.round), r.by, str(r.shown), str(r.differ)] for r in rounds]
    title = f"{a.session}: version {session.version} of {session.index}, ranked again"
    console.show(console.table(title, ["round", "by", "images", "other ranks"], rows))
    other = [r.round for r in rounds if r.differ]
    if other:
        raise IndexStateError(f"round {other[0]} is not what it was")


def _print(session: "Session", recommender: "Recommender") -> None:
    if recommender.database.spec.notice:
        log.warning(recommender.database.spec.notice)
    put(_rows(session, session.last, "table"), None, "table")


def _rows(session: "Session", number: int, kind: str) -> bytes:
    from segrec_batch.search.feedback.session import mark_text

    rows = session.round(number)
    columns: dict[str, list[Any]] = {
        "round": [r.round for r in rows],
        "rank": [r.rank for r in rows],
        "mark": [mark_text(r.mark) if kind == "table" else r.mark for r in rows],
        "score": [r.score for r in rows],
        "uri": [r.uri for r in rows],
        "image_id": [r.image_id for r in rows],
    }
    return formatted(kind, list(columns), list(columns.values()), session.caption(number))
