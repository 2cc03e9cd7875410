"""Queries to look at: the best and the worst, with what they found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segrec_batch import storage
from segrec_batch.errors import InputError
from segrec_batch.evaluate.report import Gallery, Picture
from segrec_batch.evaluate.retrieval.conditions import NONE
from segrec_batch.evaluate.retrieval.measures import average_precision
from segrec_batch.evaluate.retrieval.rankings import rankings, taking_part
from segrec_batch.query.card import Card
from segrec_batch.query.thumbnail import thumbnail

SHOWN = 8
_BOX = 240, 240  # pixels


@dataclass(frozen=True)
class Example:
    """A query without a filter: its URI, class and average precision, and what a method found first
    for it, each with URI, whether it is relevant, and score.
    """

    query: str
    cls: str
    ap: float
    method: str
    results: Sequence[tuple[str, bool, float]]


def best_and_worst(counts: pa.Table, method: str, n: int = 3) -> tuple[list[str], list[str]]:
    """The n queries (image_id) of greatest and those of least average precision without a filter,
    none in both; of equals the first by name. Raises InputError if the method is not in the counts.
    """
    found = rankings(counts)
    part = taking_part(found)
    chosen = [r for r in found if (r.method, r.setting) == (method, NONE)]
    if not chosen:
        raise InputError(f"{method} was not judged without a filter")
    queries = np.array(chosen[0].queries)[part]
    ap = average_precision(chosen[0])[part]
    best = queries[np.argsort(-ap, kind="stable")][:n].tolist()
    worst = [q for q in queries[np.argsort(ap, kind="stable")].tolist() if q not in best]
    return best, worst[:n]


def galleries(examples: Sequence[Example]) -> list[Gallery]:
    """One for each method: the query, then the results, those that are relevant marked."""
    methods = dict.fromkeys(e.method for e in examples)
    caption = "{}: queries and what they found, by average precision"
    return [
        Gallery(caption.format(m), [_strip(e) for e in _by_ap(examples) if e.method == m])
        for m in methods
    ]


def _by_ap(examples: Sequence[Example]) -> list[Example]:
    return sorted(examples, key=lambda e: (-e.ap, e.query))


def _strip(example: Example) -> tuple[str, list[Picture]]:
    results = example.results[:SHOWN]
    uris = [example.query, *(uri for uri, *_ in results)]
    cards = [
        Card(uri, data if isinstance(data, bytes) else None, b"", {}, None)
        for uri, data in zip(uris, storage.read_many(uris), strict=True)
    ]
    pictures = [thumbnail(card, (), _BOX).picture for card in cards]
    labels = ["query", *(f"{i} · {score:.3f}" for i, (*_, score) in enumerate(results, start=1))]
    marks = ["", *("good" if relevant else "bad" for _, relevant, _ in results)]
    shown = [Picture(*p[:2], mark=p[2]) for p in zip(pictures, labels, marks, strict=True)]
    title = " · ".join(filter(None, (example.cls, f"AP {example.ap:.3f}", cards[0].name)))
    return title, shown
