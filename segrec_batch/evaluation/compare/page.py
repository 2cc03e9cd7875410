"""What the page of a comparison shows."""

from collections.abc import Iterator, Mapping, Sequence

from segrec_batch.evaluation.compare.differences import Difference
from segrec_batch.evaluation.compare.reports import Compared
from segrec_batch.evaluation.items import Plot, Section, Table, Text
from segrec_batch.evaluation.plots import dot_plot
from segrec_batch.evaluation.statistics import Estimate, Key

HEADLINES, PLOTTED, ALL = 30, 12, 200

Row = list[Estimate | str]
Found = Mapping[str, Sequence[Difference]]


def sections(reports: Sequence[Compared], shared: Sequence[Key], found: Found) -> list[Section]:
    """The whole page. found: the differences to the first report, by name of the other."""
    parts = [Section("What is compared", [_sources(reports), *_unshared(reports, shared)])]
    base = reports[0].name
    for name, differences in found.items():
        parts.append(Section(f"{name} − {base}", [*_differences(base, name, differences)]))
    return parts


def _sources(reports: Sequence[Compared]) -> Table:
    told = [{"report": r.uri, **dict(r.provenance.items())} for r in reports]
    names = dict.fromkeys(name for items in told for name in items)
    rows: list[Row] = [[name, *(items.get(name, "") for items in told)] for name in names]
    return Table("The reports", ("", *(r.name for r in reports)), rows)


def _unshared(reports: Sequence[Compared], shared: Sequence[Key]) -> Iterator[Table]:
    rows: list[Row] = []
    for report in reports:
        alone = [str(k) for k in report.estimates if k not in set(shared)]
        if alone:
            more = f"; and {len(alone) - HEADLINES} more" if len(alone) > HEADLINES else ""
            rows.append([report.name, str(len(alone)), "; ".join(alone[:HEADLINES]) + more])
    if rows:
        yield Table("Figures that not all have, left out", ("report", "figures", ""), rows)


_ABOUT = (
    "Clear differences, whose 95 % interval excludes 0, come first, then the largest. Of figures "
    "that do not differ about one in twenty looks clear by chance. Paired: both reports judge the "
    "same units, and the same ones are drawn. Independent: they do not, or not in this order."
)


def _differences(
    base: str, name: str, differences: Sequence[Difference]
) -> Iterator[Text | Table | Plot]:
    yield Text(_ABOUT)
    shares = [d for d in differences if all(_is_share(e) for e in (d.base, d.other))][:PLOTTED]
    if shares:
        rows = {str(d.key): {base: d.base, name: d.other} for d in shares}
        about = "; ".join(f"{d.key}: {_value(d.base)} and {_value(d.other)}" for d in shares)
        caption = f"{base} and {name}, figures from 0 to 1, with 95 % intervals"
        yield Plot(caption, dot_plot(rows, "value"), about)
    first, rest = differences[:HEADLINES], differences[HEADLINES:ALL]
    yield _table(base, name, first, f"{name} less {base}")
    if rest:
        left = len(differences) - ALL
        more = f"; metrics.json has {left} more" if left > 0 else ""
        yield _table(base, name, rest, f"{name} less {base}, the others{more}")


def _table(base: str, name: str, differences: Sequence[Difference], caption: str) -> Table:
    rows: list[Row] = [
        [str(d.key), d.base, d.other, d.estimate, _mark(d), d.how] for d in differences
    ]
    header = ("figure", base, name, f"{name} − {base}", "clear", "interval")
    return Table(caption, header, rows)


def _mark(d: Difference) -> str:
    if not d.clear or d.estimate.value is None:
        return "–"
    return "▲ more" if d.estimate.value > 0 else "▼ less"


def _is_share(estimate: Estimate) -> bool:
    return estimate.value is not None and 0 <= estimate.value <= 1


def _value(estimate: Estimate) -> str:
    return f"{estimate.value:.3f}"
