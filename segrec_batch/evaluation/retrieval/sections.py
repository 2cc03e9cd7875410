"""The sections of the retrieval report; each is None if the counts have nothing for it."""

from collections.abc import Mapping, Sequence

import numpy as np

from segrec_batch.evaluation.items import Plot, Section, Table, Text, figure
from segrec_batch.evaluation.plots import SERIES, Line, dot_plot, heat_map, line_plot
from segrec_batch.evaluation.retrieval.counts import Floats
from segrec_batch.evaluation.retrieval.figures import Figures, Point
from segrec_batch.evaluation.retrieval.latency import Latency
from segrec_batch.evaluation.retrieval.measures import CUTOFFS, LEVELS, Comparison
from segrec_batch.evaluation.retrieval.run import FULL_METRICS
from segrec_batch.evaluation.retrieval.settings import KEPT, NEIGHBOURS, PLAIN, Setting
from segrec_batch.evaluation.statistics import Estimate, Key, contrast

_MAP: Point = {"name": "map"}
_P10: Point = {"name": "precision", "k": 10}
_MAIN = {"mAP": _MAP, "precision@10": _P10}
_METRICS: Mapping[str, Point] = {
    "mAP": _MAP,
    "mAP, trapezoids": {"name": "map_trapezoid"},
    "precision@1": {"name": "precision", "k": 1},
    "precision@10": _P10,
    "recall@10": {"name": "recall", "k": 10},
    "recall@100": {"name": "recall", "k": 100},
    "R-precision": {"name": "r_precision"},
}
_GAINS: Mapping[str, Point] = {f"nDCG@{k}": {"name": "ndcg", "k": k} for k in (10, 100)}
_RATES: Mapping[str, Point] = {
    f"{name.upper()}@{k}": {"name": name, "k": k}
    for name in ("arr", "fiar", "firr")
    for k in (10, 20, 100)
} | {"relevant lost": {"name": "relevant_lost"}}

_DEFINITIONS = (
    "The candidates of a query are ranked by score. Among the first k, A are relevant and B are "
    "not, C relevant ones are missing, and R = A + C. Precision@k = A / k, also where fewer than "
    "k were retrieved; recall@k = A / R; R-precision = precision@R. Average precision is "
    "AP = 1/R Σ i / rank of the i-th relevant image, where one that was not retrieved adds 0 "
    "(trec_eval); mAP is its mean over the queries. With trapezoids it is the area under the "
    "precision-recall curve, as the revisited Oxford and Paris benchmark computes it."
)
_GAIN_DEFINITION = (
    " nDCG@k = DCG / greatest possible DCG, with DCG = Σ gain / log2(1 + rank) over the first k; "
    "the gain of an image is the IoU of its mask with that of the query."
)
_RATE_DEFINITIONS = (
    "All at k. False image acceptation ratio: FIAR = B / (A + B) of the retrieved images. False "
    "image rejection ratio: FIRR = C / (A + C) = 1 − recall. Average retrieval rate: "
    "ARR = Σ A / Σ R, sums over all queries, the mean recall where all classes have one size. "
    "Relevant lost: the share of a query's relevant candidates without a score, because they have "
    "no vector, no region or another category."
)
_FILTERS = (
    "Relevant lost: the share of a query's relevant candidates that the filter drops, or that "
    "have no score; no ranking retrieves them. Candidates left: the share that is ranked."
)
_KEPT = (
    "Some papers keep the query among the candidates and count it as relevant. It is then the "
    "first result or near it, which raises all metrics. All other sections leave it out."
)
_FEEDBACK = (
    "In each round a simulated user marks the first {0} images without a mark, by the ground "
    "truth; all others are then ranked again, from the query and all marks so far. Marked images "
    "keep their ranks, so that all gains are of new images (residual rankings). mAP is that of "
    "the marked images followed by the new ranking of the rest. Precision of new images is that "
    "of the {0} shown next; without feedback they are the next page of the one ranking. An SVM "
    "needs relevant and irrelevant images; until it has both, the order stays."
)
_COMPONENTS = (
    "The features are projected on their first principal components and compared by cosine. "
    f"Recall of neighbours: the share of the {NEIGHBOURS} images nearest to the query by the full "
    f"vector that are among the first {NEIGHBOURS}. The other metrics use the ground truth."
)
_SIGNIFICANCE = (
    "Paired randomisation test of the average precisions of the same queries: p is the "
    "probability of a difference at least as large if for each query the two methods changed "
    "places at random. Holm's correction accounts for the number of pairs."
)
_LATENCY = (
    "The ten best by SQL in DuckDB, one query at a time. The ratio is to NumPy's product of all "
    "vectors that the method compares, in memory, with that of the query. With few vectors a "
    "query is mostly planning, and the ratio means little."
)
_FEEDBACK_METHODS = 2  # in a plot: each has three curves


def overview(f: Figures, compared: Sequence[Comparison], truth: str, ties: str) -> Section:
    """Return the answer, the methods and their metrics."""
    queries = len(f.measures.units)
    about = (
        f"{truth} {queries - f.outside:,} queries are evaluated, without a filter and without the "
        f"query among its candidates unless a section says otherwise. Ties: {ties}."
    )
    if f.outside:
        about += f" {f.outside:,} more have no relevant candidate under some setting."
    has_gains = any(e.value is not None for e in f.estimates if e.key.name == "ndcg")
    best_first = {m: {"mAP": e} for m in f.ranked if (e := f({**_MAP, "method": m}))}
    return Section(
        "Overview",
        [
            Text(_answer(f, compared)),
            Plot(
                "mAP, the best first",
                dot_plot(best_first, "mAP"),
                "mAP of each method with its interval, the best first.",
            ),
            f.by_method("Methods", {**_METRICS, **_GAINS} if has_gains else _METRICS),
            Text(about),
            Text(_DEFINITIONS + (_GAIN_DEFINITION if has_gains else "")),
            f.by_method("Retrieval, false acceptation and false rejection", _RATES),
            Text(_RATE_DEFINITIONS),
        ],
    )


def _answer(f: Figures, compared: Sequence[Comparison]) -> str:
    """Return the best method, its metrics and its lead over the second."""
    best = f.ranked[0]
    values = [f({**point, "method": best}) for point in _MAIN.values()]
    numbers = ", ".join(f"{n} {figure(e)}" for n, e in zip(_MAIN, values, strict=True) if e)
    answer = f"{best} ranks best: {numbers}."
    for c in compared:
        if {c.a, c.b} == set(f.ranked[:2]) and c.difference.value is not None:
            lead = f"{abs(c.difference.value):.3f}"
            answer += f" It leads {f.ranked[1]} by {lead} in mAP (p = {c.p_holm:.4f}, corrected)."
    return answer


def curves(f: Figures, precisions: Mapping[str, Floats]) -> Section:
    """Return precision over recall and over k; `precisions` are at LEVELS."""

    def over_k(name: str, caption: str, label: str) -> Plot:
        lines = {
            m: f.line(CUTOFFS, [{"name": name, "method": m, "k": k} for k in CUTOFFS])
            for m in f.drawn
        }
        text = f"{caption}, k from 1 to 100, a curve for each method with its 95 % band."
        return Plot(caption, line_plot(lines, "k", label, log=True, y_range=None), text)

    by_recall = {m: Line(LEVELS, precisions[m]) for m in f.drawn}
    note = f"The {len(f.drawn)} methods with the greatest mAP; the tables have all."
    return Section(
        "Curves",
        [
            *([Text(note)] if len(f.drawn) < len(f.methods) else []),
            Plot(
                "Precision at each recall, mean over queries",
                line_plot(by_recall, "recall", "interpolated precision"),
                "Interpolated precision over recall, a curve for each method.",
            ),
            over_k("precision", "Precision of the first k", "precision@k"),
            over_k("arr", "Average retrieval rate of the first k", "ARR@k"),
        ],
    )


def filters(f: Figures) -> Section | None:
    """Return the gains and losses by filters on coverage and on the semantic distance."""
    items: list[Text | Table | Plot] = []
    for by, settings in (
        ("window on coverage σ", [s for s in f.settings if s.window]),
        ("limit ε on the semantic distance", [s for s in f.settings if s.epsilon is not None]),
    ):
        if settings:
            items += [_filter_plot(f, by, settings, *metric) for metric in _MAIN.items()]
            items += _filter_tables(f, by, [PLAIN, *settings])
    return Section("Filters", [Text(_FILTERS), *items]) if items else None


def _filter_tables(f: Figures, by: str, settings: Sequence[Setting]) -> list[Table]:
    """Return a table for each metric, with a row for each method and a column for each setting."""
    columns = {s.label: {"setting": s} for s in settings}
    metrics = [
        f.by_method(f"{label} by {by}", {n: {**metric, **c} for n, c in columns.items()})
        for label, metric in _MAIN.items()
    ]
    shares = [f.by_method("", {n: {"name": name, **c} for n, c in columns.items()}).texts(False)
              for name in ("relevant_lost", "candidates_left")]  # fmt: skip
    rows = [
        [a[0], *(x if x == "not run" else f"{x} / {y}" for x, y in zip(a[1:], b[1:], strict=True))]
        for a, b in zip(*shares, strict=True)
    ]
    header = ["method", *columns]
    return [*metrics, Table(f"Relevant lost / candidates left by {by}", header, rows)]


def _filter_plot(
    f: Figures, by: str, settings: Sequence[Setting], label: str, metric: Point
) -> Plot:
    """Return curves over ε, marks for windows, or a map of more methods than there are colours."""
    caption, all_settings = f"{label} by {by}", [PLAIN, *settings]

    def points(method: str, among: Sequence[Setting]) -> list[Point]:
        return [{**metric, "method": method, "setting": s} for s in among]

    if len(f.methods) > SERIES:
        values = np.stack([f.values(points(m, all_settings))[0] for m in f.methods])
        svg = heat_map(values, f.methods, [s.label for s in all_settings], "method", "filter")
        text = "A row for each method, a column for each filter; the table has the values."
    elif settings[0].window:
        estimates = {
            s.label: {m: e for m in f.methods for p in points(m, [s]) if (e := f(p))}
            for s in all_settings
        }
        svg = dot_plot(estimates, label)
        text = f"{label} without a filter and for each window, a mark for each method."
    else:
        x = [s.epsilon or 0.0 for s in settings]
        lines = {m: f.line(x, points(m, settings), {**metric, "method": m}) for m in f.methods}
        svg = line_plot(lines, "ε, greatest semantic distance that passes", label, y_range=None)
        caption += "; dotted: no filter"
        text = f"{label} over ε, a curve for each method; dotted lines are without a filter."
    return Plot(caption, svg, text)


def query_kept(f: Figures) -> Section | None:
    """Return the metrics with the query among its relevant candidates."""
    methods = [m for m in f.methods if f({**_MAP, "method": m, "setting": KEPT})]
    if not methods:
        return None
    header = [f"{name}, {which}" for name in _MAIN for which in ("left out", "kept", "difference")]
    rows: list[list[Estimate | str]] = []
    for m in methods:
        cells: list[Estimate | str] = []
        for metric in _MAIN.values():
            out, kept = (Key(**{**metric, "method": m, "setting": s.name}) for s in (PLAIN, KEPT))
            change = Key(f"{out.name}_difference", m, setting=kept.setting, k=out.k)
            estimates = [f({**metric, "method": m, "setting": s}) for s in (PLAIN, KEPT)]
            difference = contrast(f.measures, {change: (kept, out)}, seed=f.seed)
            cells += [e or "not run" for e in (*estimates, *difference)]
        rows.append([m, *cells])
    table = Table("The query left out and kept", ["method", *header], rows)
    return Section("Query in or out of the ground truth", [Text(_KEPT), table])


def feedback(f: Figures) -> Section | None:
    """Return the gains of each round of feedback."""
    rounds = [s.feedback for s in f.settings if s.feedback]
    courses: dict[tuple[str, str], list[tuple[Setting, int]]] = {}
    for m in f.methods:
        known = [x for x in rounds if f({**_MAP, "method": m, "setting": Setting(feedback=x)})]
        pages = sorted({x.page for x in known} | {x.shown for x in known})
        if known:
            courses[m, "no feedback"] = [(PLAIN, page) for page in pages]
        for way in dict.fromkeys(x.way for x in known):
            after = [(Setting(feedback=x), x.page) for x in known if x.way == way]
            courses[m, way] = [(PLAIN, pages[0]), *after]
    if not courses:
        return None
    best = [m for m in f.ranked if (m, "no feedback") in courses][:_FEEDBACK_METHODS]
    items: list[Text | Table | Plot] = [Text(_FEEDBACK.format(rounds[0].shown))]
    for label, name in (("mAP", "map"), ("Precision of new images", "new_precision")):
        points = {
            (m, way): [
                {"name": name, "method": m, "setting": s, "k": page if name != "map" else 0}
                for s, page in course
            ]
            for (m, way), course in courses.items()
        }
        header = ["method", *(f"round {i}" for i in range(max(map(len, points.values()))))]
        rows = [[", ".join(c), *(f(p) or "not run" for p in some)] for c, some in points.items()]
        lines = {
            ", ".join(c): f.line(range(len(some)), some)
            for c, some in points.items()
            if c[0] in best
        }
        svg = line_plot(lines, "round of feedback", label, y_range=None, whole=True)
        text = (
            f"{label} over the rounds, a curve for each way, with its 95 % band, of the "
            f"{len(best)} methods with the greatest mAP without feedback."
        )
        items.append(Table(f"{label} by round of feedback", header, rows))
        items.append(Plot(f"{label} over rounds of feedback", svg, text))
    return Section("Relevance feedback", items)


def classes(f: Figures) -> Section | None:
    """Return mAP by class of the query."""
    if not f.classes:
        return None
    cells = [[f({**_MAP, "method": m, "cls": c}) for m in f.methods] for c in f.classes]
    rows = [
        [c, str(max(e.units for e in row if e)), *(e or "not run" for e in row)]
        for c, row in zip(f.classes, cells, strict=True)
    ]
    caption = "mAP by class of the query"
    values = np.array([[e.value if e else None for e in row] for row in cells], float)
    sides = ("class", f.classes), ("method", f.methods)
    if len(f.methods) > len(f.classes):  # the longer side goes down the page
        values, sides = values.T, sides[::-1]
    (y, down), (x, across) = sides
    text = f"mAP, a row for each {y}, a column for each {x}; the table has the values."
    plot = Plot(caption, heat_map(values, down, across, y, x), text)
    return Section("Classes", [plot, Table(caption, ["class", "queries", *f.methods], rows)])


def components(f: Figures) -> Section | None:
    """Return how much of the full vector's results some components keep (Krupa 2022)."""
    if not f.components:
        return None
    columns: dict[str, Point] = {
        f"recall of neighbours by {metric}": {
            "name": "recall",
            "k": NEIGHBOURS,
            "setting": Setting(neighbours=metric),
        }
        for metric in FULL_METRICS
    } | _MAIN
    rows = {str(d): {"method": m} for d, m in f.components.items()}
    rows |= {f"full vector, {m}": {"method": m} for m in FULL_METRICS}
    lines = {
        label: f.line(
            list(f.components),
            [{**column, "method": m} for m in f.components.values()],
            {**column, "method": FULL_METRICS[0]},
        )
        for label, column in columns.items()
    }
    caption = "By the number of components"
    svg = line_plot(lines, "principal components", "value", log=True)
    text = "Each metric over the number of components, with its 95 % band."
    plot = Plot(f"{caption}; dotted: the full vector by cosine", svg, text)
    table = f.table(caption, "components", rows, columns, missing="")
    return Section("Principal components", [Text(_COMPONENTS), plot, table])


def significance(f: Figures, compared: Sequence[Comparison]) -> Section | None:
    """Return the differences of methods, of many methods those from the best."""
    if not compared:
        return None
    pairs = [c for c in compared if len(f.methods) <= SERIES or f.ranked[0] in (c.a, c.b)]
    text = _SIGNIFICANCE
    if len(pairs) < len(compared):
        text += (
            f" The table has the pairs with {f.ranked[0]}; metrics.json has all {len(compared)}."
        )
    rows: list[list[Estimate | str]] = [
        [c.a, c.b, c.difference, f"{c.p:.4f}", f"{c.p_holm:.4f}", str(c.difference.units)]
        for c in pairs
    ]
    header = ["method", "minus", "difference of mAP", "p", "p, corrected", "queries"]
    return Section("Are the differences real?", [Text(text), Table("Pairs", header, rows)])


def latencies(times: Sequence[Latency]) -> Section | None:
    """Return the time of a query by SQL."""
    if not times:
        return None
    rows = [
        [t.method, t.setting or PLAIN.label, f"{t.median_ms:.1f}", f"{t.p95_ms:.1f}",
         f"{t.ratio:.1f}", str(t.queries)] for t in times
    ]  # fmt: skip
    header = ["method", "setting", "median, ms", "95th percentile, ms", "ratio", "queries"]
    table = Table("Time of one query, in this run", header, rows)
    return Section("Latency", [Text(_LATENCY), table])
