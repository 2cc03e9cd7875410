"""What the retrieval report has to say, before it is laid out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.plots import SERIES
from segrec_batch.evaluation.retrieval.conditions import NONE, in_order
from segrec_batch.evaluation.retrieval.measures import judged
from segrec_batch.evaluation.retrieval.rankings import Floats, Rankings, rankings, taking_part
from segrec_batch.evaluation.statistics import Estimate, Judged, Key

Columns = Sequence[tuple[str, str, int]]  # header, measure, k


@dataclass(frozen=True)
class Findings:
    """All figures of a counts table, by key; `unfiltered` are the rankings without a filter."""

    judged: Judged
    estimates: Sequence[Estimate]
    unfiltered: Sequence[Rankings]
    outside: int  # queries that have no relevant candidate
    seed: int

    @classmethod
    def of(cls, counts: pa.Table, seed: int) -> "Findings":
        """Raises InputError for what is not a counts table, for a method that was not judged
        without a filter, and if no query has a relevant candidate.
        """
        found = rankings(counts)
        unfiltered = [r for r in found if r.setting == NONE]
        part = taking_part(found)
        if not part.any():
            raise InputError("no query has a relevant candidate")
        missing = {r.method for r in found} - {r.method for r in unfiltered}
        if missing:
            raise InputError(f"not judged without a filter: {', '.join(sorted(missing))}")
        measured = judged(found)
        estimates = measured.estimates(seed=seed)
        return cls(measured, estimates, unfiltered, int((~part).sum()), seed)

    @cached_property
    def methods(self) -> list[str]:
        """In the order of the counts, but those of `cut`."""
        cut = set(self.cut.values())
        return [r.method for r in self.unfiltered if r.method not in cut]

    @cached_property
    def cut(self) -> dict[int, str]:
        """The methods NAME@D that compare the first D values of vectors, by D ascending."""
        found = (r.method.rpartition("@") for r in self.unfiltered)
        return dict(sorted((int(d), f"{name}@{d}") for name, at, d in found if at))

    @cached_property
    def ranked(self) -> list[str]:
        """The methods by mAP, the best first."""
        return sorted(self.methods, key=lambda m: -self.values("map", m, [NONE])[0, 0])

    @property
    def drawn(self) -> list[str]:
        """As many of the methods as curves can be told apart, the best, in their order."""
        return [m for m in self.methods if m in self.ranked[:SERIES]]

    @cached_property
    def settings(self) -> list[str]:
        """In order."""
        return in_order(key.setting for key in self._by_key)

    @cached_property
    def classes(self) -> list[str]:
        """Of the queries, by name."""
        return sorted({key.cls for key in self._by_key} - {""})

    def figure(
        self, name: str, method: str, setting: str = NONE, cls: str = "", k: int = 0
    ) -> Estimate | None:
        """None if the method was not run under this setting."""
        return self._by_key.get(Key(name, method, setting=setting, cls=cls, k=k))

    def cell(self, name: str, method: str, setting: str = NONE, k: int = 0) -> Estimate | str:
        """The same for a table."""
        return self.figure(name, method, setting, k=k) or "not run"

    def values(self, name: str, method: str, settings: Sequence[str], k: int = 0) -> Floats:
        """(3, settings) value, low and high, NaN where there is none."""
        found = [self.figure(name, method, setting, k=k) for setting in settings]
        rows = [(e.value, e.low, e.high) if e else (None,) * 3 for e in found]
        return np.array(rows, float).reshape(-1, 3).T

    @cached_property
    def _by_key(self) -> dict[Key, Estimate]:
        return {e.key: e for e in self.estimates}
