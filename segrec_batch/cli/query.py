"""`segrec query`: recommend images like one."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segrec_batch.cli.options import (
    INDEX_OR_CACHE,
    add_expand,
    add_images_roots,
    add_index,
    add_output,
    add_query,
    add_version,
    query_filters,
    set_up,
)
from segrec_batch.cli.output import SHEETS, contact_sheet, formatted, put
from segrec_batch.common import console
from segrec_batch.common.errors import InputError

if TYPE_CHECKING:
    from segrec_batch.search.filters import Filters
    from segrec_batch.search.recommend import Query, Recommender, Results
    from segrec_batch.sources.roots import ImageRoots

log = logging.getLogger(__name__)

_EXAMPLES = """\
examples:
  # images whose car looks like the one in this image, where cars fill 29 to 96 % of the image
  segrec query --index indexes/streets --uri data/images/0001.jpg --class car --coverage 0.29 0.96
  # the same for a new image, as a contact sheet
  segrec query --index s3://bucket/index --image photo.jpg --class car --format html > sheet.html
  # by another descriptor of the index
  segrec query --index indexes/streets --image photo.jpg --method texture
  # with the first 10 results added to the query
  segrec query --index indexes/streets --image photo.jpg --method root-pca-cosine --expand 10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    storage = parser.add_argument_group("storage")
    add_index(storage, INDEX_OR_CACHE)
    add_version(storage)
    add_images_roots(storage, "for contact sheets, fetch images")
    filters = add_query(parser)
    add_expand(filters)
    add = filters.add_argument
    add(
        "--penalise",
        action="store_true",
        help="with --epsilon: rank images beyond it last, and keep them",
    )
    add(
        "--rerank",
        choices=("mask_iou", "foreground_iou"),
        help="order the first --depth by overlap of the masks, class by class or of all foreground",
    )
    add("--depth", type=int, default=100, metavar="N", help="for --rerank (default: 100)")
    output = parser.add_argument_group("output")
    formats = ("table", "csv", "json", "parquet", *SHEETS)
    add_output(output, formats, "html and png are contact sheets ")
    output.add_argument("--explain", action="store_true", help="print how much the query read")
    set_up(parser, run, "Recommend images like one.", _EXAMPLES)


def run(a: argparse.Namespace) -> None:
    """Run the command."""
    start_decoder(a)
    from segrec_batch.search.database import open_index
    from segrec_batch.search.recommend import Recommender
    from segrec_batch.search.sql.connection import PROFILED, read_last_work

    filters = replace(
        query_filters(a), penalise=a.penalise, rerank=a.rerank, depth=a.depth, expand=a.expand
    )
    settings = PROFILED if a.explain else {}
    recommender = Recommender(open_index(a.index, a.version, settings=settings))
    results = recommender.recommend(read_query(a, filters))
    if a.explain:
        log.info(str(read_last_work(recommender.database.connection)))
    if recommender.database.spec.notice:
        log.warning(recommender.database.spec.notice)
    content = _encode(a.format, recommender, results, a.images_roots)
    put(content, a.output, a.format)


def start_decoder(a: argparse.Namespace) -> None:
    """Start the process that decodes images, if the command needs it, beside other imports."""
    if getattr(a, "image", None) is None and getattr(a, "format", None) not in SHEETS:
        return
    from segrec_batch.images import sandbox

    sandbox.shared().start()


def read_query(a: argparse.Namespace, filters: "Filters") -> "Query":
    """Return the query that the options of `add_query` name. Raises InputError."""
    from segrec_batch.search.recommend import Query

    return Query(
        filters=filters,
        image_id=a.image_id,
        uri=a.image or a.uri,
        image=None if a.image is None else _read(a.image),
        engine=a.engine,
        precision=a.precision,
        device=a.device,
    )


def _read(image: str) -> bytes:
    from segrec_batch.sources import storage
    from segrec_batch.sources.roots import MAX_IMAGE_BYTES

    try:
        if image != "-":
            return storage.read_bytes(image, MAX_IMAGE_BYTES)
        content = sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{image} cannot be read: {error}") from error
    if len(content) > MAX_IMAGE_BYTES:
        raise InputError(f"stdin has more than {MAX_IMAGE_BYTES:,} bytes: no image is as large")
    return content


def known_roots(recommender: "Recommender", roots: Sequence[str]) -> "ImageRoots":
    """Return the roots that a user names, or those of the index. Raises InputError."""
    from segrec_batch.index.history import choose_roots

    return choose_roots(recommender.database.index, roots)


def _encode(
    kind: str, recommender: "Recommender", results: "Results", roots: Sequence[str]
) -> bytes:
    spec, filters = recommender.database.spec, results.filters
    if kind in SHEETS:
        cards = results.cards(known_roots(recommender, roots))
        return contact_sheet(kind, cards, spec, filters, str(filters))
    sigma, share = ("σ {}", _bar) if kind == "table" else ("coverage_{}", float)
    score = "pearson" if filters.method == "pearson" else "score"
    names = ["rank", score, *map(sigma.format, spec.classes), "uri", "image_id"]
    columns: list[list[Any]] = [
        [r.rank for r in results],
        [r.score for r in results],
        *[[share(r.coverage[name]) for r in results] for name in spec.classes],
        [r.uri for r in results],
        [r.image_id for r in results],
    ]
    if filters.reranking:
        names.insert(2, "mask_iou")
        columns.insert(2, [r.mask_iou for r in results])
    return formatted(kind, names, columns, str(filters))


def _bar(share: float) -> str:
    return f"{share:.3f} {console.share_bar(share)}"
