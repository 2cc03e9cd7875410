"""The drift report: settings → metric values and page."""

from collections.abc import Iterator, Mapping
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.evaluation.drift import figures as metrics
from segrec_batch.evaluation.drift.comparison import Limits, Settings, compare_snapshots
from segrec_batch.evaluation.drift.golden import REGION, WHOLE, fingerprint
from segrec_batch.evaluation.figures import Figures, Names, Row, by
from segrec_batch.evaluation.items import Lead, Plot, Section, Table, Text, figure
from segrec_batch.evaluation.plots import step_plot
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.statistics import Estimate
from segrec_batch.search.sql.connection import open_connection, query
from segrec_batch.sources import storage

TIES = "of equal Pearson the lower image_id"
REASONS = 30  # of failures on the page
WORST = 10  # golden images in a table
_BARS = 40  # of a histogram, 25 bins each
_KS = (
    "KS is the two-sample Kolmogorov–Smirnov statistic of σ rounded up to 1/1000: the largest "
    "difference, over all σ, between the shares of images with at most that much of the class "
    "before and after. It is the size of the effect, 0 to 1, and the value that limits apply to: "
    "among millions of images p is tiny for negligible differences. p is asymptotic, for "
    "independent samples, and corrected for the number of classes (Holm). The snapshots share most "
    "images, so that p is rather too large; only new images and those before are independent. All "
    "images are counted, so there are no intervals."
)
_FAILURES = """
SELECT stage, reason, format('{:,}', coalesce(COLUMNS(* EXCLUDE (stage, reason)), 0)::BIGINT)
FROM (
    PIVOT (SELECT stage, reason, count, unnest([side, name]) AS part
           FROM counts WHERE what = 'failures')
    ON part IN ('before', 'after', 'new', 'mended', 'gone') USING sum(count)
) AS p
ORDER BY p.new DESC NULLS LAST, stage, reason
"""
_CHANGED = f"""
SELECT uri AS image, coalesce(format('{{:.4f}}', distance), 'absent') AS "1 − Pearson",
       coalesce(format('{{:.3f}} {{}}', change, c.class), '0.000') AS "largest |Δσ|",
       if(new_content, 'changed', 'the same') AS content
FROM golden LEFT JOIN (
    SELECT image_id, abs(value) AS change, class FROM counts WHERE name = 'coverage_change'
    QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY abs(value) DESC, class) = 1
) AS c USING (image_id)
WHERE coalesce(distance, 0) <> 0 OR coalesce(change, 0) > 0
ORDER BY coalesce(distance, 0) DESC, coalesce(change, 0) DESC, uri LIMIT {WORST}
"""  # noqa: S608
_LEAST_OVERLAP = f"""
SELECT uri AS image, coalesce(format('{{:.2f}}', whole), 'absent') AS "{WHOLE}",
       coalesce(format('{{:.2f}}', region), 'absent') AS "{REGION}"
FROM golden JOIN (
    SELECT image_id, max(value) FILTER (setting = '{WHOLE}') AS whole,
           max(value) FILTER (setting = '{REGION}') AS region
    FROM counts WHERE name = 'topk_overlap' GROUP BY image_id
) AS c USING (image_id)
WHERE least(whole, region) < 1
ORDER BY coalesce(whole, 1), uri LIMIT {WORST}
"""  # noqa: S608


def drift_report(settings: Settings) -> Report:
    """Compare two snapshots. Raises InputError, IndexStateError, StorageError."""
    c = compare_snapshots(settings)
    before, after, counts = c.before, c.after, c.counts
    estimates = metrics.figures(counts)
    for evaluation in metrics.evaluate(counts):
        estimates += evaluation.estimates(seed=settings.seed)
    ids = c.golden["image_id"].to_pylist()
    most = dict(settings.limits.most) if settings.limits else {}
    f = Figures(estimates)
    return Report(
        title=f"Drift of {storage.name(after.index)}, version {before.version} to {after.version}",
        provenance=Provenance(
            "drift", f"{len(ids)} golden images {fingerprint(ids)}", TIES, settings.seed,
            after.model_id, after.spec.weights, after.index, after.version,
        ),
        estimates=estimates,
        counts=counts,
        sections=[
            Section("Drift", [_summary(f, most)]),
            Section("Images and failures", list(_images(f, counts))),
            Section("Coverage", list(_coverage(f, counts))),
            Section("Features of golden images", list(_features(f, counts, c.golden))),
            Section(
                "Recommendations for golden images", list(_recommendations(f, counts, c.golden))
            ),
        ],
        lead=_lead(f, settings.limits),
        details={
            "from": {
                "version": before.version,
                "model_id": before.model_id,
                "images": before.rows("images"),
            },
            "to": {"version": after.version, "model_id": after.model_id},
            "limits": most,
            "golden": ids,
        },
        notice=c.notice or None,
    )  # fmt: skip


def _lead(f: Figures, limits: Limits | None) -> Lead:
    n = {s: _count(f.get(name="images", setting=s)) for s in f.distinct("setting", name="images")}
    exceeded = limits.exceeded(f.by_key.values()) if limits else []
    verdict = "There are no limits."
    if limits and not f.get(name="images", setting="before").value:
        verdict = "Without images before, no limit applies."
    elif limits:
        verdict = f"Above the limit: {'; '.join(exceeded)}." if exceeded else "All limits hold."
    answer = (
        f"Of {n['before']} images {n['changed']} changed and {n['gone']} are gone; {n['new']} are "
        f"new. New failures: {_count(f.get(name='failures', setting='new'))}. {verdict}"
    )
    k = next(iter(f.distinct("k", name="topk_overlap")), 0)
    numbers: list[tuple[str, Estimate | str, str]] = [
        ("Images now", n["after"], f"{n['unchanged']} of them are unchanged"),
        ("Drift of coverage", f.get(name="drift_coverage"),
         "Largest Kolmogorov–Smirnov statistic of σ over the classes"),
        ("Recommendations that stayed", f.get(name="topk_overlap", setting=WHOLE, k=k),
         "Share of the recommendations for golden images in both snapshots"),
    ]  # fmt: skip
    rows: Names = {name: {"name": f"drift_{name}"} for name in metrics.MEASURES}
    plot = f.dot_plot("Drift, 0 where nothing changed", "drift", rows, {"drift": {}})
    return Lead("How much did the index change between two versions?", answer, numbers, plot)


def _count(estimate: Estimate) -> str:
    return f"{estimate.value or 0:,.0f}"


def _summary(f: Figures, limits: Mapping[str, float]) -> Table:
    rows: list[Row] = []
    for name, definition in metrics.MEASURES.items():
        estimate, limit = f.get(name=f"drift_{name}"), limits.get(name)
        verdict = "none"
        if limit is not None and estimate.value is None:
            verdict = f"{limit:g}: not known"
        elif limit is not None and estimate.value is not None:
            verdict = f"{limit:g}: {'✗ above' if estimate.value > limit else '✓ within'}"
        rows.append([name, estimate, verdict, definition])
    header = ("measure", "value", "limit", "definition")
    return Table("Drift, 0 where nothing changed", header, rows)


def _images(f: Figures, counts: pa.Table) -> Iterator[Table | Text]:
    for name, caption in (
        ("images", "Images; changed ones have other bytes under the same name"),
        ("failures", "Failures; mended ones are indexed now"),
    ):
        columns = by("setting", f.distinct("setting", name=name))
        forms = dict.fromkeys(columns, _count)
        yield f.table(caption, "", by("name", [name]), columns, forms=forms)
    failures = _select(_FAILURES, counts=counts)
    if not len(failures):
        yield Text("No image failed before or after.")
        return
    caption = "Failures by stage and reason, most new ones first"
    if len(failures) > REASONS:
        caption += f": {REASONS} of {len(failures)} reasons; counts.parquet has all of them"
    yield _text_table(caption, failures[:REASONS])


def _select(sql: str, **tables: pa.Table) -> pa.Table:
    """Return the rows of SQL over tables, by name."""
    with closing(open_connection()) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return query(connection, sql)


def _text_table(caption: str, rows: pa.Table) -> Table:
    return Table(caption, rows.column_names, [list(row.values()) for row in rows.to_pylist()])


def _coverage(f: Figures, counts: pa.Table) -> Iterator[Text | Table | Plot]:
    classes = metrics.classes_of(counts)
    if not classes:
        yield Text("No class is in both snapshots.")
        return
    yield Text(_KS)
    for population in metrics.POPULATIONS:
        sides = {"before": "before", "after": "new" if population == metrics.NEW else "after"}
        columns: Names = {
            f"{words}, {label}": {"name": name, "setting": f"{population}, {side}"}
            for name, words in (("coverage_mean", "mean σ"), ("coverage_share", "have it"))
            for side, label in sides.items()
        } | {
            "KS": {"name": "coverage_ks", "setting": population},
            "p (Holm)": {"name": "coverage_ks_p_holm", "setting": population},
        }  # fmt: skip
        units = [f.get(cls=classes[0], **of).units for of in columns.values()]
        caption = f"{population}: {units[0]:,} before, {units[1]:,} {sides['after']}"
        yield f.table(caption, "class", by("cls", classes), columns, forms={"p (Holm)": _p_value})
    edges = np.linspace(0, 1, _BARS + 1)
    for cls in classes:
        images, _ = metrics.histograms(counts, metrics.ALL, cls)
        bars = images[:, 1:].reshape(2, _BARS, -1).sum(axis=2)
        shares = dict(
            zip(metrics.SIDES, bars / images.sum(axis=1, keepdims=True).clip(1), strict=True)
        )
        peaks = ", ".join(f"{n} the most common σ is about {edges[s.argmax()] + 0.5 / _BARS:.2f}"
                          for n, s in shares.items() if s.any())  # fmt: skip
        about = f"Histograms of σ of {cls} over all images, before and after; {peaks or 'empty'}."
        caption = f"{cls}: share of all images by coverage, where it is above 0"
        yield Plot(caption, step_plot(shares, edges, "coverage σ", "share of all images"), about)


def _p_value(estimate: Estimate) -> str:
    tiny = estimate.value is not None and estimate.value < 0.001
    return "< 0.001" if tiny else figure(estimate)


def _features(f: Figures, counts: pa.Table, golden: pa.Table) -> Iterator[Text | Table]:
    if not len(golden):
        yield Text("No image is in both snapshots, so there are no golden images.")
        return
    same: Names = {
        "1 − Pearson of old and new feature": {"name": "drift_features"},
        "share with another feature": {"name": "features_changed"},
        "… of those with the same content": {
            "name": "features_changed",
            "setting": metrics.SAME_CONTENT,
        },
    }
    classes = metrics.classes_of(counts)
    changes: Names = {f"|Δσ| of {c}": {"name": "coverage_change", "cls": c} for c in classes}
    rows = {**same, **changes}
    yield f.table("Means over golden images", "", rows, {"mean": {}}, units="images")
    changed = _select(_CHANGED, counts=counts, golden=golden)
    if len(changed):
        yield _text_table(f"The {len(changed)} golden images that changed most", changed)
    else:
        yield Text("No golden image changed its feature or its coverage.")


def _recommendations(
    f: Figures, counts: pa.Table, golden: pa.Table
) -> Iterator[Text | Table | Plot]:
    keys = [key for key in f.by_key if key.name == "topk_overlap"]
    if not keys:
        yield Text("Without golden images there are no recommendations to compare.")
        return
    k = keys[0].k
    yield Text(
        f"For each golden image the {k} most similar images were queried in both snapshots. "
        "Overlap is the share of them in both results; average overlap is its mean over the first "
        "1, 2, … places (Fagin et al. 2003), so that early places weigh more."
    )
    rows: Names = {
        f"{key.setting}: {key.cls}" if key.cls else key.setting: {
            "setting": key.setting, "cls": key.cls, "k": key.k,
        }
        for key in keys
    }  # fmt: skip
    columns: Names = {
        f"overlap@{k}": {"name": "topk_overlap"},
        f"average overlap@{k}": {"name": "average_overlap"},
    }
    yield f.table("Overlap of recommendations", "vectors", rows, columns, units="queries")
    edges = np.linspace(0, 1 + 1 / k, k + 2) - 0.5 / k
    shares = {}
    for setting in (WHOLE, REGION):
        of_setting = (pc.field("name") == "topk_overlap") & (pc.field("setting") == setting)
        if values := counts.filter(of_setting)["value"].drop_null().to_pylist():
            shares[setting] = np.histogram(values, edges)[0] / len(values)
    about = "; ".join(f"{s}: {share[-1]:.0%} of queries kept all" for s, share in shares.items())
    svg = step_plot(shares, edges, f"overlap@{k}", "share of queries")
    yield Plot("Queries by overlap", svg, f"Histograms of overlap. {about}.")
    least = _select(_LEAST_OVERLAP, counts=counts, golden=golden)
    if len(least):
        yield _text_table(f"The {len(least)} golden images with the least overlap", least)
