"""The retrieval report: a page and metric values that follow from the counts of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from segrec_batch.evaluation.items import Lead, Section
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.retrieval import sections
from segrec_batch.evaluation.retrieval.examples import Example, choose_examples, gallery
from segrec_batch.evaluation.retrieval.latency import Latency, latency_section
from segrec_batch.evaluation.retrieval.measures import LEVELS
from segrec_batch.evaluation.retrieval.results import Results
from segrec_batch.evaluation.retrieval.run import RetrievalOptions, run_retrieval
from segrec_batch.evaluation.statistics import Estimate, Key, contrast

_CHANCE = 0.05  # p from which a difference may be chance
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def retrieval_report(options: RetrievalOptions) -> Report:
    """Evaluate the methods of an index. Raises SegrecError."""
    run = run_retrieval(options)
    return build_report(
        run.counts,
        run.provenance,
        run.truth.description,
        labels=run.truth.details,
        examples=choose_examples(run),
        latency=run.latencies,
        notice=run.notice,
    )


def build_report(
    counts: pa.Table,
    provenance: Provenance,
    truth: str,
    *,
    labels: Mapping[str, int] = _NOTHING,
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
        labels: numbers of images with and without a label, and the like.
        examples: queries whose images are read and shown.
        latency: of the methods that SQL has.
        not_run: reasons by method.
        notice: a warning.

    Raises:
        InputError: as `Results.of`.
        StorageError: for images that cannot be read.
    """
    results = Results.of(counts, provenance.seed)
    parts = [
        sections.metrics(results, truth),
        sections.curves(results),
        sections.filters(results),
        sections.query_kept(results),
        sections.feedback(results),
        sections.classes(results),
        sections.components(results),
        sections.significance(results),
        latency_section(latency),
        Section("Best and worst queries", [gallery(examples)]) if examples else None,
    ]
    return Report(
        title="Retrieval",
        provenance=provenance,
        estimates=results.estimates,
        counts=counts,
        sections=[part for part in parts if part],
        lead=_lead(results),
        details={
            "truth": truth,
            **_details(results),
            "latency": [asdict(times) for times in latency],
            **({"labels": labels} if labels else {}),
        },
        not_run=not_run,
        notice=notice,
    )


def _lead(r: Results) -> Lead:
    """Return the best method, its metrics, and its lead over the second."""
    best, *others = r.ranked
    numbers: list[tuple[str, Estimate | str, str]] = [
        ("mAP", r.figures.get(**sections.MAP, method=best), f"mean average precision of {best}"),
        ("precision@10", r.figures.get(**sections.P10, method=best), "of its first 10 results"),
    ]
    answer = f"{best} ranks best by mAP."
    for second in others[:1]:
        lead = {Key("lead"): (Key("map", best), Key("map", second))}
        (p,) = (c.p_holm for c in r.comparisons if {c.a, c.b} == {best, second})
        text = f"in mAP; p = {p:.4f}, corrected for {len(r.comparisons)} pairs"
        numbers += [
            (f"lead over {second}", e, text) for e in contrast(r.evaluation, lead, seed=r.seed)
        ]
        if p >= _CHANCE:
            answer = f"{best} has the greatest mAP, but its lead over {second} may be chance."
    rows = {method: r.rows[method] for method in r.ranked}
    text = "mAP of each method with its interval, the best first."
    plot = r.figures.dot_plot("mAP, the best first", "mAP", rows, {"mAP": sections.MAP}, text)
    return Lead("Which method ranks best?", answer, numbers, plot)


def _details(r: Results) -> dict[str, Any]:
    """Return the numbers of queries, the curves and the comparisons of methods for programs."""
    pairs = [asdict(c) for c in r.comparisons]
    for pair in pairs:
        del pair["difference"]["key"]
    return {
        "queries": {"all": len(r.evaluation.units), "without_relevant": r.outside},
        "curves": {
            "recall": LEVELS.tolist(),
            "precision": {method: curve.tolist() for method, curve in r.curves.items()},
        },
        "significance": pairs,
    }
