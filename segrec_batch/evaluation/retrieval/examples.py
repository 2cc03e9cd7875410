"""The best and the worst queries of a run, with their first results."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.items import Gallery, GalleryImage
from segrec_batch.evaluation.retrieval.counts import evaluated_queries, read_rankings
from segrec_batch.evaluation.retrieval.measures import average_precision
from segrec_batch.evaluation.retrieval.methods import score
from segrec_batch.evaluation.retrieval.ranking import rank_expanded
from segrec_batch.evaluation.retrieval.run import RetrievalRun
from segrec_batch.evaluation.retrieval.settings import PLAIN, Setting, candidates
from segrec_batch.index.history import choose_roots
from segrec_batch.search.similarity import rank_order
from segrec_batch.sheets.card import Card
from segrec_batch.sheets.thumbnail import ThumbnailMaker
from segrec_batch.sources.roots import ImageRoots, fetch_images

log = logging.getLogger(__name__)

RESULTS = 8
"""Number of results of an example."""
_BOX = 240, 240  # pixels


@dataclass(frozen=True)
class Hit:
    """A result of a query."""

    image_id: str
    uri: str
    is_relevant: bool
    score: float


@dataclass(frozen=True)
class Example:
    """A query without a filter, with its first results by a method.

    Attributes:
        query: URI.
        cls: class of the query, "" for none.
        ap: average precision.
        roots: folders below which images are fetched.
    """

    query: str
    cls: str
    ap: float
    method: str
    results: Sequence[Hit]
    roots: ImageRoots


def choose_examples(run: RetrievalRun) -> list[Example]:
    """Return the best and the worst queries of the first method."""
    method = run.options.methods[0]
    ap = average_precisions(run.counts, method)
    best, worst = best_and_worst(ap)
    queries, index = [*best, *worst], run.provenance.index
    rows = run.images.rows(pa.array(queries, pa.string())).tolist()
    hits = first_hits(run, method, queries, RESULTS)
    roots = choose_roots(index, run.options.images_roots)
    if not roots.uris:
        log.info("%s does not name its images: --images-root URI shows them", index)
    return [
        Example(
            run.images.uris[row].as_py(),
            run.truth.class_name(row),
            ap[query],
            method,
            hits[query],
            roots,
        )
        for query, row in zip(queries, rows, strict=True)
    ]


def average_precisions(counts: pa.Table, method: str) -> dict[str, float]:
    """Return the AP of each evaluated query, by image_id, without a filter.

    Raises:
        InputError: if the method is not in the counts.
    """
    rankings = read_rankings(counts)
    for r in rankings:
        if (r.method, r.setting) == (method, PLAIN):
            values = zip(r.queries, average_precision(r), evaluated_queries(rankings), strict=True)
            return {query: float(ap) for query, ap, is_evaluated in values if is_evaluated}
    raise InputError(f"{method} has no rankings without a filter")


def best_and_worst(ap: Mapping[str, float], n: int = 3) -> tuple[list[str], list[str]]:
    """Return the n queries of greatest and those of least AP, none in both; ties go by name."""
    best = sorted(ap, key=lambda q: (-ap[q], q))[:n]
    worst = [q for q in sorted(ap, key=lambda q: (ap[q], q)) if q not in best]
    return best, worst[:n]


def first_hits(
    run: RetrievalRun, method: str, queries: Sequence[str], k: int, setting: Setting = PLAIN
) -> dict[str, list[Hit]]:
    """Return the first k results of each query, by image_id, in the ranking that was counted."""
    images = run.images
    rows = images.rows(pa.array(queries, pa.string()))
    ((_, passes),) = candidates(rows, images, [setting])
    scores = score(method, rows, images)
    order = rank_order(scores.values)
    order, listed = rank_expanded(method, rows, run.images, scores, order, passes)
    relevant = run.truth.relevant(rows)
    return {
        query: [
            Hit(
                images.ids[j].as_py(),
                images.uris[j].as_py(),
                bool(relevant[i, j]),
                float(scores.values[i, j]),
            )
            for j in order[i][listed[i]][:k].tolist()
        ]
        for i, query in enumerate(queries)
    }


def gallery(examples: Sequence[Example]) -> Gallery:
    """Return the queries by AP, each with its marked results."""
    maker = ThumbnailMaker((), _BOX)
    by_ap = sorted(examples, key=lambda e: (-e.ap, e.query))
    return Gallery(
        f"{examples[0].method}: queries and their first results, by average precision",
        [_strip(example, maker) for example in by_ap],
    )


def _strip(example: Example, maker: ThumbnailMaker) -> tuple[str, list[GalleryImage]]:
    """Return the title of an example and its images."""
    uris = [example.query, *(hit.uri for hit in example.results)]
    cards = [
        Card(uri, data if isinstance(data, bytes) else None, b"", {}, None)
        for uri, data in zip(uris, fetch_images(uris, example.roots), strict=True)
    ]
    labels = ["query", *(f"{i} · {hit.score:.3f}" for i, hit in enumerate(example.results, 1))]
    marks = ["", *("good" if hit.is_relevant else "bad" for hit in example.results)]
    images = [
        GalleryImage(maker.make(card).image, label, mark=mark)
        for card, label, mark in zip(cards, labels, marks, strict=True)
    ]
    title = " · ".join(filter(None, (example.cls, f"AP {example.ap:.3f}", cards[0].name)))
    return title, images
