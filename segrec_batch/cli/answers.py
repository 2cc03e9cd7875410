"""What the commands of `segrec` have in common: what is asked for, and where answers go."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segrec_batch.cli.options import add_engine_options
from segrec_batch.cli.places import check_places
from segrec_batch.common import console
from segrec_batch.common.errors import InputError
from segrec_batch.model.engines import choose_engine, find_device
from segrec_batch.sources import storage
from segrec_batch.sources.roots import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    from segrec_batch.model.spec import ModelSpec
    from segrec_batch.search.filters import Criteria
    from segrec_batch.search.recommend import QueryImage, Recommender
    from segrec_batch.sheets.card import Card
    from segrec_batch.sources.roots import ImageRoots

log = logging.getLogger(__name__)

INDEX = "folder of the index (local or s3://), or a query cache"
SHEETS = ("html", "png")
_BINARY = ("parquet", "png")


def add_criteria(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which images are asked for: like which one, judged by what."""
    add = parser.add_argument
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--image", metavar="FILE", help="a new image: path, URI, or - for stdin")
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
    add(
        "--scope",
        default="region",
        choices=("region", "image"),
        help="with --class: compare its regions, or whole images that have it (default: region)",
    )
    add(
        "--epsilon",
        type=float,
        metavar="E",
        help="only images with at most this semantic distance, 0 to 2: the sum over all classes "
        "of the difference in coverage",
    )
    add(
        "--method",
        default="pearson",
        metavar="M",
        help="what to rank by: pearson, cosine, euclidean or dot of features, the name of a "
        "descriptor of the index, e.g. texture, or NAME-METRIC, e.g. pca-cosine (default: pearson)",
    )
    add("--keep-copies", action="store_true", help="show images of the same bytes each")
    add("-k", type=int, default=10, help="how many (default: 10)")
    add("--version", type=int, metavar="N", help="ask an older version of the index")
    add("--device", default="cpu", help="for --image: cpu, cuda or auto (default: cpu)")
    add_engine_options(parser)


def known_roots(recommender: "Recommender", named: Sequence[str]) -> "ImageRoots":
    """The roots that a user names, or those of the index. Raises InputError."""
    from segrec_batch.index.snapshot import choose_roots

    return choose_roots(recommender.database.index, named)


def given_criteria(a: argparse.Namespace) -> "Criteria":
    """What these arguments ask for."""
    from segrec_batch.search.filters import Criteria

    return Criteria(
        cls=a.cls,
        coverage=tuple(a.coverage),
        k=a.k,
        scope=a.scope,
        epsilon=a.epsilon,
        distinct_content=not a.keep_copies,
        method=a.method,
    )


def start_decoder(a: argparse.Namespace) -> None:
    """Start the process that decodes, if these arguments need it: it loads beside the rest."""
    if getattr(a, "image", None) is None and getattr(a, "format", None) not in SHEETS:
        return
    from segrec_batch.images import sandbox

    sandbox.shared().start()


def asked_image(
    a: argparse.Namespace, recommender: "Recommender", criteria: "Criteria"
) -> "QueryImage":
    """The image that these arguments name. Raises InputError."""
    if a.image is not None:
        content = _read(a.image)
        backbone = recommender.database.spec.backbone_spec
        engine = choose_engine(a.engine, a.precision, find_device(a.device), backbone=backbone)
        if engine.warning:
            log.warning(engine.warning)
        return recommender.new_image(a.image, content, criteria, engine)
    if a.image_id is not None:
        return recommender.indexed_image("image_id", a.image_id)
    return recommender.indexed_image("uri", storage.absolute(a.uri))


def _read(image: str) -> bytes:
    try:
        if image != "-":
            return storage.read_bytes(image, MAX_IMAGE_BYTES)
        content = sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{image} cannot be read: {error}") from error
    if len(content) > MAX_IMAGE_BYTES:
        raise InputError(f"stdin has more than {MAX_IMAGE_BYTES:,} bytes: no image is as large")
    return content


def contact_sheet(
    kind: str, cards: "Sequence[Card]", spec: "ModelSpec", criteria: "Criteria", caption: str
) -> bytes:
    """A query and its answer as `html` or `png`."""
    from segrec_batch.sheets.html import render_sheet
    from segrec_batch.sheets.png import render_png

    withheld = [card for card in cards if card.is_withheld]
    if withheld:
        log.warning(
            f"{len(withheld)} of {len(cards)} images are not fetched, e.g. {withheld[0].name}: it "
            "lies below no folder that the index was made from; --images-root URI names others"
        )
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
        check_places({"--output": output})
        storage.write_bytes(output, content)
        log.info(f"written to {storage.absolute(output)}")
    elif kind in _BINARY and sys.stdout.isatty():
        raise InputError(f"{kind} is not for a terminal: give --output FILE")
    elif kind not in _BINARY:
        console.show(content.decode())
    else:
        sys.stdout.buffer.write(content)
