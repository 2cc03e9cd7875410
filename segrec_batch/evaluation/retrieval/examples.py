"""Queries to look at: the best and the worst, with what they found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.items import Gallery, GalleryImage
from segrec_batch.evaluation.retrieval.conditions import NONE
from segrec_batch.evaluation.retrieval.measures import average_precision
from segrec_batch.evaluation.retrieval.rankings import rankings, taking_part
from segrec_batch.sheets.card import Card
from segrec_batch.sheets.thumbnail import ThumbnailMaker
from segrec_batch.sources.roots import ImageRoots, fetch_images

SHOWN = 8
_BOX = 240, 240  # pixels


@dataclass(frozen=True)
class Example:
    """A query without a filter: its URI, class and average precision, and what a method found first
    for it, each with URI, whether it is relevant, and score. roots: below which images are fetched.
    """

    query: str
    cls: str
    ap: float
    method: str
    results: Sequence[tuple[str, bool, float]]
    roots: ImageRoots


def average_precisions(counts: pa.Table, method: str) -> dict[str, float]:
    """Of each query (image_id) that takes part, without a filter. Raises InputError if the method
    is not in the counts.
    """
    found = rankings(counts)
    part = taking_part(found)
    chosen = [r for r in found if (r.method, r.setting) == (method, NONE)]
    if not chosen:
        raise InputError(f"{method} was not judged without a filter")
    ap = average_precision(chosen[0])
    return {q: float(a) for q, a, has in zip(chosen[0].queries, ap, part, strict=True) if has}


def best_and_worst(ap: Mapping[str, float], n: int = 3) -> tuple[list[str], list[str]]:
    """The n queries of greatest and those of least average precision, none in both; of equals the
    first by name.
    """
    best = sorted(ap, key=lambda q: (-ap[q], q))[:n]
    worst = [q for q in sorted(ap, key=lambda q: (ap[q], q)) if q not in best]
    return best, worst[:n]


def galleries(examples: Sequence[Example]) -> list[Gallery]:
    """One for each method: the query, then the results, those that are relevant marked."""
    methods = dict.fromkeys(e.method for e in examples)
    maker = ThumbnailMaker((), _BOX)
    caption = "{}: queries and what they found, by average precision"
    return [
        Gallery(caption.format(m), [_strip(e, maker) for e in _by_ap(examples) if e.method == m])
        for m in methods
    ]


def _by_ap(examples: Sequence[Example]) -> list[Example]:
    return sorted(examples, key=lambda e: (-e.ap, e.query))


def _strip(example: Example, maker: ThumbnailMaker) -> tuple[str, list[GalleryImage]]:
    results = example.results[:SHOWN]
    uris = [example.query, *(uri for uri, *_ in results)]
    cards = [
        Card(uri, data if isinstance(data, bytes) else None, b"", {}, None)
        for uri, data in zip(uris, fetch_images(uris, example.roots), strict=True)
    ]
    images = [maker.make(card).image for card in cards]
    labels = ["query", *(f"{i} · {score:.3f}" for i, (*_, score) in enumerate(results, start=1))]
    marks = ["", *("good" if relevant else "bad" for _, relevant, _ in results)]
    shown = [GalleryImage(*p[:2], mark=p[2]) for p in zip(images, labels, marks, strict=True)]
    title = " · ".join(filter(None, (example.cls, f"AP {example.ap:.3f}", cards[0].name)))
    return title, shown
