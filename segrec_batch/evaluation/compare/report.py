"""The comparison of reports: provenance side by side, figures and their differences."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.compare import page
from segrec_batch.evaluation.compare.differences import (
    NOT_THE_SAME,
    Difference,
    differences,
    shared_keys,
)
from segrec_batch.evaluation.compare.reports import Compared, Judge, Settings, read_reports
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.statistics import Estimate

REPORT = "report"  # the column of counts.parquet that names the report


def compare_report(settings: Settings, judges: Mapping[str, Judge]) -> Report:
    """Compare reports; `judges` has for each kind of report what judges its counts.

    counts.parquet holds the counts of all of them, with a column `report` before. Raises
    InputError for reports of two kinds or without a common figure.
    """
    reports = read_reports(settings, judges)
    shared = shared_keys(reports)
    if not shared:
        raise InputError("the reports have no figure in common; --method pairs methods by name")
    first, *others = reports
    found = {r.name: differences(first, r, shared, settings.seed) for r in others}
    return Report(
        title=f"{first.provenance.kind}: {', '.join(r.name for r in reports)}",
        provenance=_provenance(reports, settings.seed),
        estimates=[_named(d, first.name, name) for name, of in found.items() for d in of],
        counts=_counts(reports),
        sections=page.sections(reports, shared, found),
        details={
            "reports": {
                r.name: {"uri": r.uri, "method": m, **asdict(r.provenance)}
                for r, m in zip(reports, settings.methods or [""] * len(reports), strict=True)
            },
            "not_shared": {
                r.name: [str(k) for k in r.estimates if k not in set(shared)] for r in reports
            },
        },
        notice=_notice(reports, [d for of in found.values() for d in of]) or None,
    )


def _named(d: Difference, base: str, name: str) -> Estimate:
    """The difference under a key whose setting names the two."""
    setting = "; ".join(filter(None, (d.key.setting, f"{name} − {base}")))
    return replace(d.estimate, key=replace(d.key, setting=setting))


def _notice(reports: Sequence[Compared], found: Sequence[Difference]) -> str:
    parts = []
    if len({r.provenance.data for r in reports}) > 1:
        told = "; ".join(f"{r.name}: {r.provenance.data}" for r in reports)
        parts.append(f"Not the same data, so that differences are not of models alone: {told}.")
    without = [r.name for r in reports if r.judged is None]
    if without:
        parts.append(
            f"{', '.join(without)}: no counts.parquet beside metrics.json, so that differences "
            "have no intervals."
        )
    if any(d.how == NOT_THE_SAME for d in found):
        parts.append(
            "Some figures do not follow from the counts beside them: another version of "
            "segrec_batch made them, or the files are of two reports."
        )
    return " ".join(parts)


def _provenance(reports: Sequence[Compared], seed: int) -> Provenance:
    """What all reports have in common; data and ties of each where they differ."""
    sources = {r.name: r.provenance for r in reports}

    def of_each(values: Mapping[str, str]) -> str:
        same = len(set(values.values())) == 1
        texts = (f"{n}: {v}" for n, v in values.items())
        return next(iter(values.values())) if same else "; ".join(texts)

    def common(values: Sequence[str]) -> str:
        return values[0] if len(set(values)) == 1 else ""

    versions = {(p.index, p.version) for p in sources.values()}
    index, version = versions.pop() if len(versions) == 1 else ("", None)
    return Provenance(
        kind="compare",
        data=of_each({n: p.data for n, p in sources.items()}),
        ties=of_each({n: p.ties for n, p in sources.items()}),
        seed=seed,
        model_id=common([p.model_id for p in sources.values()]),
        weights=common([p.weights for p in sources.values()]),
        index=index,
        version=version,
    )


def _counts(reports: Sequence[Compared]) -> pa.Table:
    tables = [
        r.counts.add_column(0, REPORT, pa.array([r.name] * len(r.counts), pa.string()))
        for r in reports
        if r.counts is not None
    ]
    if not tables:
        return pa.table({REPORT: pa.array([], pa.string())})
    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowInvalid as error:
        raise InputError(f"the counts of these reports are of two formats: {error}") from error
