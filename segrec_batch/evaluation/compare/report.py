"""The comparison of reports: provenance side by side, metric values and their differences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.compare.reports import (
    OTHER_VALUE,
    Difference,
    Evaluator,
    SavedReport,
    Settings,
    differences,
    read_reports,
    shared_keys,
)
from segrec_batch.evaluation.figures import Row, dots
from segrec_batch.evaluation.items import Lead, Plot, Section, Table, Text
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.statistics import Estimate

REPORT = "report"  # column of counts.parquet with the name of the report
FIRST, PLOTTED, ALL = 30, 12, 200  # differences in the first table, in the plot, on the page
_ABOUT = (
    "Clear differences, whose 95 % interval excludes 0, come first, then the largest. Among values "
    "that do not differ about one in twenty looks clear by chance. Paired: both reports have the "
    "same units, which are resampled together. Independent: they have other units or another order."
)


def compare_report(settings: Settings, evaluators: Mapping[str, Evaluator]) -> Report:
    """Compare reports; `evaluators` has for each kind of report the function for its counts.

    counts.parquet holds the counts of all reports, with a first column `report`. Raises InputError
    for reports of different kinds or without a common value.
    """
    reports = read_reports(settings, evaluators)
    shared = shared_keys(reports)
    if not shared:
        raise InputError("the reports have no value in common; --method pairs methods by name")
    base, *others = reports
    results = {r.name: differences(base, r, shared, settings.seed) for r in others}
    common = set(shared)
    not_shared = {r.name: [str(k) for k in r.estimates if k not in common] for r in reports}
    methods = settings.methods or [""] * len(reports)
    return Report(
        title=f"Comparison of {base.provenance.kind}: {', '.join(r.name for r in reports)}",
        provenance=_provenance(reports, settings.seed),
        estimates=[_named(d, f"{name} − {base.name}") for name, of in results.items() for d in of],
        counts=_counts(reports),
        sections=[_sources(reports, not_shared), *_differences(base.name, results)],
        lead=_lead(base.name, results),
        details={
            "reports": {
                r.name: {"uri": r.uri, "method": m, **asdict(r.provenance)}
                for r, m in zip(reports, methods, strict=True)
            },
            "not_shared": not_shared,
        },
        notice=_notice(reports, [d for of in results.values() for d in of]) or None,
    )


def _named(d: Difference, difference: str) -> Estimate:
    """Return the estimate under a key whose setting names the two reports."""
    setting = "; ".join(filter(None, (d.key.setting, difference)))
    return replace(d.estimate, key=replace(d.key, setting=setting))


def _notice(reports: Sequence[SavedReport], results: Sequence[Difference]) -> str:
    parts = []
    if len({r.provenance.data for r in reports}) > 1:
        data = "; ".join(f"{r.name}: {r.provenance.data}" for r in reports)
        parts.append(f"Not the same data, so that differences are not of models alone: {data}.")
    if without := [r.name for r in reports if r.evaluations is None]:
        parts.append(
            f"{', '.join(without)}: no counts.parquet beside metrics.json, so that differences "
            "have no intervals."
        )
    if any(d.interval == OTHER_VALUE for d in results):
        parts.append(
            "Some values do not follow from the counts beside them: another version of "
            "segrec_batch wrote them, or the files are of two reports."
        )
    return " ".join(parts)


def _provenance(reports: Sequence[SavedReport], seed: int) -> Provenance:
    """Return the common provenance of all reports, and data and ties of each if they differ."""
    sources = {r.name: asdict(r.provenance) for r in reports}
    common = {
        field: values[0] if len(set(values)) == 1 else ""
        for field in ("model_id", "weights", "index", "data", "ties")
        if (values := [s[field] for s in sources.values()])
    }
    for field in ("data", "ties"):
        each = "; ".join(f"{name}: {s[field]}" for name, s in sources.items())
        common[field] = common[field] or each
    versions = {(s["index"], s["version"]) for s in sources.values()}
    index, version = versions.pop() if len(versions) == 1 else ("", None)
    return Provenance("compare", seed=seed, version=version, **{**common, "index": index})


def _counts(reports: Sequence[SavedReport]) -> pa.Table:
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


def _lead(base: str, results: Mapping[str, Sequence[Difference]]) -> Lead:
    name, first = next(iter(results.items()))
    clear = [d.estimate.value or 0 for d in first if d.is_clear]
    more, less = (sum(sign * value > 0 for value in clear) for sign in (1, -1))
    answer = (
        f"Of {len(first):,} metric values {len(clear):,} differ clearly between {base} and {name}; "
        f"about one in twenty looks clear by chance."
    )
    numbers = [
        (f"Clearly higher in {name}", f"{more:,}", "The 95 % interval is above 0"),
        (f"Clearly lower in {name}", f"{less:,}", "The 95 % interval is below 0"),
        (
            "No clear difference",
            f"{len(first) - len(clear):,}",
            "With 0 in the interval, or no interval",
        ),
    ]
    return Lead(
        f"How does {name} differ from {base}?", answer, numbers, _plot(base, name, first, 6)
    )


def _sources(reports: Sequence[SavedReport], not_shared: Mapping[str, Sequence[str]]) -> Section:
    """Return the section on the reports themselves and on values that not all have."""
    items = [{"report": r.uri, **dict(r.provenance.items())} for r in reports]
    names = dict.fromkeys(name for of in items for name in of)
    rows: list[Row] = [[name, *(of.get(name, "") for of in items)] for name in names]
    tables = [Table("The reports", ("", *(r.name for r in reports)), rows)]
    rows = []
    for name, keys in not_shared.items():
        more = f"; and {len(keys) - FIRST} more" if len(keys) > FIRST else ""
        if keys:
            rows.append([name, str(len(keys)), "; ".join(keys[:FIRST]) + more])
    if rows:
        tables.append(Table("Values that not all reports have", ("report", "values", ""), rows))
    return Section("Compared reports", tables)


def _differences(base: str, results: Mapping[str, Sequence[Difference]]) -> Iterator[Section]:
    for i, (name, of) in enumerate(results.items()):
        items: list[Text | Table | Plot] = [Text(_ABOUT)]
        if i and (plot := _plot(base, name, of)):  # the lead has that of the first
            items.append(plot)
        items.append(_table(base, name, of[:FIRST], f"{name} less {base}"))
        if rest := of[FIRST:ALL]:
            left = len(of) - ALL
            more = f"; metrics.json has {left} more" if left > 0 else ""
            items.append(_table(base, name, rest, f"{name} less {base}, continued{more}"))
        yield Section(f"{name} − {base}", items)


def _plot(base: str, name: str, results: Sequence[Difference], n: int = PLOTTED) -> Plot | None:
    shares = [d for d in results if _is_share(d.base) and _is_share(d.other)][:n]
    rows = {str(d.key): {base: d.base, name: d.other} for d in shares}
    caption = f"{base} and {name}: clear and large differences of values from 0 to 1"
    return dots(caption, "value", rows) if rows else None


def _table(base: str, name: str, results: Sequence[Difference], caption: str) -> Table:
    rows: list[Row] = [
        [str(d.key), d.base, d.other, d.estimate, _mark(d), d.interval] for d in results
    ]
    header = ("metric value", base, name, f"{name} − {base}", "clear", "interval")
    return Table(caption, header, rows)


def _mark(d: Difference) -> str:
    if not d.is_clear or d.estimate.value is None:
        return "–"
    return "▲ more" if d.estimate.value > 0 else "▼ less"


def _is_share(estimate: Estimate) -> bool:
    return estimate.value is not None and 0 <= estimate.value <= 1
