"""The retrieval report: a page and metric values that follow from the counts of a run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.items import Gallery, GalleryImage, Lead, Section
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.retrieval import sections
from segrec_batch.evaluation.retrieval.counts import Floats, evaluated_queries, read_rankings
from segrec_batch.evaluation.retrieval.latency import Latency, latency_section
from segrec_batch.evaluation.retrieval.measures import (
    LEVELS,
    average_precision,
    interpolated_precision,
)
from segrec_batch.evaluation.retrieval.results import Comparison, Results, compare_methods
from segrec_batch.evaluation.retrieval.run import (
    RetrievalOptions,
    RetrievalRun,
    first_hits,
    run_retrieval,
)
from segrec_batch.evaluation.retrieval.settings import PLAIN
from segrec_batch.evaluation.statistics import Estimate
from segrec_batch.index.history import choose_roots
from segrec_batch.sheets.card import Card
from segrec_batch.sheets.thumbnail import ThumbnailMaker
from segrec_batch.sources.roots import ImageRoots, fetch_images

log = logging.getLogger(__name__)

RESULTS = 8
"""Number of results of an example."""
_BOX = 240, 240  # pixels
_CHANCE = 0.05  # p from which a difference may be chance
_TIES = "of equal scores the lower image_id, of equal mask IoU the order before"
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Example:
    """A query without a filter, with its first results by a method.

    Attributes:
        query: URI.
        cls: class of the query, "" for none.
        ap: average precision.
        results: URI, relevance and score of each.
        roots: folders below which images are fetched.
    """

    query: str
    cls: str
    ap: float
    method: str
    results: Sequence[tuple[str, bool, float]]
    roots: ImageRoots


def retrieval_report(options: RetrievalOptions) -> Report:
    """Evaluate the methods of an index. Raises SegrecError."""
    run = run_retrieval(options)
    provenance = Provenance(
        kind="retrieval",
        data=f"{run.truth.fingerprint}, {run.queries:,} queries among {len(run.images):,} images",
        ties=_TIES,
        seed=options.seed,
        model_id=run.model_id,
        weights=run.weights,
        index=run.index,
        version=run.version,
    )
    report = build_report(
        run.counts,
        provenance,
        run.truth.description,
        examples=_examples(run),
        latency=run.latencies,
        notice=run.notice,
    )
    return replace(report, details={**report.details, "labels": run.truth.details})


def build_report(
    counts: pa.Table,
    provenance: Provenance,
    truth: str,
    *,
    examples: Sequence[Example] = (),
    latency: Sequence[Latency] = (),
    not_run: Mapping[str, str] = _NOTHING,
    notice: str | None = None,
) -> Report:
    """Return the report of some counts.

    Args:
        counts: table of COUNTS.
        provenance: of the counts.
        truth: a sentence about the ground truth.
        examples: queries whose images are read and shown.
        latency: of the methods that SQL has.
        not_run: reasons by method.
        notice: a warning.

    Raises:
        InputError: as `Results.of`.
        StorageError: for images that cannot be read.
    """
    results = Results.of(counts, provenance.seed)
    compared = compare_methods(results.evaluation, results.methods, provenance.seed)
    curves = {
        r.method: np.nanmean(interpolated_precision(r), axis=0)
        for r in results.rankings
        if r.method in results.methods
    }
    parts = [
        sections.metrics(results, truth),
        sections.curves(results, curves),
        sections.filters(results),
        sections.query_kept(results),
        sections.feedback(results),
        sections.classes(results),
        sections.components(results),
        sections.significance(results, compared),
        latency_section(latency),
        Section("Best and worst queries", galleries(examples)) if examples else None,
    ]
    return Report(
        title="Retrieval",
        provenance=provenance,
        estimates=results.estimates,
        counts=counts,
        sections=[part for part in parts if part],
        lead=_lead(results, compared),
        details=_details(results, truth, compared, curves, latency),
        not_run=not_run,
        notice=notice,
    )


def _lead(r: Results, compared: Sequence[Comparison]) -> Lead:
    """Return the best method, its metrics, and its lead over the second."""
    best = r.ranked[0]
    numbers: list[tuple[str, Estimate | str, str]] = [
        ("mAP", r.figures.get(**sections.MAP, method=best), f"mean average precision of {best}"),
        ("precision@10", r.figures.get(**sections.P10, method=best), "of its first 10 results"),
    ]
    answer = f"{best} ranks best by mAP."
    for c in compared:
        if {c.a, c.b} == set(r.ranked[:2]):
            p = f"in mAP; p = {c.p_holm:.4f}, corrected for {len(compared)} pairs"
            second, difference = r.ranked[1], c.difference if c.a == best else c.opposite
            numbers.append((f"lead over {second}", difference, p))
            if c.p_holm >= _CHANCE:
                answer = f"{best} has the greatest mAP, but its lead over {second} may be chance."
    rows = {method: r.rows[method] for method in r.ranked}
    text = "mAP of each method with its interval, the best first."
    plot = r.figures.dot_plot("mAP, the best first", "mAP", rows, {"mAP": sections.MAP}, text)
    return Lead("Which method ranks best?", answer, numbers, plot)


def _details(
    results: Results,
    truth: str,
    compared: Sequence[Comparison],
    curves: Mapping[str, Floats],
    latency: Sequence[Latency],
) -> dict[str, Any]:
    pairs = [asdict(c) for c in compared]
    for pair in pairs:
        del pair["difference"]["key"]
    return {
        "truth": truth,
        "queries": {"all": len(results.evaluation.units), "without_relevant": results.outside},
        "curves": {
            "recall": LEVELS.tolist(),
            "precision": {method: curve.tolist() for method, curve in curves.items()},
        },
        "significance": pairs,
        "latency": [asdict(times) for times in latency],
    }


def _examples(run: RetrievalRun) -> list[Example]:
    """Return the best and the worst queries of the first method."""
    method = run.options.methods[0]
    ap = average_precisions(run.counts, method)
    ids = [query for some in best_and_worst(ap) for query in some]
    hits = first_hits(run, method, ids, RESULTS)
    rows = run.images.rows(pa.array(ids, pa.string()))
    roots = choose_roots(run.index, run.options.images_roots)
    if not roots.uris:
        log.info("%s does not name its images: --images-root URI shows them", run.index)
    return [
        Example(
            run.images.uris[int(row)].as_py(),
            run.truth.class_name(int(row)),
            ap[query],
            method,
            [(hit.uri, hit.is_relevant, hit.score) for hit in hits[query]],
            roots,
        )
        for query, row in zip(ids, rows, strict=True)
    ]


def average_precisions(counts: pa.Table, method: str) -> dict[str, float]:
    """Return the AP of each evaluated query, by image_id, without a filter.

    Raises:
        InputError: if the method is not in the counts.
    """
    rankings = read_rankings(counts)
    part = evaluated_queries(rankings)
    for r in rankings:
        if (r.method, r.setting) == (method, PLAIN):
            ap = average_precision(r)
            return {
                q: float(a) for q, a, counted in zip(r.queries, ap, part, strict=True) if counted
            }
    raise InputError(f"{method} has no rankings without a filter")


def best_and_worst(ap: Mapping[str, float], n: int = 3) -> tuple[list[str], list[str]]:
    """Return the n queries of greatest and those of least AP, none in both; ties go by name."""
    best = sorted(ap, key=lambda q: (-ap[q], q))[:n]
    worst = [q for q in sorted(ap, key=lambda q: (ap[q], q)) if q not in best]
    return best, worst[:n]


def galleries(examples: Sequence[Example]) -> list[Gallery]:
    """Return a gallery for each method: queries by AP, each with its marked results."""
    maker = ThumbnailMaker((), _BOX)
    by_ap = sorted(examples, key=lambda e: (-e.ap, e.query))
    return [
        Gallery(
            f"{method}: queries and their first results, by average precision",
            [_strip(e, maker) for e in by_ap if e.method == method],
        )
        for method in dict.fromkeys(e.method for e in examples)
    ]


def _strip(example: Example, maker: ThumbnailMaker) -> tuple[str, list[GalleryImage]]:
    results = example.results[:RESULTS]
    uris = [example.query, *(uri for uri, *_ in results)]
    cards = [
        Card(uri, data if isinstance(data, bytes) else None, b"", {}, None)
        for uri, data in zip(uris, fetch_images(uris, example.roots), strict=True)
    ]
    labels = ["query", *(f"{i} · {score:.3f}" for i, (*_, score) in enumerate(results, start=1))]
    marks = ["", *("good" if is_relevant else "bad" for _, is_relevant, _ in results)]
    images = [
        GalleryImage(maker.make(card).image, label, mark=mark)
        for card, label, mark in zip(cards, labels, marks, strict=True)
    ]
    title = " · ".join(filter(None, (example.cls, f"AP {example.ap:.3f}", cards[0].name)))
    return title, images
