"""`segrec feedback`: mark what was shown, and be shown what follows from it."""

import argparse
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
from segrec_batch.common import console
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.sources import storage

if TYPE_CHECKING:
    from segrec_batch.search.feedback.session import Session
    from segrec_batch.search.recommend import Recommender

log = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  # round 0: the ten images most like one; the session is kept in a file (local or s3://)
  segrec feedback start --index INDEX --uri data/images/0001.jpg --session search.parquet
  # marks, by the ranks of the round shown last, and round 1, ranked by Rocchio
  segrec feedback mark --session search.parquet --relevant 1 3 5 --somewhat 2 --not 4
  # once more, ranked by an SVM on all marks so far
  segrec feedback mark --session search.parquet --relevant 1 2 --not 9 --by svm
  # the last round again, as a contact sheet; then: does the index still answer all rounds so?
  segrec feedback show --session search.parquet --format html --output search.html
  segrec feedback replay --session search.parquet
"""
_ABOUT = (
    "Relevance feedback: mark images as relevant, somewhat or not, and be shown others that follow "
    "from all marks so far. A session is one Parquet file; any command goes on with it."
)


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`segrec feedback` and its own commands."""
    form = argparse.RawDescriptionHelpFormatter
    feedback = commands.add_parser(
        "feedback",
        help="find images by marking answers",
        description=_ABOUT,
        epilog=EXAMPLES,
        formatter_class=form,
    )
    steps = feedback.add_subparsers(required=True, metavar="STEP")
    for name, add, run, text in (
        ("start", _add_start, run_start, "Ask, and begin a session: round 0."),
        ("mark", _add_mark, run_mark, "Mark images of the last round; the next round follows."),
        ("show", _add_show, run_show, "Show a round again."),
        ("replay", _add_replay, run_replay, "Rank all rounds again; exit code 1 if one differs."),
    ):
        step = steps.add_parser(
            name, help=text, description=text, epilog=EXAMPLES, formatter_class=form
        )
        step.add_argument("--session", required=True, metavar="FILE", help="the session")
        add(step)
        step.set_defaults(run=run)


def _add_start(parser: argparse.ArgumentParser) -> None:
    from segrec_batch.search.feedback.refine import Weights

    add = parser.add_argument
    add("--index", required=True, metavar="INDEX", help=INDEX)
    add_criteria(parser)
    add("--keep-marked", action="store_true", help="show marked images again")
    standard = Weights()
    for name, text in (
        ("alpha", "weight of the query, by Rocchio"),
        ("beta", "weight of relevant images, by Rocchio"),
        ("gamma", "weight of images that are not relevant, by Rocchio"),
    ):
        value = getattr(standard, name)
        add(f"--{name}", type=float, default=value, help=f"{text} (default: {value:g})")
    add(
        "--C",
        dest="c",
        type=float,
        default=standard.c,
        help=f"of the SVM (default: {standard.c:g})",
    )
    add("--overwrite", action="store_true", help="begin anew where there is a session already")


def _add_mark(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    for option, dest, text in (
        ("--relevant", "relevant", "ranks of relevant images"),
        ("--somewhat", "somewhat", "of somewhat relevant ones"),
        ("--not", "not_relevant", "of those that are not relevant"),
    ):
        add(option, dest=dest, nargs="+", type=int, default=[], metavar="RANK", help=text)
    add("--by", default="rocchio", choices=("rocchio", "svm"), help="(default: rocchio)")
    add("--round", type=int, metavar="N", help="go back: mark round N, drop those after it")
    _add_place(parser)


def _add_show(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--round", type=int, metavar="N", help="which round (default: the last)")
    add("--format", default="table", choices=("table", "csv", "json", *SHEETS))
    add("--output", metavar="FILE", help="write there, not to stdout")
    add_images_root(parser, "for contact sheets, fetch images")
    _add_place(parser)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", metavar="INDEX", help="where the index lies now, if it moved")


def run_start(a: argparse.Namespace) -> None:
    """`segrec feedback start`."""
    start_decoder(a)
    from segrec_batch.search.database import open_index
    from segrec_batch.search.feedback.refine import Weights
    from segrec_batch.search.feedback.rounds import start
    from segrec_batch.search.feedback.session import read, write
    from segrec_batch.search.recommend import Recommender

    check_places({"--session": a.session}, {"--index": a.index})
    if _taken(a.session):
        if not a.overwrite:
            raise InputError(f"{a.session} is there already; go on with mark, or say --overwrite")
        read(a.session)  # else it is not ours to replace
    criteria = given_criteria(a)
    recommender = Recommender(open_index(a.index, a.version))
    session = start(
        recommender,
        asked_image(a, recommender, criteria),
        criteria,
        Weights(a.alpha, a.beta, a.gamma, a.c),
        index=storage.absolute(a.index),
        keep_marked=a.keep_marked,
    )
    write(session, a.session)
    _show(session, recommender)


def _taken(uri: str) -> bool:
    return not isinstance(storage.read_many([uri], [1])[0], FileNotFoundError)


def run_mark(a: argparse.Namespace) -> None:
    """`segrec feedback mark`."""
    from segrec_batch.search.feedback.rounds import mark, resume
    from segrec_batch.search.feedback.session import read, write

    session = read(a.session)
    recommender = resume(session, a.index)
    session = mark(recommender, session, _marks(a), a.by, a.round)
    write(session, a.session)
    _show(session, recommender)


def _marks(a: argparse.Namespace) -> Mapping[int, float]:
    from segrec_batch.search.feedback.refine import NOT_RELEVANT, RELEVANT, SOMEWHAT

    named = [(a.relevant, RELEVANT), (a.somewhat, SOMEWHAT), (a.not_relevant, NOT_RELEVANT)]
    pairs = [(rank, value) for ranks, value in named for rank in dict.fromkeys(ranks)]
    marks = dict(pairs)
    if len(marks) < len(pairs):
        raise InputError("an image has one mark: a rank is named twice")
    return marks


def run_show(a: argparse.Namespace) -> None:
    """`segrec feedback show`."""
    start_decoder(a)
    from segrec_batch.search.feedback.rounds import resume
    from segrec_batch.search.feedback.session import read

    session = read(a.session)
    number = session.last if a.round is None else a.round
    if a.format not in SHEETS:
        put(_rows(session, number, a.format), a.output, a.format)
        return
    from segrec_batch.search.feedback.sheet import round_cards

    recommender = resume(session, a.index)
    roots = known_roots(recommender, a.images_roots)
    cards, caption = round_cards(recommender, session, number, roots), session.caption(number)
    spec = recommender.database.spec
    put(contact_sheet(a.format, cards, spec, session.criteria, caption), a.output, a.format)


def run_replay(a: argparse.Namespace) -> None:
    """`segrec feedback replay`: raises IndexStateError if a ranking is not what it was."""
    from segrec_batch.search.feedback.rounds import replay, resume
    from segrec_batch.search.feedback.session import read

    session = read(a.session)
    found = replay(resume(session, a.index), session)
    rows = [[str(r.round), r.by, str(r.shown), str(r.differ)] for r in found]
    title = f"{a.session}: version {session.version} of {session.index}, ranked again"
    console.show(console.table(title, ["round", "by", "images", "other ranks"], rows))
    other = [r.round for r in found if r.differ]
    if other:
        raise IndexStateError(f"round {other[0]} is not what it was")


def _show(session: "Session", recommender: "Recommender") -> None:
    if recommender.database.spec.notice:
        log.warning(recommender.database.spec.notice)
    put(_rows(session, session.last, "table"), None, "table")


def _rows(session: "Session", number: int, kind: str) -> bytes:
    from segrec_batch.cli.output import formatted
    from segrec_batch.search.feedback.session import said

    rows = session.round(number)
    columns: dict[str, list[Any]] = {
        "round": [r.round for r in rows],
        "rank": [r.rank for r in rows],
        "mark": [said(r.mark) if kind == "table" else r.mark for r in rows],
        "score": [r.score for r in rows],
        "uri": [r.uri for r in rows],
        "image_id": [r.image_id for r in rows],
    }
    return formatted(kind, list(columns), list(columns.values()), session.caption(number))
