"""The sections of the retrieval report; each is None if the counts have nothing for it."""

from collections.abc import Mapping, Sequence

import numpy as np

from segrec_batch.evaluation.items import Plot, Section, Table, Text
from segrec_batch.evaluation.plots import SERIES, Line, dot_plot, heat_map, line_plot
from segrec_batch.evaluation.retrieval.conditions import NONE, named
from segrec_batch.evaluation.retrieval.examples import Example, galleries
from segrec_batch.evaluation.retrieval.findings import Columns, Findings
from segrec_batch.evaluation.retrieval.latency import Latency
from segrec_batch.evaluation.retrieval.measures import CUTOFFS, LEVELS
from segrec_batch.evaluation.retrieval.rankings import Floats
from segrec_batch.evaluation.retrieval.significance import Comparison
from segrec_batch.evaluation.statistics import Estimate

_MAIN: Columns = [
    ("mAP", "map", 0),
    ("mAP, trapezoids", "map_trapezoid", 0),
    ("precision@1", "precision", 1),
    ("precision@10", "precision", 10),
    ("recall@10", "recall", 10),
    ("recall@100", "recall", 100),
    ("R-precision", "r_precision", 0),
]
_GAINS: Columns = [("nDCG@10", "ndcg", 10), ("nDCG@100", "ndcg", 100)]
_RATES: Columns = [
    *((f"{name.upper()}@{k}", name, k) for name in ("arr", "fiar", "firr") for k in (10, 20, 100)),
    ("relevant lost", "relevant_lost", 0),
]
_DEFINITIONS = (
    "The candidates of a query are ranked by score. Among the first k, A are relevant and B are "
    "not, C relevant ones are missing, and R = A + C. Precision@k = A / k, also where fewer than "
    "k were retrieved; recall@k = A / R; R-precision = precision@R. Average precision is "
    "AP = 1/R Σ i / rank of the i-th relevant image, where one that was not retrieved adds 0 "
    "(trec_eval); mAP is its mean over the queries. With trapezoids it is the area under the "
    "precision-recall curve, as the revisited Oxford and Paris benchmark computes it."
)
_RATE_DEFINITIONS = (
    "False image acceptation ratio: FIAR = B / (A + B), of what was really retrieved. False image "
    "rejection ratio: FIRR = C / (A + C) = 1 − recall. Average retrieval rate: ARR = Σ A / Σ R, "
    "sums over all queries; it is the mean recall where all classes have one size. All at k. "
    "Relevant lost: the share of a query's relevant candidates that a method has no score for, as "
    "there is no vector, region or common category to compare."
)
_GAIN_DEFINITION = (
    "nDCG@k = DCG / greatest possible DCG, with DCG = Σ gain / log2(1 + rank) over the first k; "
    "the gain of an image is how far its mask agrees with that of the query."
)


def overview(f: Findings, truth: str, ties: str) -> Section:
    """What is judged and how, and the main figures."""
    queries = len(f.judged.units)
    judged = (
        f"{queries - f.outside:,} queries are judged; unless it says so, without a filter and each "
        f"left out of its own candidates. Ties: {ties}."
    )
    if f.outside:
        judged += f" {f.outside:,} more have no relevant candidate under some setting."
    measured = any(e.value is not None for e in f.estimates if e.key.name == "ndcg")
    definitions = f"{_DEFINITIONS} {_GAIN_DEFINITION}" if measured else _DEFINITIONS
    return Section(
        "Overview",
        [
            Text(f"{truth} {judged}"),
            methods_table(f, "Methods", [*_MAIN, *_GAINS] if measured else _MAIN),
            _best_first(f),
            Text(definitions),
            methods_table(f, "Retrieval, false acceptation and false rejection", _RATES),
            Text(_RATE_DEFINITIONS),
        ],
    )


def methods_table(f: Findings, caption: str, columns: Columns) -> Table:
    """A row for each method without a filter."""
    header = ["method", *(name for name, *_ in columns)]
    rows = [[m, *(f.cell(name, m, k=k) for _, name, k in columns)] for m in f.methods]
    return Table(caption, header, rows)


def _best_first(f: Findings) -> Plot:
    rows = {m: {"mAP": e} for m in f.ranked if (e := f.figure("map", m))}
    text = "mAP of each method with its interval, the best first."
    return Plot("mAP, the best first", dot_plot(rows, "mAP"), text)


def curves(f: Findings, precisions: Mapping[str, Floats]) -> Section:
    """Precision over recall, and over the length of the list; `precisions` at `LEVELS`."""
    lines = {m: Line(LEVELS, precisions[m]) for m in f.drawn}
    few = len(f.drawn) < len(f.methods)
    said = [Text(f"Of the {len(f.drawn)} methods of greatest mAP; the tables have all.")] * few
    return Section(
        "Curves",
        [
            *said,
            Plot(
                "Precision at each recall, mean over queries",
                line_plot(lines, "recall", "interpolated precision"),
                "Interpolated precision over recall, a curve for each method.",
            ),
            _over_k(f, "precision", "Precision of the first k"),
            _over_k(f, "arr", "Average retrieval rate of the first k"),
        ],
    )


def _over_k(f: Findings, name: str, caption: str) -> Plot:
    lines = {}
    for m in f.drawn:
        points = np.hstack([f.values(name, m, [NONE], k) for k in CUTOFFS])
        lines[m] = Line(CUTOFFS, *points)
    label = {"arr": "ARR@k"}.get(name, f"{name}@k")
    text = f"{caption}, k from 1 to 100, a curve for each method with its 95 % band."
    return Plot(caption, line_plot(lines, "k", label, log=True, y_range=None), text)


def classes(f: Findings) -> Section | None:
    """mAP of the queries of each class."""
    if not f.classes:
        return None
    found = [[f.figure("map", m, cls=c) for m in f.methods] for c in f.classes]
    rows = [
        [c, str(max(e.units for e in row if e)), *(e or "not run" for e in row)]
        for c, row in zip(f.classes, found, strict=True)
    ]
    caption = "mAP by class of the query"
    values = np.array([[e.value if e else None for e in row] for row in found], float)
    table = Table(caption, ["class", "queries", *f.methods], rows)
    return Section("Classes", [_class_map(f, caption, values), table])


def _class_map(f: Findings, caption: str, values: Floats) -> Plot:
    """Of the classes and the methods what there is more of goes down the page."""
    sides = ("class", f.classes), ("method", f.methods)
    if len(f.methods) > len(f.classes):
        values, sides = values.T, sides[::-1]
    (y, rows), (x, columns) = sides
    text = f"mAP, a row for each {y}, a column for each {x}; the table has the figures."
    return Plot(caption, heat_map(values, rows, columns, y, x), text)


def significance(f: Findings, found: Sequence[Comparison]) -> Section | None:
    """Which methods differ; of many methods the best from which."""
    if not found:
        return None
    shown = [c for c in found if len(f.methods) <= SERIES or f.ranked[0] in (c.a, c.b)]
    about = (
        "Paired randomisation test on the average precisions of the same queries: how often would "
        "the difference be at least as large if for each query the two methods changed places at "
        "random? Holm's correction allows for the number of pairs."
    )
    if len(shown) < len(found):
        about += f" Shown are the pairs with {f.ranked[0]}; metrics.json has all {len(found)}."
    rows: list[list[Estimate | str]] = [
        [c.a, c.b, c.difference, _p(c.p), _p(c.p_holm), str(c.difference.units)] for c in shown
    ]
    header = ["method", "minus", "difference of mAP", "p", "p, corrected", "queries"]
    return Section("Are the differences real?", [Text(about), Table("Pairs", header, rows)])


def _p(p: float) -> str:
    return f"{p:.4f}"


def latencies(found: Sequence[Latency]) -> Section | None:
    """Milliseconds a query, of what SQL can answer."""
    if not found:
        return None
    about = (
        "The ten best by SQL in DuckDB, one query at a time. The peer is NumPy's product of all "
        "vectors that the method compares, in memory, with that of the query; of few vectors a "
        "query is planning, and the ratio says little."
    )
    rows = [
        [
            latency.method,
            named(latency.setting),
            f"{latency.median_ms:.1f}",
            f"{latency.p95_ms:.1f}",
            f"{latency.ratio:.1f}",
            str(latency.queries),
        ]
        for latency in found
    ]
    header = ["method", "setting", "median, ms", "95th percentile, ms", "× the peer", "queries"]
    return Section("Latency", [Text(about), Table("Time of one query, in this run", header, rows)])


def examples(found: Sequence[Example]) -> Section | None:
    """The best and worst queries."""
    return Section("Best and worst queries", galleries(found)) if found else None
