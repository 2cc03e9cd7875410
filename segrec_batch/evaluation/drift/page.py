"""What the page of a drift report shows."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.compute as pc

from segrec_batch.evaluation.drift.coverage import ALL, BINS, NEW, POPULATIONS
from segrec_batch.evaluation.drift.figures import MEASURES, classes_of, distributions
from segrec_batch.evaluation.drift.page_golden import features, recommended
from segrec_batch.evaluation.drift.told import Found, Row, Told
from segrec_batch.evaluation.items import Plot, Section, Table, Text
from segrec_batch.evaluation.plots import step_plot
from segrec_batch.evaluation.statistics import Estimate, Key

REASONS = 30  # told on the page
_IMAGES = ("before", "after", "new", "gone", "changed", "unchanged")
_FAILURES = ("before", "after", "new", "mended", "gone")
_BARS = 40  # of a histogram: 25 bins each


def notice(told: Told) -> str:
    """What a reader has to know before all figures."""
    before, after = told.before, told.after
    parts = [after.spec.notice] if after.spec.notice else []
    if before.model_id != after.model_id:
        parts.append(
            f"Two models: {before.model_id} before, {after.model_id} after. Their features cannot "
            "be compared, so the drift of features is absent; coverage and recommendations can."
        )
    for spec, others, when in (
        (before.spec, after.spec, "before"), (after.spec, before.spec, "after"),
    ):  # fmt: skip
        alone = [c for c in spec.classes if c not in others.classes]
        if alone:
            parts.append(f"Only {when} there are the classes {', '.join(alone)}.")
    if told.remade:
        parts.append(
            f"Golden images with the same content and another feature: {told.remade}. The model, "
            "its arithmetic or the decoder has changed."
        )
    if told.missing:
        parts.append(f"Golden images that are not in both snapshots, left out: {told.missing}.")
    return " ".join(parts)


def sections(told: Told, estimates: Sequence[Estimate]) -> list[Section]:
    """The whole page."""
    found = {e.key: e for e in estimates}
    return [
        Section("Drift", [_summary(told, found)]),
        Section("Images and failures", [*_images(told, found), _failures(told)]),
        Section("Coverage", [*_coverage(told, found)]),
        Section("Features of golden images", [*features(told, found)]),
        Section("Recommendations for golden images", [*recommended(told, found)]),
    ]


def _summary(told: Told, found: Found) -> Table:
    limits = told.limits.most if told.limits else {}
    rows: list[Row] = []
    for name, words in MEASURES.items():
        estimate = found[Key(f"drift_{name}")]
        limit = limits.get(name)
        rows.append([name, estimate, _verdict(estimate.value, limit), words])
    header = ("measure", "value", "limit", "what it is")
    return Table("Drift, 0 where nothing changed", header, rows, told.split)


def _verdict(value: float | None, limit: float | None) -> str:
    if limit is None:
        return "none given"
    if value is None:
        return f"{limit:g}: not known"
    return f"{limit:g}: ✗ above" if value > limit else f"{limit:g}: ✓ within"


def _images(told: Told, found: Found) -> Iterator[Table]:
    def row(name: str, *settings: str) -> list[str]:
        values = (found[Key(name, setting=s)].value for s in settings)
        return [name, *(f"{v:,.0f}" for v in values if v is not None)]

    caption = "Images: changed ones have other bytes under the same name"
    yield Table(caption, ("", *_IMAGES), [row("images", *_IMAGES)], told.split)
    caption = "Failures: mended ones are indexed now"
    yield Table(caption, ("", *_FAILURES), [row("failures", *_FAILURES)], told.split)


def _failures(told: Told) -> Table | Text:
    rows = told.counts.filter(pc.equal(told.counts["what"], "failures")).to_pylist()
    tally: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        of = tally.setdefault((row["stage"], row["reason"]), {})
        for name in (row["side"], row["name"]) if row["name"] != "still" else (row["side"],):
            of[name] = of.get(name, 0) + row["count"]
    if not tally:
        return Text("No image failed before or after.")
    order = sorted(tally.items(), key=lambda item: (-item[1].get("new", 0), item[0]))
    cells = [
        [stage, reason, *(f"{of.get(n, 0):,}" for n in _FAILURES)]
        for (stage, reason), of in order[:REASONS]
    ]
    caption = "Failures by stage and reason, most new ones first"
    if len(tally) > len(cells):
        caption += f": {len(cells)} of {len(tally)} reasons; counts.parquet has the others"
    return Table(caption, ("stage", "reason", *_FAILURES), cells, told.split)


_KS = (
    "KS is the two-sample Kolmogorov–Smirnov statistic of σ rounded up to 1/1000: the largest "
    "difference, over all σ, between the shares of images that have at most that much of the class "
    "before and after. It is the size of the effect, 0 to 1, and what limits apply to: among "
    "millions of images p is tiny for differences that do not matter. p is asymptotic, for "
    "independent samples, and corrected for the number of classes (Holm). The two snapshots share "
    "most images, so that p is rather too large; only new images and those before are independent. "
    "All images were counted: there are no intervals."
)


def _coverage(told: Told, found: Found) -> Iterator[Text | Table | Plot]:
    classes = classes_of(told.counts)
    if not classes:
        yield Text("No class is in both snapshots.")
        return
    yield Text(_KS)
    for population in POPULATIONS:
        yield _coverage_table(told, found, classes, population)
    yield from _histograms(told, classes)


def _coverage_table(told: Told, found: Found, classes: Sequence[str], population: str) -> Table:
    def estimate(name: str, cls: str, *side: str) -> Estimate:
        return found[Key(name, setting=", ".join((population, *side)), cls=cls)]

    rows: list[Row] = [
        [
            cls,
            *(estimate("coverage_mean", cls, side) for side in ("before", "after")),
            *(estimate("coverage_share", cls, side) for side in ("before", "after")),
            estimate("coverage_ks", cls),
            p_text(estimate("coverage_ks_p_holm", cls).value),
        ]
        for cls in classes
    ]
    n = estimate("coverage_mean", classes[0], "before").units
    m = estimate("coverage_mean", classes[0], "after").units
    names = ("before", "new") if population == NEW else ("before", "after")
    header = ("class", *(f"mean σ, {n}" for n in names), *(f"have it, {n}" for n in names),
              "KS", "p (Holm)")  # fmt: skip
    return Table(f"{population}: {n:,} {names[0]}, {m:,} {names[1]}", header, rows, told.split)


def p_text(p: float | None) -> str:
    """A p-value in words.

    >>> p_text(0.25), p_text(1e-9), p_text(None)
    ('0.250', '< 0.001', 'absent')
    """
    if p is None:
        return "absent"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _histograms(told: Told, classes: Sequence[str]) -> Iterator[Plot]:
    edges = np.linspace(0, 1, _BARS + 1)
    pairs = distributions(told.counts)
    for cls in classes:
        shares = {}
        for name, of in zip(("before", "after"), pairs[ALL, cls], strict=True):
            bars = of.images[1:].reshape(_BARS, BINS // _BARS).sum(axis=1)
            shares[name] = bars / max(of.count, 1)
        caption = f"{cls}: share of all images by coverage, where it is above 0"
        peaks = ", ".join(f"{n} the most common σ is about {edges[s.argmax()] + 0.5 / _BARS:.2f}"
                          for n, s in shares.items() if s.any())  # fmt: skip
        about = f"Histograms of σ of {cls} over all images, before and after; {peaks or 'empty'}."
        plot = step_plot(shares, edges, "coverage σ", "share of all images")
        yield Plot(caption, plot, about, told.split)
