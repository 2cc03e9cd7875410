"""The metric values of a retrieval report by key, and the tables and curves that show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.items import Table
from segrec_batch.evaluation.plots import SERIES, Line
from segrec_batch.evaluation.retrieval.counts import (
    Floats,
    Rankings,
    evaluated_queries,
    read_rankings,
)
from segrec_batch.evaluation.retrieval.measures import measure
from segrec_batch.evaluation.retrieval.methods import parse_method
from segrec_batch.evaluation.retrieval.settings import PLAIN, Setting
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key

Point = Mapping[str, Any]
"""Fields of a Key, of which `setting` is a Setting."""


@dataclass(frozen=True)
class Figures:
    """The metric values of a counts table.

    Attributes:
        measures: from which they follow.
        estimates: all values with their intervals.
        rankings: those under the plain setting.
        settings: all settings, sorted.
        outside: number of queries without a relevant candidate.
        seed: of the intervals.
    """

    measures: Evaluation
    estimates: Sequence[Estimate]
    rankings: Sequence[Rankings]
    settings: Sequence[Setting]
    outside: int
    seed: int

    @classmethod
    def of(cls, counts: pa.Table, seed: int) -> "Figures":
        """Return the values of a counts table.

        Raises:
            InputError: for another table, for a method without rankings under the plain setting,
                and if no query has a relevant candidate.
        """
        rankings = read_rankings(counts)
        plain = [r for r in rankings if r.setting == PLAIN]
        part = evaluated_queries(rankings)
        if not part.any():
            raise InputError("no query has a relevant candidate")
        missing = {r.method for r in rankings} - {r.method for r in plain}
        if missing:
            raise InputError(f"not judged without a filter: {', '.join(sorted(missing))}")
        measures = measure(rankings)
        settings = sorted({r.setting for r in rankings}, key=lambda s: s.sort_key)
        return cls(
            measures, measures.estimates(seed=seed), plain, settings, int((~part).sum()), seed
        )

    @cached_property
    def components(self) -> dict[int, str]:
        """The methods that compare the first values of vectors, by their number."""
        lengths = {
            r.method: parse_method(r.method).length for r in self.rankings if "@" in r.method
        }
        return {d: m for m, d in sorted(lengths.items(), key=lambda item: item[1])}

    @cached_property
    def methods(self) -> list[str]:
        """The methods in the order of the counts, without those of `components`."""
        return [r.method for r in self.rankings if r.method not in self.components.values()]

    @cached_property
    def ranked(self) -> list[str]:
        """The methods by mAP, the best first."""
        return sorted(
            self.methods, key=lambda m: -self.values([{"name": "map", "method": m}])[0, 0]
        )

    @property
    def drawn(self) -> list[str]:
        """The best methods, as many as there are colours, in their order."""
        return [m for m in self.methods if m in self.ranked[:SERIES]]

    @cached_property
    def classes(self) -> list[str]:
        """The classes of the queries, sorted."""
        return sorted({key.cls for key in self._by_key} - {""})

    def __call__(self, point: Point) -> Estimate | None:
        """Return the value at a point, None if the method was not run under the setting."""
        setting = point.get("setting", PLAIN).name
        return self._by_key.get(Key(**{**point, "setting": setting}))

    def values(self, points: Sequence[Point]) -> Floats:
        """Return value, low and high at some points, NaN where there is none: (3, points)."""
        estimates = [self(point) for point in points]
        rows = [(e.value, e.low, e.high) if e else (None,) * 3 for e in estimates]
        return np.array(rows, float).reshape(-1, 3).T

    @cached_property
    def _by_key(self) -> dict[Key, Estimate]:
        return {e.key: e for e in self.estimates}

    def table(
        self,
        caption: str,
        corner: str,
        rows: Mapping[str, Point],
        columns: Mapping[str, Point],
        missing: str = "not run",
    ) -> Table:
        """Return a table of the values at the points of rows and columns together."""
        cells = [
            [n, *(self({**r, **c}) or missing for c in columns.values())] for n, r in rows.items()
        ]
        return Table(caption, [corner, *columns], cells)

    def by_method(self, caption: str, columns: Mapping[str, Point]) -> Table:
        """Return a table with a row for each method."""
        return self.table(caption, "method", {m: {"method": m} for m in self.methods}, columns)

    def line(self, x: ArrayLike, points: Sequence[Point], level: Point | None = None) -> Line:
        """Return a curve through some points, and a dotted line at the value of `level`."""
        at = self(level) if level else None
        value, low, high = self.values(points)
        return Line(x, value, low, high, level=at.value if at else None)
