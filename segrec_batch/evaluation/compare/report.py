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
_LEAD_PLOTTED = 6  # differences in the plot of the first screen
_MARKS = {1: "▲ more", 0: "–", -1: "▼ less"}
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
    not_shared = {r.name: [str(k) for k in r.estimates if k not in set(shared)] for r in reports}
    methods = settings.methods or [""] * len(reports)
    return Report(
        title=f"Comparison of {base.provenance.kind}: {', '.join(r.name for r in reports)}",
        provenance=_provenance(reports, settings.seed),
        estimates=[_named(d, f"{name} − {base.name}") for name, of in results.items() for d in of],
        counts=_counts(reports),
        sections=[_sources(reports, not_shared), *_differences(base.name, results)],
        lead=_lead(base.name, *next(iter(results.items()))),
        details={
            "reports": {
                r.name: {"uri": r.uri, "method": m, **asdict(r.provenance)}
                for r, m in zip(reports, methods, strict=True)
            },
            "not_shared": not_shared,
        },
        notice=" ".join(_warnings(reports, [d for of in results.values() for d in of])) or None,
    )


def _named(d: Difference, difference: str) -> Estimate:
    """Return the estimate under a key whose setting names the two reports."""
    key = d.estimate.key
    setting = f"{key.setting}; {difference}" if key.setting else difference
    return replace(d.estimate, key=replace(key, setting=setting))


def _warnings(reports: Sequence[SavedReport], results: Sequence[Difference]) -> Iterator[str]:
    if len({r.provenance.data for r in reports}) > 1:
        data = "; ".join(f"{r.name}: {r.provenance.data}" for r in reports)
        yield f"Not the same data, so that differences are not of models alone: {data}."
    if without := [r.name for r in reports if r.counts is None]:
        yield (
            f"{', '.join(without)}: no counts.parquet beside metrics.json, so that differences "
            "have no intervals."
        )
    if any(d.interval == OTHER_VALUE for d in results):
        yield (
            "Some values do not follow from the counts beside them: another version of "
            "segrec_batch wrote them, or the files are of two reports."
        )


def _provenance(reports: Sequence[SavedReport], seed: int) -> Provenance:
    """Return what all reports have in common, and data and ties of each if they differ."""

    def common(field: str) -> str:
        values = {str(getattr(r.provenance, field)) for r in reports}
        return values.pop() if len(values) == 1 else ""

    def each(field: str) -> str:
        return "; ".join(f"{r.name}: {getattr(r.provenance, field)}" for r in reports)

    is_one_snapshot = common("index") and common("version")
    return Provenance(
        "compare",
        data=common("data") or each("data"),
        ties=common("ties") or each("ties"),
        seed=seed,
        model_id=common("model_id"),
        weights=common("weights"),
        index=common("index") if is_one_snapshot else "",
        version=reports[0].provenance.version if is_one_snapshot else None,
    )


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


def _lead(base: str, name: str, results: Sequence[Difference]) -> Lead:
    number = {sign: sum(d.sign == sign for d in results) for sign in _MARKS}
    answer = (
        f"Of {len(results):,} metric values {number[1] + number[-1]:,} differ clearly between "
        f"{base} and {name}; about one in twenty looks clear by chance."
    )
    numbers = [
        (f"Clearly higher in {name}", f"{number[1]:,}", "The 95 % interval is above 0"),
        (f"Clearly lower in {name}", f"{number[-1]:,}", "The 95 % interval is below 0"),
        ("No clear difference", f"{number[0]:,}", "With 0 in the interval, or no interval"),
    ]
    plot = _plot(base, name, results, _LEAD_PLOTTED)
    return Lead(f"How does {name} differ from {base}?", answer, numbers, plot)


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
        if i and (plot := _plot(base, name, of, PLOTTED)):  # the lead has that of the first
            items.append(plot)
        items.append(_table(base, name, of[:FIRST], f"{name} less {base}"))
        if rest := of[FIRST:ALL]:
            more = f"; metrics.json has {len(of) - ALL} more" if len(of) > ALL else ""
            items.append(_table(base, name, rest, f"{name} less {base}, continued{more}"))
        yield Section(f"{name} − {base}", items)


def _plot(base: str, name: str, results: Sequence[Difference], n: int) -> Plot | None:
    """Return the first n differences of shares, or None without any."""
    shares = [d for d in results if _is_share(d.base) and _is_share(d.other)]
    rows = {str(d.base.key): {base: d.base, name: d.other} for d in shares[:n]}
    caption = f"{base} and {name}: clear and large differences of values from 0 to 1"
    return dots(caption, "value", rows) if rows else None


def _is_share(estimate: Estimate) -> bool:
    return estimate.value is not None and 0 <= estimate.value <= 1


def _table(base: str, name: str, results: Sequence[Difference], caption: str) -> Table:
    rows: list[Row] = [
        [str(d.base.key), d.base, d.other, d.estimate, _MARKS[d.sign], d.interval] for d in results
    ]
    header = ("metric value", base, name, f"{name} − {base}", "clear", "interval")
    return Table(caption, header, rows)
