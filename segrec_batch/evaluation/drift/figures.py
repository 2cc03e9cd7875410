"""Metric values of the drift report, computed from its counts.

Five of them are 0 where nothing changed and may have limits (`MEASURES`). Values over all images
have no interval; values over golden images have one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import kstwo

from segrec_batch.evaluation.drift.golden import REGION, WHOLE
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key, Measure, holm

BINS = 1000  # of σ > 0: bin i is (i - 1)/1000 < σ <= i/1000; bin 0 is σ = 0
COUNTS = pa.schema([
    # images, failures, coverage: all rows; stale: images that are failures too; golden: a value of
    # one golden image
    pa.field("what", pa.string(), nullable=False),
    # images, coverage: new, gone, changed, unchanged; failures: new, still, mended (indexed now),
    # gone; stale: stale; golden: metric
    pa.field("name", pa.string(), nullable=False),
    pa.field("side", pa.string(), nullable=False),  # before, after; empty for images
    pa.field("class", pa.string(), nullable=False),
    pa.field("stage", pa.string(), nullable=False),  # of failures
    pa.field("reason", pa.string(), nullable=False),
    pa.field("image_id", pa.string(), nullable=False),  # of golden images
    pa.field("setting", pa.string(), nullable=False),  # of an overlap: compared vectors
    pa.field("k", pa.int32(), nullable=False),  # of an overlap, else 0
    pa.field("bin", pa.int32()),  # of coverage
    pa.field("count", pa.int64()),  # images or failures
    pa.field("value", pa.float64()),  # coverage: sum of σ in the bin; golden: metric value
])  # fmt: skip
"""Columns of `counts.parquet`."""

MEASURES = {
    "failures": "images that fail now and did not before, as a share of all listed images",
    "gone": "images that no longer exist, as a share of those before",
    "coverage": "largest Kolmogorov–Smirnov statistic of σ over the classes, all images",
    "features": "mean of 1 − Pearson of the old and the new feature, golden images",
    "overlap": "1 − mean overlap of recommendations, golden images",
}
"""Measures of drift, which may have limits: the metric `drift_NAME` and its definition."""

ALL, BOTH, NEW = "all images", "images in both", "new images against all before"
_BEFORE, _AFTER = ("gone", "changed", "unchanged"), ("new", "changed", "unchanged")
POPULATIONS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    ALL: (_BEFORE, _AFTER),
    BOTH: (("changed", "unchanged"), ("changed", "unchanged")),
    NEW: (_BEFORE, ("new",)),
}
"""Compared images of the older and of the newer snapshot, by `name` in the counts."""
SAME_CONTENT = "unchanged content"


def as_counts(what: str, rows: pa.Table) -> pa.Table:
    """Return rows as COUNTS; missing texts are empty, missing numbers NULL, a missing k is 0."""
    columns = {"what": pa.array([what] * len(rows), pa.string())}
    columns |= dict(zip(rows.column_names, rows.columns, strict=True))
    for field in COUNTS:
        default = "" if field.type == pa.string() else 0 if field.name == "k" else None
        column = columns.get(field.name, pa.array([default] * len(rows), field.type))
        columns[field.name] = column.cast(field.type)
    return pa.table([columns[name] for name in COUNTS.names], schema=COUNTS)


def golden_counts(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return COUNTS of golden images: name, image_id, value (or None), class, setting, k."""
    default = {"class": "", "setting": "", "k": 0}
    names = ("name", "image_id", "value", "class", "setting", "k")
    schema = pa.schema([COUNTS.field(name) for name in names])
    return as_counts("golden", pa.Table.from_pylist([{**default, **r} for r in rows], schema))


def _select(counts: pa.Table, **fields: str) -> pa.Table:
    for name, value in fields.items():
        counts = counts.filter(pc.equal(counts[name], value))
    return counts


def figures(counts: pa.Table) -> list[Estimate]:
    """Return the values over all images of the two snapshots."""
    return [*_totals(counts), *_coverage(counts)]


def _totals(counts: pa.Table) -> Iterator[Estimate]:
    images = _number_by_name(counts, "images", "")
    old = _number_by_name(counts, "failures", "before")
    failures = _number_by_name(counts, "failures", "after")
    before, after = images.total() - images["new"], images.total() - images["gone"]
    both = _number_by_name(counts, "stale", "after").total()  # images that are failures too
    listed = after + failures.total() - both
    for name, part, whole in (
        ("drift_failures", failures["new"], listed), ("drift_gone", images["gone"], before),
    ):  # fmt: skip
        yield Estimate(Key(name), part / whole if whole else None, None, None, whole)
    numbers = {"before": before, "after": after}
    numbers |= {n: images[n] for n in ("new", "gone", "changed", "unchanged")}
    failed = {"before": old.total(), "after": failures.total(), "new": failures["new"]}
    failed |= {n: old[n] for n in ("mended", "gone")}
    for name, by_setting in (("images", numbers), ("failures", failed)):
        for setting, n in by_setting.items():
            yield Estimate(Key(name, setting=setting), float(n), None, None, n)


def _number_by_name(counts: pa.Table, what: str, side: str) -> Counter[str]:
    """Return the number of images or failures of a side by `name`."""
    numbers: Counter[str] = Counter()
    for row in _select(counts, what=what, side=side).select(["name", "count"]).to_pylist():
        numbers[row["name"]] += row["count"]
    return numbers


def classes_of(counts: pa.Table) -> list[str]:
    """Return the sorted names of the classes with coverage."""
    return sorted(_select(counts, what="coverage")["class"].unique().to_pylist())


@dataclass(frozen=True)
class Distribution:
    """Images by coverage of a class: their number in each bin, (1001,), and the sum of all σ."""

    images: NDArray[np.int64]
    total: float

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.images.sum())

    @property
    def mean(self) -> float | None:
        """Mean σ over all images, with the class or without."""
        return self.total / self.count if self.count else None

    @property
    def share(self) -> float | None:
        """Share of the images that have the class, σ > 0."""
        return 1 - int(self.images[0]) / self.count if self.count else None


def distributions(counts: pa.Table) -> dict[tuple[str, str], tuple[Distribution, Distribution]]:
    """Return the coverage before and after, by population and class."""
    return {
        (population, cls): (
            _distribution(counts, cls, "before", before),
            _distribution(counts, cls, "after", after),
        )
        for population, (before, after) in POPULATIONS.items()
        for cls in classes_of(counts)
    }


def _distribution(counts: pa.Table, cls: str, side: str, names: Sequence[str]) -> Distribution:
    rows = _select(counts, what="coverage", side=side, **{"class": cls})
    rows = rows.filter(pc.is_in(rows["name"], pa.array(names)))
    images = np.zeros(BINS + 1, np.int64)
    np.add.at(images, rows["bin"].to_numpy(), rows["count"].to_numpy())
    return Distribution(images, float(rows["value"].to_numpy().sum()))


def ks_statistic(a: Distribution, b: Distribution) -> float | None:
    """Return the largest difference of the cumulative shares at the edges of bins, in [0, 1].

    That is the two-sample Kolmogorov–Smirnov statistic of σ rounded up to 1/1000, and at most that
    of σ itself. None if one has no images.
    """
    if not a.count or not b.count:
        return None
    gap = np.cumsum(a.images) / a.count - np.cumsum(b.images) / b.count
    return float(np.abs(gap).max())


def ks_p_value(a: Distribution, b: Distribution) -> float | None:
    """Return the asymptotic p-value of `ks_statistic`, as scipy.stats.ks_2samp computes it.

    None if one has no images or both have one.
    """
    statistic = ks_statistic(a, b)
    if statistic is None:
        return None
    size = round(a.count * b.count / (a.count + b.count))
    return float(kstwo.sf(statistic, size)) if size else None


def _coverage(counts: pa.Table) -> Iterator[Estimate]:
    pairs = distributions(counts)
    statistics = [
        ks_statistic(*pair) for (population, _), pair in pairs.items() if population == ALL
    ]
    known = [s for s in statistics if s is not None]
    units = max((a.count + b.count for a, b in pairs.values()), default=0)
    yield Estimate(Key("drift_coverage"), max(known, default=None), None, None, units)
    for population in POPULATIONS:
        some = {cls: pair for (p, cls), pair in pairs.items() if p == population}
        corrected = holm(np.array([ks_p_value(*pair) for pair in some.values()], float))
        for (cls, (before, after)), p in zip(some.items(), corrected, strict=True):
            both = before.count + after.count
            for name, side, value, n in (
                ("coverage_mean", "before", before.mean, before.count),
                ("coverage_mean", "after", after.mean, after.count),
                ("coverage_share", "before", before.share, before.count),
                ("coverage_share", "after", after.share, after.count),
                ("coverage_ks", "", ks_statistic(before, after), both),
                ("coverage_ks_p", "", ks_p_value(before, after), both),
                ("coverage_ks_p_holm", "", None if np.isnan(p) else float(p), both),
            ):
                setting = f"{population}, {side}" if side else population
                yield Estimate(Key(name, setting=setting, cls=cls), value, None, None, n)


def evaluate(counts: pa.Table) -> list[Evaluation]:
    """Return the measures over golden images, which are the units."""
    rows = _select(counts, what="golden").to_pylist()
    units = tuple(sorted({row["image_id"] for row in rows}))
    place = {name: i for i, name in enumerate(units)}
    columns: dict[Key, NDArray[np.float64]] = {}
    for row in rows:
        key = Key(row["name"], setting=row["setting"], cls=row["class"], k=row["k"])
        column = columns.setdefault(key, np.full(len(units), np.nan))
        column[place[row["image_id"]]] = np.nan if row["value"] is None else row["value"]
    return [Evaluation(units, dict(_golden(columns, np.full(len(units), np.nan))))]


def _golden(
    columns: Mapping[Key, NDArray[np.float64]], unknown: NDArray[np.float64]
) -> Iterator[tuple[Key, Measure]]:
    distance, new = (columns.get(Key(f"feature_{x}"), unknown) for x in ("distance", "changed"))
    same_content = columns.get(Key("content_changed"), unknown) == 0
    whole = [v for k, v in columns.items() if (k.name, k.setting) == ("topk_overlap", WHOLE)]
    yield Key("drift_features"), Measure.of(distance)
    yield Key("drift_overlap"), Measure.of(1 - whole[0] if whole else unknown)
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
