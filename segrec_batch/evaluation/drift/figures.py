"""Metric values of the drift report, computed from its counts.

Five of them are 0 where nothing changed and may have limits (`MEASURES`). Values over all images
have no interval; values over golden images have one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import kstwo

from segrec_batch.evaluation.drift.golden import REGION, WHOLE
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key, Measure, Sums, holm

BINS = 1000  # of σ > 0: bin i is (i - 1)/1000 < σ <= i/1000; bin 0 is σ = 0
MEASURES = {
    "failures": "images that fail now and did not before, as a share of all listed images",
    "gone": "images that no longer exist, as a share of those before",
    "coverage": "largest Kolmogorov–Smirnov statistic of σ over the classes, all images",
    "features": "mean of 1 − Pearson of the old and the new feature, golden images",
    "overlap": "1 − mean overlap of recommendations, golden images",
}
"""Measures of drift, which may have limits: the metric `drift_NAME` and its definition."""

ALL, BOTH, NEW = "all images", "images in both", "new images against all before"
SIDES = ("before", "after")
_BEFORE, _AFTER = ("gone", "changed", "unchanged"), ("new", "changed", "unchanged")
POPULATIONS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    ALL: (_BEFORE, _AFTER),
    BOTH: (("changed", "unchanged"), ("changed", "unchanged")),
    NEW: (_BEFORE, ("new",)),
}
"""Compared images of the older and of the newer snapshot, by `name` in the counts."""
SAME_CONTENT = "unchanged content"


def figures(counts: pa.Table) -> list[Estimate]:
    """Return the values over all images of the two snapshots."""
    coverage = list(_coverage(counts))
    ks = [e for e in coverage if e.key.name == "coverage_ks"]
    known = [e.value for e in ks if e.key.setting == ALL and e.value is not None]
    units = max((e.units for e in ks), default=0)
    drift = Estimate(Key("drift_coverage"), max(known, default=None), None, None, units)
    return [*_totals(counts), drift, *coverage]


def _totals(counts: pa.Table) -> Iterator[Estimate]:
    """Yield the numbers of images and failures, and the shares of new failures and gone images."""
    sums = counts.group_by(["what", "side", "name"]).aggregate([("count", "sum")])
    numbers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in sums.to_pylist():
        numbers[row["what"], row["side"]][row["name"]] = row["count_sum"] or 0
    images = numbers["images", ""]
    old, failures = (numbers["failures", side] for side in SIDES)
    before, after = (sum(images[name] for name in names) for names in POPULATIONS[ALL])
    listed = after + failures.total() - numbers["stale", "after"].total()
    for name, part, whole in (
        ("drift_failures", failures["new"], listed), ("drift_gone", images["gone"], before),
    ):  # fmt: skip
        yield Estimate(Key(name), part / whole if whole else None, None, None, whole)
    for name, by_setting in (
        ("images", {"before": before, "after": after,
                    **{n: images[n] for n in ("new", "gone", "changed", "unchanged")}}),
        ("failures", {"before": old.total(), "after": failures.total(), "new": failures["new"],
                      "mended": old["mended"], "gone": old["gone"]}),
    ):  # fmt: skip
        for setting, n in by_setting.items():
            yield Estimate(Key(name, setting=setting), float(n), None, None, n)


def classes_of(counts: pa.Table) -> list[str]:
    """Return the sorted names of the classes with coverage."""
    return sorted(counts.filter(pc.field("what") == "coverage")["class"].unique().to_pylist())


def histograms(counts: pa.Table, population: str, cls: str) -> tuple[NDArray[np.int64], Sums]:
    """Return the coverage of a class, before and after, in one of POPULATIONS.

    Returns:
        The number of images in each bin, (2, BINS + 1), and the sum of their σ, (2,).
    """
    images, totals = np.zeros((2, BINS + 1), np.int64), np.zeros(2)
    of_class = (pc.field("what") == "coverage") & (pc.field("class") == cls)
    for i, names in enumerate(POPULATIONS[population]):
        of_side = (pc.field("side") == SIDES[i]) & pc.field("name").isin(names)
        rows = counts.filter(of_class & of_side)
        np.add.at(images[i], rows["bin"].to_numpy(), rows["count"].to_numpy())
        totals[i] = rows["value"].to_numpy().sum()
    return images, totals


def ks_statistic(before: NDArray[np.int64], after: NDArray[np.int64]) -> float | None:
    """Return the largest difference of the cumulative shares of two histograms, in [0, 1].

    That is the two-sample Kolmogorov–Smirnov statistic of σ rounded up to 1/1000, and at most that
    of σ itself. None if a histogram has no images.
    """
    if not before.any() or not after.any():
        return None
    gap = np.cumsum(before) / before.sum() - np.cumsum(after) / after.sum()
    return float(np.abs(gap).max())


def ks_p_value(before: NDArray[np.int64], after: NDArray[np.int64]) -> float | None:
    """Return the asymptotic p-value of `ks_statistic`, as scipy.stats.ks_2samp computes it.

    None if a histogram has no images or both have one.
    """
    statistic = ks_statistic(before, after)
    if statistic is None:
        return None
    n, m = int(before.sum()), int(after.sum())
    size = round(n * m / (n + m))
    return float(kstwo.sf(statistic, size)) if size else None


def _coverage(counts: pa.Table) -> Iterator[Estimate]:
    """Yield mean, share, KS statistic and p-values of σ by population and class."""
    classes = classes_of(counts)
    for population in POPULATIONS:
        results = [histograms(counts, population, cls) for cls in classes]
        p_values = [ks_p_value(*images) for images, _ in results]
        corrected = holm(np.array(p_values, float))
        for cls, (images, totals), p, p_holm in zip(
            classes, results, p_values, corrected, strict=True
        ):
            n = [int(count) for count in images.sum(axis=1)]
            present = images[:, 1:].sum(axis=1)
            for name, sums in (("coverage_mean", totals), ("coverage_share", present)):
                for i, side in enumerate(SIDES):
                    key = Key(name, setting=f"{population}, {side}", cls=cls)
                    value = float(sums[i] / n[i]) if n[i] else None
                    yield Estimate(key, value, None, None, n[i])
            for name, value in (
                ("coverage_ks", ks_statistic(*images)),
                ("coverage_ks_p", p),
                ("coverage_ks_p_holm", None if np.isnan(p_holm) else float(p_holm)),
            ):
                yield Estimate(Key(name, setting=population, cls=cls), value, None, None, sum(n))


def evaluate(counts: pa.Table) -> list[Evaluation]:
    """Return the measures over golden images, which are the units."""
    rows = counts.filter(pc.field("what") == "golden").to_pylist()
    units = sorted({row["image_id"] for row in rows})
    place = {name: i for i, name in enumerate(units)}
    columns: dict[Key, Sums] = defaultdict(lambda: np.full(len(units), np.nan))
    regions: dict[Key, Sums] = defaultdict(lambda: np.full(len(units), np.nan))
    for row in rows:
        key = Key(row["name"], setting=row["setting"], cls=row["class"], k=row["k"])
        value = np.nan if row["value"] is None else row["value"]
        columns[key][place[row["image_id"]]] = value
        if row["setting"] == REGION:  # an image has one dominant class
            regions[replace(key, cls="")][place[row["image_id"]]] = value
    names = ("feature_distance", "feature_changed", "content_changed")
    distance, changed, content = (columns[Key(name)] for name in names)
    whole = [v for key, v in columns.items() if (key.name, key.setting) == ("topk_overlap", WHOLE)]
    measures = {
        Key("drift_features"): Measure.of(distance),
        Key("drift_overlap"): Measure.of(1 - whole[0] if whole else np.full(len(units), np.nan)),
        Key("features_changed"): Measure.of(changed),
        Key("features_changed", setting=SAME_CONTENT): Measure.of(changed, content == 0),
    }
    for key, values in {**columns, **regions}.items():
        if key.name in ("coverage_change", "topk_overlap", "average_overlap"):
            measures[key] = Measure.of(np.abs(values))
    return [Evaluation(tuple(units), measures)]
