"""The sections of the retrieval report; each is None if the counts have nothing for it."""

from collections.abc import Mapping, Sequence

import numpy as np

from segrec_batch.evaluate.items import Plot, Section, Table, Text
from segrec_batch.evaluate.measures import Estimate
from segrec_batch.evaluate.plots import Line, heat_map, line_plot
from segrec_batch.evaluate.retrieval.conditions import NONE, named
from segrec_batch.evaluate.retrieval.examples import Example, galleries
from segrec_batch.evaluate.retrieval.findings import Columns, Findings
from segrec_batch.evaluate.retrieval.latency import Latency
from segrec_batch.evaluate.retrieval.measures import CUTOFFS, LEVELS
from segrec_batch.evaluate.retrieval.rankings import Floats
from segrec_batch.evaluate.retrieval.significance import Comparison

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
    (f"{name.upper()}@{k}", name, k) for name in ("arr", "fiar", "firr") for k in (10, 20, 100)
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
    "sums over all queries; it is the mean recall where all classes have one size. All at k."
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


def curves(f: Findings, precisions: Mapping[str, Floats]) -> Section:
    """Precision over recall, and over the length of the list; `precisions` at `LEVELS`."""
    lines = {m: Line(LEVELS, p) for m, p in precisions.items()}
    return Section(
        "Curves",
        [
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
    for m in f.methods:
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
    values = np.array([[e.value if e else None for e in row] for row in found], float)
    rows = [
        [c, str(max(e.units for e in row if e)), *(e or "not run" for e in row)]
        for c, row in zip(f.classes, found, strict=True)
    ]
    return Section(
        "Classes",
        [
            Plot(
                "mAP by class of the query",
                heat_map(values, f.classes, f.methods, "class", "method"),
                "mAP, a row for each class, a column for each method; the table has the figures.",
            ),
            Table("mAP by class of the query", ["class", "queries", *f.methods], rows),
        ],
    )


def significance(found: Sequence[Comparison]) -> Section | None:
    """Which methods differ."""
    if not found:
        return None
    about = (
        "Paired randomisation test on the average precisions of the same queries: how often would "
        "the difference be at least as large if for each query the two methods changed places at "
        "random? Holm's correction allows for the number of pairs."
    )
    rows: list[list[Estimate | str]] = [
        [c.a, c.b, c.difference, _p(c.p), _p(c.p_holm), str(c.difference.units)] for c in found
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
