"""What the commands of `segrec` have in common: the image asked with, and where answers go."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segrec_batch import console, messages, storage
from segrec_batch.errors import InputError

if TYPE_CHECKING:
    from segrec_batch.model.spec import ModelSpec
    from segrec_batch.query.card import Card
    from segrec_batch.query.criteria import Criteria
    from segrec_batch.query.recommend import QueryImage, Recommender

INDEX = "folder of the index (local or s3://), or a query cache"
_BINARY = ("parquet", "png")


def add_query_image(parser: argparse.ArgumentParser) -> None:
    """The arguments of which one names the image asked with."""
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--image", metavar="FILE", help="a new picture: path, URI, or - for stdin")
    asked.add_argument("--image-id", metavar="ID", help="an image of the index, by id")
    asked.add_argument("--uri", metavar="URI", help="an image of the index, by path or URI")


def asked_image(
    a: argparse.Namespace, recommender: "Recommender", criteria: "Criteria"
) -> "QueryImage":
    """The image that these arguments name. Raises InputError."""
    if a.image is not None:
        return recommender.new_picture(a.image, _read(a.image), criteria, a.device)
    if a.image_id is not None:
        return recommender.indexed_image("image_id", a.image_id)
    return recommender.indexed_image("uri", storage.absolute(a.uri))


def _read(image: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if image == "-" else storage.read_bytes(image)
    except OSError as error:
        raise InputError(f"{image} cannot be read: {error}") from error


def contact_sheet(
    kind: str, cards: "Sequence[Card]", spec: "ModelSpec", criteria: "Criteria", caption: str
) -> bytes:
    """A query and its answer as `html` or `png`."""
    from segrec_batch.query.sheet import render_sheet
    from segrec_batch.query.sheet_png import render_png

    query, *results = cards
    page = (render_png if kind == "png" else render_sheet)(
        query,
        results,
        classes=spec.colours,
        caption=caption,
        notice=spec.notice,
        asked=criteria.cls,
        window=criteria.coverage,
    )
    return page if isinstance(page, bytes) else page.encode()


def put(content: bytes, output: str | None, kind: str) -> None:
    """An answer into a file, or on stdout. Raises InputError for bytes on a terminal."""
    if output is not None:
        storage.write_bytes(output, content)
        messages.say(f"written to {storage.absolute(output)}")
    elif kind in _BINARY and sys.stdout.isatty():
        raise InputError(f"{kind} is not for a terminal: give --output FILE")
    elif kind not in _BINARY:
        console.show(content.decode())
    else:
        sys.stdout.buffer.write(content)
