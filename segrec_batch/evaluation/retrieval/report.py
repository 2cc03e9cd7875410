"""The retrieval report, from its counts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.retrieval import dimensions, filters, rounds, sections
from segrec_batch.evaluation.retrieval.examples import (
    SHOWN,
    Example,
    average_precisions,
    best_and_worst,
)
from segrec_batch.evaluation.retrieval.findings import Findings
from segrec_batch.evaluation.retrieval.latency import Latency
from segrec_batch.evaluation.retrieval.measures import LEVELS, interpolated_precision
from segrec_batch.evaluation.retrieval.rankings import Floats
from segrec_batch.evaluation.retrieval.run import Retrieval, Run, first, retrieve
from segrec_batch.evaluation.retrieval.significance import Comparison, compare
from segrec_batch.index.snapshot import choose_roots

log = logging.getLogger(__name__)

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def retrieval_report(asked: Retrieval) -> Report:
    """Run methods over an index and say how well they answer. Raises SegrecError."""
    run = retrieve(asked)
    ties = "of equal scores the lower image_id, of equal mask IoU the order before"
    provenance = Provenance(
        kind="retrieval",
        data=f"{run.truth.fingerprint}, {run.queries:,} queries among {len(run.images):,} images",
        ties=ties,
        seed=asked.seed,
        model_id=run.model_id,
        weights=run.weights,
        index=run.index,
        version=run.version,
    )
    report = render(
        run.counts,
        provenance,
        run.truth.words,
        examples=_examples(run),
        latency=run.latencies,
        notice=run.notice,
    )
    return replace(report, details={**report.details, "labels": run.truth.details})


def _examples(run: Run) -> list[Example]:
    """The best and the worst queries of the first method."""
    method = run.asked.methods[0]
    ap = average_precisions(run.counts, method)
    ids = [query for some in best_and_worst(ap) for query in some]
    found = first(run, method, ids, SHOWN)
    rows = run.images.rows(pa.array(ids, pa.string()))
    roots = choose_roots(run.index, run.asked.images_roots)
    if not roots.uris:
        log.info(f"{run.index} does not say what it was made from: --images-root URI shows images")
    return [
        Example(
            run.images.uris[int(row)].as_py(),
            run.truth.name(int(row)),
            ap[query],
            method,
            [(hit.uri, hit.relevant, hit.score) for hit in found[query]],
            roots,
        )
        for query, row in zip(ids, rows, strict=True)
    ]


def render(
    counts: pa.Table,
    provenance: Provenance,
    truth: str,
    *,
    examples: Sequence[Example] = (),
    latency: Sequence[Latency] = (),
    not_run: Mapping[str, str] = _NOTHING,
    notice: str | None = None,
) -> Report:
    """All that the counts say, and what else was seen in the run.

    truth: in a sentence, what is relevant to a query. examples: see `best_and_worst`; their
    images are read here. latency: of what SQL can answer. not_run: by method. Raises InputError
    for what is not a counts table or judges nothing, StorageError where images cannot be had.
    """
    found = Findings.of(counts, provenance.seed)
    compared = compare(found.judged, found.methods, provenance.seed)
    curves = _curves(found)
    parts = [
        sections.overview(found, truth, provenance.ties),
        sections.curves(found, curves),
        filters.filters(found),
        filters.query_kept(found),
        rounds.feedback(found),
        sections.classes(found),
        dimensions.dimensions(found),
        sections.significance(found, compared),
        sections.latencies(latency),
        sections.examples(examples),
    ]
    return Report(
        title="How well the index answers",
        provenance=provenance,
        estimates=found.estimates,
        counts=counts,
        sections=[part for part in parts if part],
        details=_details(found, truth, compared, curves, latency),
        not_run=not_run,
        notice=notice,
    )


def _curves(found: Findings) -> dict[str, Floats]:
    """Precision at `LEVELS` of recall, the mean over the queries that take part."""
    return {
        r.method: np.nanmean(interpolated_precision(r), axis=0)
        for r in found.unfiltered
        if r.method in found.methods
    }


def _details(
    found: Findings,
    truth: str,
    compared: Sequence[Comparison],
    curves: Mapping[str, Floats],
    latency: Sequence[Latency],
) -> dict[str, Any]:
    return {
        "truth": truth,
        "queries": {"all": len(found.judged.units), "without_relevant": found.outside},
        "curves": {
            "recall": LEVELS.tolist(),
            "precision": {method: curve.tolist() for method, curve in curves.items()},
        },
        "significance": [_pair(c) for c in compared],
        "latency": [asdict(times) for times in latency],
    }


def _pair(c: Comparison) -> dict[str, Any]:
    found = asdict(c.difference)
    del found["key"]
    return {"a": c.a, "b": c.b, "difference": found, "p": c.p, "p_holm": c.p_holm}
