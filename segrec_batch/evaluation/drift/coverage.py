"""Distributions of coverage σ before and after, and how far they are from each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import kstwo

BINS = 1000  # 0 is σ = 0, bin i is (i - 1)/1000 < σ <= i/1000

ALL, BOTH, NEW = "all images", "images in both", "new images against all before"
POPULATIONS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    ALL: (("gone", "changed", "unchanged"), ("new", "changed", "unchanged")),
    BOTH: (("changed", "unchanged"), ("changed", "unchanged")),
    NEW: (("gone", "changed", "unchanged"), ("new",)),
}
"""Which fates are taken of the older snapshot, and which of the newer one."""


@dataclass(frozen=True)
class Distribution:
    """Images by the coverage of a class: (1001,) how many in each bin, and the sum of all σ."""

    images: NDArray[np.int64]
    total: float

    @property
    def count(self) -> int:
        """How many images."""
        return int(self.images.sum())

    @property
    def mean(self) -> float | None:
        """Mean σ over all images, whether they have the class or not."""
        return self.total / self.count if self.count else None

    @property
    def share(self) -> float | None:
        """Share of the images that have the class, σ > 0."""
        return 1 - int(self.images[0]) / self.count if self.count else None


def distribution(counts: pa.Table, cls: str, side: str, fates: Sequence[str]) -> Distribution:
    """The images of some fates, as COUNTS rows tell them."""
    column = counts.column
    known = (
        pc.equal(column("what"), "coverage"), pc.equal(column("class"), cls),
        pc.equal(column("side"), side), pc.is_in(column("name"), pa.array(fates)),
    )  # fmt: skip
    wanted = known[0]
    for condition in known[1:]:
        wanted = pc.and_(wanted, condition)
    rows = counts.filter(wanted)
    images = np.zeros(BINS + 1, np.int64)
    np.add.at(images, rows["bin"].to_numpy(), rows["count"].to_numpy())
    return Distribution(images, float(rows["value"].to_numpy().sum()))


def ks_statistic(a: Distribution, b: Distribution) -> float | None:
    """The largest difference of the cumulative shares, at the edges of bins: in [0, 1].

    That is the two-sample Kolmogorov–Smirnov statistic of σ rounded up to 1/1000, and never above
    that of σ itself. None if one has no images.
    """
    if not a.count or not b.count:
        return None
    gap = np.cumsum(a.images) / a.count - np.cumsum(b.images) / b.count
    return float(np.abs(gap).max())


def ks_p_value(a: Distribution, b: Distribution) -> float | None:
    """How likely a statistic as large is of two independent samples of one distribution.

    Asymptotic, as scipy.stats.ks_2samp has it. None if one has no images or both
    have one.
    """
    statistic = ks_statistic(a, b)
    if statistic is None:
        return None
    size = round(a.count * b.count / (a.count + b.count))
    return float(kstwo.sf(statistic, size)) if size else None
