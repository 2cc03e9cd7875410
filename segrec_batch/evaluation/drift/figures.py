"""The figures of a drift report, from its counts alone.

Five of them are 0 where nothing changed and have thresholds (`MEASURES`). What is counted over all
images has no interval; what is judged on golden images has one.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segrec_batch.evaluation.drift.coverage import (
    ALL,
    POPULATIONS,
    Distribution,
    distribution,
    ks_p_value,
    ks_statistic,
)
from segrec_batch.evaluation.drift.overlap import REGION, WHOLE
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key, Measure, holm

SAME_CONTENT = "unchanged content"
Columns = dict[Key, NDArray[np.float64]]

MEASURES = {
    "failures": "images that fail now and did not before, of all that were listed",
    "gone": "images that are not there any more, of those before",
    "coverage": "the largest Kolmogorov–Smirnov statistic of σ over the classes, all images",
    "features": "mean of 1 − Pearson of the old and the new feature, golden images",
    "overlap": "1 − mean overlap of what is recommended, golden images",
}
"""What drift is told by, and thresholds are set for: the figure `drift_NAME` in words."""


def figures(counts: pa.Table) -> list[Estimate]:
    """What is counted over all images of the two snapshots."""
    return [*_totals(counts), *_coverage(counts)]


def _totals(counts: pa.Table) -> Iterator[Estimate]:
    images, failures = fates(counts, "images"), fates(counts, "failures", "after")
    mended = fates(counts, "failures", "before")
    before, after = images.total() - images["new"], images.total() - images["gone"]
    failed = failures.total()
    listed = after + failed - fates(counts, "stale", "after").total()  # which are both
    yield _share("drift_failures", failures["new"], listed)
    yield _share("drift_gone", images["gone"], before)
    numbers = {"before": before, "after": after}
    numbers |= {name: images[name] for name in ("new", "gone", "changed", "unchanged")}
    yield from (_number("images", setting, n) for setting, n in numbers.items())
    numbers = {"before": mended.total(), "after": failed, "new": failures["new"]}
    numbers |= {name: mended[name] for name in ("mended", "gone")}
    yield from (_number("failures", setting, n) for setting, n in numbers.items())


def fates(counts: pa.Table, what: str, side: str = "") -> Counter[str]:
    """How many images, or failures of a side, had which fate."""
    rows = counts.filter(
        pc.and_(pc.equal(counts["what"], what), pc.equal(counts["side"], side))
    ).select(["name", "count"])
    found: Counter[str] = Counter()
    for row in rows.to_pylist():
        found[row["name"]] += row["count"]
    return found


def _share(name: str, part: int, whole: int) -> Estimate:
    return Estimate(Key(name), part / whole if whole else None, None, None, whole)


def _number(name: str, setting: str, n: int) -> Estimate:
    return Estimate(Key(name, setting=setting), float(n), None, None, n)


def classes_of(counts: pa.Table) -> list[str]:
    """The classes whose coverage was counted, by name."""
    rows = counts.filter(pc.equal(counts["what"], "coverage"))
    return sorted(rows["class"].unique().to_pylist())


def distributions(counts: pa.Table) -> Mapping[tuple[str, str], tuple[Distribution, Distribution]]:
    """The coverage before and after, by population and class."""
    return {
        (population, cls): (
            distribution(counts, cls, "before", before),
            distribution(counts, cls, "after", after),
        )
        for population, (before, after) in POPULATIONS.items()
        for cls in classes_of(counts)
    }


def _coverage(counts: pa.Table) -> Iterator[Estimate]:
    pairs = distributions(counts)
    largest = [ks_statistic(*pair) for (population, _), pair in pairs.items() if population == ALL]
    known = [s for s in largest if s is not None]
    units = max((a.count + b.count for a, b in pairs.values()), default=0)
    yield Estimate(Key("drift_coverage"), max(known, default=None), None, None, units)
    for population in POPULATIONS:
        mine = {cls: pair for (p, cls), pair in pairs.items() if p == population}
        corrected = holm(np.array([ks_p_value(*pair) for pair in mine.values()], float))
        for (cls, pair), p in zip(mine.items(), corrected, strict=True):
            yield from _of_class(population, cls, *pair, None if np.isnan(p) else float(p))


def _of_class(
    population: str, cls: str, before: Distribution, after: Distribution, corrected: float | None
) -> Iterator[Estimate]:
    both = before.count + after.count
    told = {
        ("coverage_mean", "before"): (before.mean, before.count),
        ("coverage_mean", "after"): (after.mean, after.count),
        ("coverage_share", "before"): (before.share, before.count),
        ("coverage_share", "after"): (after.share, after.count),
        ("coverage_ks", ""): (ks_statistic(before, after), both),
        ("coverage_ks_p", ""): (ks_p_value(before, after), both),
        ("coverage_ks_p_holm", ""): (corrected, both),
    }
    for (name, side), (value, units) in told.items():
        setting = ", ".join(filter(None, (population, side)))
        yield Estimate(Key(name, setting=setting, cls=cls), value, None, None, units)


def judge(counts: pa.Table) -> list[Evaluation]:
    """What is judged on the golden images, which are the units."""
    rows = counts.filter(pc.equal(counts["what"], "golden")).to_pylist()
    units = tuple(sorted({row["image_id"] for row in rows}))
    place = {name: i for i, name in enumerate(units)}
    columns: Columns = {}
    for row in rows:
        key = Key(row["name"], setting=row["setting"], cls=row["class"], k=row["k"])
        column = columns.setdefault(key, np.full(len(units), np.nan))
        column[place[row["image_id"]]] = np.nan if row["value"] is None else row["value"]
    return [Evaluation(units, dict(_of_golden(columns, len(units))))]


def _of_golden(columns: Columns, n: int) -> Iterator[tuple[Key, Measure]]:
    nothing = np.full(n, np.nan)
    distance, new = (columns.get(Key(f"feature_{x}"), nothing) for x in ("distance", "changed"))
    same_content = columns.get(Key("content_changed"), nothing) == 0
    whole = [v for k, v in columns.items() if (k.name, k.setting) == ("topk_overlap", WHOLE)]
    yield Key("drift_features"), Measure.of(distance)
    yield Key("drift_overlap"), Measure.of(1 - whole[0] if whole else nothing)
    yield Key("features_changed"), Measure.of(new)
    yield Key("features_changed", setting=SAME_CONTENT), Measure.of(new, same_content)
    for key, values in columns.items():
        if key.name == "coverage_change":
            yield key, Measure.of(np.abs(values))
        elif key.name.endswith("_overlap"):
            yield key, Measure.of(values)
    for key in dict.fromkeys(replace(k, cls="") for k in columns if k.setting == REGION):
        parts = [v for k, v in columns.items() if replace(k, cls="") == key]
        yield key, Measure.of(np.fmax.reduce(parts))  # an image has one dominant class
