"""The drift report: settings → metric values and page."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.evaluation.drift import figures as metrics
from segrec_batch.evaluation.drift.comparison import Comparison, Limits, Settings, compare_snapshots
from segrec_batch.evaluation.drift.golden import REGION, WHOLE, fingerprint
from segrec_batch.evaluation.figures import Figures, Names, Row, by
from segrec_batch.evaluation.items import Lead, Plot, Section, Table, Text
from segrec_batch.evaluation.plots import step_plot
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.statistics import Estimate
from segrec_batch.index.schema import coverage_column
from segrec_batch.sources import storage

TIES = "of equal Pearson the lower image_id"
REASONS = 30  # of failures on the page
WORST = 10  # golden images in a table
_IMAGES = ("before", "after", "new", "gone", "changed", "unchanged")
_FAILURES = ("before", "after", "new", "mended", "gone")
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


def drift_report(settings: Settings) -> Report:
    """Compare two snapshots. Raises InputError, IndexStateError, StorageError."""
    comparison = compare_snapshots(settings)
    before, after, counts = comparison.before, comparison.after, comparison.counts
    estimates = metrics.figures(counts)
    estimates += [
        e for part in metrics.evaluate(counts) for e in part.estimates(seed=settings.seed)
    ]
    ids = comparison.golden["image_id"].to_pylist()
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
            Section("Images and failures", [*_images(f), _failures(counts)]),
            Section("Coverage", list(_coverage(f, counts))),
            Section("Features of golden images", list(_features(f, comparison))),
            Section("Recommendations for golden images", list(_recommendations(f, comparison))),
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
        notice=comparison.notice or None,
    )  # fmt: skip


def _lead(f: Figures, limits: Limits | None) -> Lead:
    n = {s: _count(f.get(name="images", setting=s)) for s in _IMAGES}
    new = f.get(name="failures", setting="new")
    exceeded = limits.exceeded(list(f.by_key.values())) if limits else []
    verdict = "There are no limits."
    if limits and not f.get(name="images", setting="before").value:
        verdict = "Without images before, no limit applies."
    elif limits:
        verdict = f"Above the limit: {'; '.join(exceeded)}." if exceeded else "All limits hold."
    answer = (
        f"Of {n['before']} images {n['changed']} changed and {n['gone']} are gone; {n['new']} are "
        f"new. New failures: {_count(new)}. {verdict}"
    )
    overlap = next(iter(f.distinct("k", name="topk_overlap")), 0)
    numbers: list[tuple[str, Estimate | str, str]] = [
        ("Images now", n["after"], f"{n['unchanged']} of them are unchanged"),
        ("Drift of coverage", f.get(name="drift_coverage"),
         "Largest Kolmogorov–Smirnov statistic of σ over the classes"),
        ("Recommendations that stayed", f.get(name="topk_overlap", setting=WHOLE, k=overlap),
         "Share of the recommendations for golden images in both snapshots"),
    ]  # fmt: skip
    rows: Names = {name: {"name": f"drift_{name}"} for name in metrics.MEASURES}
    plot = f.dot_plot("Drift, 0 where nothing changed", "drift", rows, {"drift": {}})
    return Lead("How much did the index change between two versions?", answer, numbers, plot)


def _summary(f: Figures, limits: Mapping[str, float]) -> Table:
    rows: list[Row] = []
    for name, definition in metrics.MEASURES.items():
        estimate, limit = f.get(name=f"drift_{name}"), limits.get(name)
        rows.append([name, estimate, _verdict(estimate.value, limit), definition])
    header = ("measure", "value", "limit", "definition")
    return Table("Drift, 0 where nothing changed", header, rows)


def _verdict(value: float | None, limit: float | None) -> str:
    if limit is None:
        return "none"
    if value is None:
        return f"{limit:g}: not known"
    return f"{limit:g}: ✗ above" if value > limit else f"{limit:g}: ✓ within"


def _images(f: Figures) -> Iterator[Table]:
    for name, settings, caption in (
        ("images", _IMAGES, "Images; changed ones have other bytes under the same name"),
        ("failures", _FAILURES, "Failures; mended ones are indexed now"),
    ):
        forms = dict.fromkeys(settings, _count)
        yield f.table(caption, "", by("name", [name]), by("setting", settings), forms=forms)


def _failures(counts: pa.Table) -> Table | Text:
    numbers: dict[tuple[str, str], dict[str, int]] = {}
    for row in counts.filter(pc.equal(counts["what"], "failures")).to_pylist():
        of = numbers.setdefault((row["stage"], row["reason"]), {})
        for name in (row["side"], row["name"]) if row["name"] != "still" else (row["side"],):
            of[name] = of.get(name, 0) + row["count"]
    if not numbers:
        return Text("No image failed before or after.")
    order = sorted(numbers.items(), key=lambda item: (-item[1].get("new", 0), item[0]))
    rows = [
        [stage, reason, *(f"{of.get(n, 0):,}" for n in _FAILURES)]
        for (stage, reason), of in order[:REASONS]
    ]
    more = f": {len(rows)} of {len(numbers)} reasons; counts.parquet has all of them"
    caption = "Failures by stage and reason, most new ones first"
    header = ("stage", "reason", *_FAILURES)
    return Table(caption + (more if len(numbers) > len(rows) else ""), header, rows)


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
        forms = {"p (Holm)": lambda e: p_text(e.value)}
        yield f.table(caption, "class", by("cls", classes), columns, forms=forms)
    edges = np.linspace(0, 1, _BARS + 1)
    pairs = metrics.distributions(counts)
    for cls in classes:
        shares = {}
        for side, of in zip(("before", "after"), pairs[metrics.ALL, cls], strict=True):
            bars = of.images[1:].reshape(_BARS, metrics.BINS // _BARS).sum(axis=1)
            shares[side] = bars / max(of.count, 1)
        peaks = ", ".join(f"{n} the most common σ is about {edges[s.argmax()] + 0.5 / _BARS:.2f}"
                          for n, s in shares.items() if s.any())  # fmt: skip
        about = f"Histograms of σ of {cls} over all images, before and after; {peaks or 'empty'}."
        caption = f"{cls}: share of all images by coverage, where it is above 0"
        yield Plot(caption, step_plot(shares, edges, "coverage σ", "share of all images"), about)


def p_text(p: float | None) -> str:
    """Return a p-value as text.

    >>> p_text(0.25), p_text(1e-9), p_text(None)
    ('0.250', '< 0.001', 'absent')
    """
    if p is None:
        return "absent"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _features(f: Figures, c: Comparison) -> Iterator[Text | Table]:
    if not len(c.golden):
        yield Text("No image is in both snapshots, so there are no golden images.")
        return
    classes = metrics.classes_of(c.counts)
    rows: Names = {
        "1 − Pearson of old and new feature": {"name": "drift_features"},
        "share with another feature": {"name": "features_changed"},
        "… of those with the same content": {
            "name": "features_changed",
            "setting": metrics.SAME_CONTENT,
        },
        **{f"|Δσ| of {cls}": {"name": "coverage_change", "cls": cls} for cls in classes},
    }
    yield f.table("Means over golden images", "", rows, {"mean": {}}, units="images")
    cells = []
    for image in c.golden.to_pylist():
        shares = {cls: abs(image[coverage_column(cls)]) for cls in classes}
        cls = max(shares, key=lambda c: shares[c], default="")
        distance, change = image["distance"], shares.get(cls, 0.0)
        if distance or change:
            text = "absent" if distance is None else f"{distance:.4f}"
            content = "changed" if image["new_content"] else "the same"
            row = [image["uri"], text, f"{change:.3f} {cls}", content]
            cells.append(((-(distance or 0), -change, image["uri"]), row))
    if not cells:
        yield Text("No golden image changed its feature or its coverage.")
        return
    worst = [row for _, row in sorted(cells)[:WORST]]
    header = ("image", "1 − Pearson", "largest |Δσ|", "content")
    yield Table(f"The {len(worst)} golden images that changed most", header, worst)


def _recommendations(f: Figures, c: Comparison) -> Iterator[Text | Table | Plot]:
    keys = [key for key in f.by_key if key.name == "topk_overlap"]
    if not keys:
        yield Text("Without golden images there are no recommendations to compare.")
        return
    k = max(key.k for key in keys)
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
    names = {f"overlap@{k}": "topk_overlap", f"average overlap@{k}": "average_overlap"}
    columns: Names = {words: {"name": name} for words, name in names.items()}
    yield f.table("Overlap of recommendations", "vectors", rows, columns, units="queries")
    overlap_of: dict[str, dict[str, float]] = {}
    for row in c.counts.filter(pc.equal(c.counts["name"], "topk_overlap")).to_pylist():
        if row["value"] is not None:
            overlap_of.setdefault(row["image_id"], {})[row["setting"]] = row["value"]
    edges = np.linspace(0, 1 + 1 / k, k + 2) - 0.5 / k
    shares = {}
    for setting in (WHOLE, REGION):
        if values := [of[setting] for of in overlap_of.values() if setting in of]:
            shares[setting] = np.histogram(values, edges)[0] / len(values)
    about = "; ".join(f"{s}: {share[-1]:.0%} of queries kept all" for s, share in shares.items())
    svg = step_plot(shares, edges, f"overlap@{k}", "share of queries")
    yield Plot("Queries by overlap", svg, f"Histograms of overlap. {about}.")
    uris = dict(zip(*(c.golden[n].to_pylist() for n in ("image_id", "uri")), strict=True))
    less = [i for i, of in overlap_of.items() if min(of.values()) < 1]
    if less:
        order = sorted(less, key=lambda i: (overlap_of[i].get(WHOLE, 1), uris[i]))[:WORST]
        cells = [
            [uris[i], *(_overlap(overlap_of[i].get(s)) for s in (WHOLE, REGION))] for i in order
        ]
        yield Table(
            f"The {len(cells)} golden images with the least overlap",
            ("image", WHOLE, REGION),
            cells,
        )


def _overlap(value: float | None) -> str:
    return "absent" if value is None else f"{value:.2f}"


def _count(estimate: Estimate) -> str:
    return f"{estimate.value or 0:,.0f}"
