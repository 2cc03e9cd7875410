"""The sections of the retrieval report; each is None if the counts have nothing for it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from segrec_batch.evaluation.figures import Fields, Figures, Names, Row
from segrec_batch.evaluation.items import Plot, Section, Table, Text
from segrec_batch.evaluation.plots import SERIES, Line, line_plot
from segrec_batch.evaluation.retrieval.measures import CUTOFFS, LEVELS
from segrec_batch.evaluation.retrieval.results import Results
from segrec_batch.evaluation.retrieval.run import FULL_METRICS
from segrec_batch.evaluation.retrieval.settings import KEPT, NEIGHBOURS, PLAIN, Setting
from segrec_batch.evaluation.statistics import Key, contrast

MAP: Fields = {"name": "map"}
P10: Fields = {"name": "precision", "k": 10}
MAIN: Names = {"mAP": MAP, "precision@10": P10}
_METRICS: Names = {
    "mAP": MAP,
    "mAP, trapezoids": {"name": "map_trapezoid"},
    "precision@1": {"name": "precision", "k": 1},
    "precision@10": P10,
    "recall@10": {"name": "recall", "k": 10},
    "recall@100": {"name": "recall", "k": 100},
    "R-precision": {"name": "r_precision"},
}
_GAINS: Names = {f"nDCG@{k}": {"name": "ndcg", "k": k} for k in (10, 100)}
_RATES: Names = {
    **{
        f"{name.upper()}@{k}": {"name": name, "k": k}
        for name in ("arr", "fiar", "firr")
        for k in (10, 20, 100)
    },
    "relevant lost": {"name": "relevant_lost"},
}
_SHARES: Names = {
    "Relevant lost": {"name": "relevant_lost"},
    "Candidates left": {"name": "candidates_left"},
}

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
_FEEDBACK_METHODS = 2  # in a plot: each has three curves


def metrics(r: Results, truth: str) -> Section:
    """Return the metrics of all methods under the plain setting, and their definitions."""
    queries = len(r.evaluation.units)
    about = (
        f"{truth} {queries - r.outside:,} queries are evaluated, without a filter and without the "
        "query among its candidates unless a section says otherwise."
    )
    if r.outside:
        about += f" {r.outside:,} more have no relevant candidate under some setting."
    has_gains = any(e.value is not None for e in r.estimates if e.key.name == "ndcg")
    columns = {**_METRICS, **_GAINS} if has_gains else _METRICS
    rates = "Retrieval, false acceptation and false rejection"
    return Section(
        "Metrics",
        [
            r.figures.table("Methods", "method", r.rows, columns),
            Text(about),
            Text(_DEFINITIONS + (_GAIN_DEFINITION if has_gains else "")),
            r.figures.table(rates, "method", r.rows, _RATES),
            Text(_RATE_DEFINITIONS),
        ],
    )


def curves(r: Results) -> Section:
    """Return precision over recall and over k."""

    def over_k(name: str, caption: str, label: str) -> Plot:
        at: dict[float, Fields] = {k: {"name": name, "k": k} for k in CUTOFFS}
        lines = {m: r.figures.line(at, method=m) for m in r.drawn}
        text = f"{caption}, k from 1 to 100, a curve for each method with its 95 % band."
        return Plot(caption, line_plot(lines, "k", label, log=True, y_range=None), text)

    by_recall = {m: Line(LEVELS, r.curves[m]) for m in r.drawn}
    note = Text(f"The {len(r.drawn)} methods with the greatest mAP; the tables have all.")
    return Section(
        "Curves",
        [
            *([note] if len(r.drawn) < len(r.methods) else []),
            Plot(
                "Precision at each recall, mean over queries",
                line_plot(by_recall, "recall", "interpolated precision"),
                "Interpolated precision over recall, a curve for each method.",
            ),
            over_k("precision", "Precision of the first k", "precision@k"),
            over_k("arr", "Average retrieval rate of the first k", "ARR@k"),
        ],
    )


def filters(r: Results) -> Section | None:
    """Return the gains and losses by filters on coverage and on the semantic distance."""
    items: list[Text | Table | Plot] = []
    for kind, settings in (
        ("window on coverage σ", [s for s in r.settings if s.window]),
        ("limit ε on the semantic distance", [s for s in r.settings if s.epsilon is not None]),
    ):
        if not settings:
            continue
        columns = {s.label: {"setting": s.name} for s in (PLAIN, *settings)}
        items += [_filter_plot(r, kind, settings, *metric) for metric in MAIN.items()]
        items += [
            r.figures.table(
                f"{label} by {kind}",
                "method",
                r.rows,
                {name: {**metric, **column} for name, column in columns.items()},
                missing="not run",
            )
            for label, metric in {**MAIN, **_SHARES}.items()
        ]
    return Section("Filters", [Text(_FILTERS), *items]) if items else None


def _filter_plot(
    r: Results, kind: str, settings: Sequence[Setting], label: str, metric: Fields
) -> Plot:
    """Return curves over ε, marks for windows, or a map of more methods than there are colours."""
    caption = f"{label} by {kind}"
    columns = {s.label: {**metric, "setting": s.name} for s in (PLAIN, *settings)}
    if len(r.methods) > SERIES:
        return r.figures.heat_map(caption, r.rows, columns, "method", "filter")
    if settings[0].window:
        text = f"{label} without a filter and for each window, a mark for each method."
        return r.figures.dot_plot(caption, label, columns, r.rows, text)
    at = {s.epsilon or 0.0: {**metric, "setting": s.name} for s in settings}
    lines = {m: _with_level(r, r.figures.line(at, method=m), metric, m) for m in r.methods}
    svg = line_plot(lines, "ε, greatest semantic distance that passes", label, y_range=None)
    text = f"{label} over ε, a curve for each method; dotted lines are without a filter."
    return Plot(f"{caption}; dotted: no filter", svg, text)


def _with_level(r: Results, line: Line, metric: Fields, method: str) -> Line:
    """Return a line with a dotted one at the value of a method under the plain setting."""
    return replace(line, level=r.figures.get(**metric, method=method).value)


def query_kept(r: Results) -> Section | None:
    """Return the metrics with the query among its relevant candidates."""
    kept: Fields = {"setting": KEPT.name}
    rows = {m: row for m, row in r.rows.items() if r.figures.find(**MAP, **row, **kept)}
    if not rows:
        return None
    columns: dict[str, Fields] = {}
    changes: dict[Key, tuple[Key, Key]] = {}
    for label, metric in MAIN.items():
        change = {**metric, **kept, "name": f"{metric['name']}_difference"}
        columns[f"{label}, left out"] = metric
        columns[f"{label}, kept"] = {**metric, **kept}
        columns[f"{label}, difference"] = change
        for row in rows.values():
            changes[Key(**change, **row)] = Key(**metric, **kept, **row), Key(**metric, **row)
    figures = Figures([*r.estimates, *contrast(r.evaluation, changes, seed=r.seed)])
    table = figures.table("The query left out and kept", "method", rows, columns)
    return Section("Query in or out of the ground truth", [Text(_KEPT), table])


def feedback(r: Results) -> Section | None:
    """Return the gains of each round of feedback."""
    rounds = [s.feedback for s in r.settings if s.feedback]
    names = [Setting(feedback=f).name for f in rounds]
    methods = [
        m for m in r.methods if any(r.figures.find(**MAP, method=m, setting=s) for s in names)
    ]
    if not methods:
        return None
    shown, last = rounds[0].shown, max(f.rounds for f in rounds)
    ways = {"no feedback": [PLAIN.name] * (last + 1)}
    for f, name in zip(rounds, names, strict=True):
        ways.setdefault(f.way, [PLAIN.name]).append(name)
    drawn = [m for m in r.ranked if m in methods][:_FEEDBACK_METHODS]
    items: list[Text | Table | Plot] = [Text(_FEEDBACK.format(shown))]
    for label, name in (("mAP", "map"), ("Precision of new images", "new_precision")):
        rows: list[Row] = []
        lines: dict[str, Line] = {}
        for method, (way, course) in product(methods, ways.items()):
            points: list[Fields] = [
                {"name": name, "method": method, "setting": s, "k": shown * i * (name != "map")}
                for i, s in enumerate(course, start=1)
            ]
            rows.append([f"{method}, {way}", *(r.figures.get(**point) for point in points)])
            if method in drawn:
                lines[f"{method}, {way}"] = r.figures.line(dict(enumerate(points)))
        text = (
            f"{label} over the rounds, a curve for each way, with its 95 % band, of the "
            f"{len(drawn)} methods with the greatest mAP without feedback."
        )
        header = ["method", *(f"round {i}" for i in range(last + 1))]
        svg = line_plot(lines, "round of feedback", label, y_range=None, whole=True)
        items.append(Table(f"{label} by round of feedback", header, rows))
        items.append(Plot(f"{label} over rounds of feedback", svg, text))
    return Section("Relevance feedback", items)


def classes(r: Results) -> Section | None:
    """Return mAP by class of the query."""
    names = sorted(set(r.figures.distinct("cls", name="map")) - {""})
    if not names:
        return None
    caption = "mAP by class of the query"
    rows: Names = {c: {**MAP, "cls": c} for c in names}
    table = r.figures.table(caption, "class", rows, r.rows, missing="not run", units="queries")
    if len(r.methods) > len(names):  # the longer side goes down the page
        plot = r.figures.heat_map(caption, r.rows, rows, "method", "class")
    else:
        plot = r.figures.heat_map(caption, rows, r.rows, "class", "method")
    return Section("Classes", [plot, table])


def components(r: Results) -> Section | None:
    """Return the results of the full vector that some components keep (Krupa 2022)."""
    if not r.components:
        return None
    recall: Fields = {"name": "recall", "k": NEIGHBOURS}
    columns: dict[str, Fields] = {
        f"recall of neighbours by {m}": {**recall, "setting": Setting(neighbours=m).name}
        for m in FULL_METRICS
    }
    columns |= MAIN
    rows = {str(d): {"method": m} for d, m in r.components.items()}
    rows |= {f"full vector, {m}": {"method": m} for m in FULL_METRICS}
    at = {float(d): {"method": m} for d, m in r.components.items()}
    lines = {
        label: _with_level(r, r.figures.line(at, **column), column, FULL_METRICS[0])
        for label, column in columns.items()
    }
    caption = "By the number of components"
    svg = line_plot(lines, "principal components", "value", log=True)
    text = "Each metric over the number of components, with its 95 % band."
    plot = Plot(f"{caption}; dotted: the full vector by cosine", svg, text)
    table = r.figures.table(caption, "components", rows, columns, missing="")
    return Section("Principal components", [Text(_COMPONENTS), plot, table])


def significance(r: Results) -> Section | None:
    """Return the differences of methods, of many methods those from the best."""
    if not r.comparisons:
        return None
    pairs = [c for c in r.comparisons if len(r.methods) <= SERIES or r.ranked[0] in (c.a, c.b)]
    text = _SIGNIFICANCE
    if len(pairs) < len(r.comparisons):
        text += f" The table has the pairs with {r.ranked[0]}; metrics.json has "
        text += f"{len(r.comparisons)}."
    rows: list[Row] = [
        [c.a, c.b, c.difference, f"{c.p:.4f}", f"{c.p_holm:.4f}", str(c.difference.units)]
        for c in pairs
    ]
    header = ["method", "minus", "difference of mAP", "p", "p, corrected", "queries"]
    return Section("Are the differences real?", [Text(text), Table("Pairs", header, rows)])
