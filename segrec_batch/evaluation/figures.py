"""The tidy table of a report's metric values, over which tables and plots are declared."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.evaluation import plots
from segrec_batch.evaluation.items import Plot, Table, figure
from segrec_batch.evaluation.statistics import Estimate, Key

Fields = Mapping[str, Any]
"""Values of some fields of a `Key`."""
Names = Mapping[str, Fields]
"""Rows, columns or series of a table or plot: the fields that each selects, by its label."""
Row = list[Estimate | str]


def by(field: str, values: Iterable[str]) -> Names:
    """Return names that each select one value of a field."""
    return {value: {field: value} for value in values}


class Figures:
    """Estimates of a report by the fields of their keys.

    defaults: fields that hold wherever a query does not give them.
    """

    def __init__(self, estimates: Iterable[Estimate], **defaults: Any) -> None:
        self.by_key = {e.key: e for e in estimates}
        self.defaults = defaults

    def find(self, **fields: Any) -> Estimate | None:
        """Return the estimate with exactly these fields, or None."""
        return self.by_key.get(Key(**{**self.defaults, **fields}))

    def get(self, **fields: Any) -> Estimate:
        """Return the estimate with exactly these fields, an absent one if there is none."""
        key = Key(**{**self.defaults, **fields})
        return self.by_key.get(key, Estimate(key, None, None, None, 0))

    def distinct(self, field: str, **fields: Any) -> list[Any]:
        """Return the values of a field, in order, among the keys with these fields."""
        keys = (k for k in self.by_key if all(getattr(k, n) == v for n, v in fields.items()))
        return list(dict.fromkeys(getattr(key, field) for key in keys))

    def values(self, selection: Iterable[Fields]) -> NDArray[np.float64]:
        """Return (3, n): value, low and high of each selected estimate, NaN where absent."""
        rows = [(e.value, e.low, e.high) for e in (self.get(**fields) for fields in selection)]
        return np.array(rows, float).reshape(-1, 3).T

    def grid(self, rows: Names, columns: Names) -> dict[str, dict[str, Estimate]]:
        """Return the estimates by row and column; there is none where no key has these fields."""
        return {
            label: {
                name: estimate
                for name, of in columns.items()
                if (estimate := self.find(**{**fields, **of}))
            }
            for label, fields in rows.items()
        }

    def table(
        self,
        caption: str,
        corner: str,
        rows: Names,
        columns: Names,
        *,
        missing: str = "absent",
        forms: Mapping[str, Callable[[Estimate], str]] | None = None,
        units: str = "",
    ) -> Table:
        """Return a table with a cell for each row and column.

        missing: text of a cell without an estimate. forms: conversions to text by column. units:
        header of a last column with the largest number of units in the row, if not empty.
        """
        cells: list[Row] = []
        for label, estimates in self.grid(rows, columns).items():
            known: dict[str, Estimate | str] = {
                n: forms[n](e) if forms and n in forms else e for n, e in estimates.items()
            }
            row: Row = [label, *(known.get(name, missing) for name in columns)]
            if units:
                row.append(str(max((e.units for e in estimates.values()), default=0)))
            cells.append(row)
        header = (corner, *columns, *([units] if units else []))
        return Table(caption, header, cells)

    def dot_plot(
        self, caption: str, x: str, rows: Names, series: Names, description: str = ""
    ) -> Plot:
        """Return a plot with a row for each of `rows` and a mark in it for each of `series`."""
        return dots(caption, x, self.grid(rows, series), description)

    def line(self, points: Mapping[float, Fields], **fields: Any) -> plots.Line:
        """Return a line through the values of these points, by x, with their intervals."""
        selection = [{**fields, **of} for of in points.values()]
        return plots.Line(list(points), *self.values(selection))

    def heat_map(self, caption: str, rows: Names, columns: Names, y: str, x: str) -> Plot:
        """Return a heat map with a cell for each row and column."""
        cells = np.stack([
            self.values({**fields, **of} for of in columns.values())[0] for fields in rows.values()
        ])  # fmt: skip
        about = f"A row for each {y}, a column for each {x}; the table has the values."
        return Plot(caption, plots.heat_map(cells, list(rows), list(columns), y, x), about)


def dots(
    caption: str, x: str, rows: Mapping[str, Mapping[str, Estimate]], description: str = ""
) -> Plot:
    """Return a dot plot of estimates by row and series; by default it is described by them."""
    several = len({name for row in rows.values() for name in row}) > 1
    text = "; ".join(
        f"{label}: "
        + ", ".join(f"{name} {_short(e)}" if several else _short(e) for name, e in row.items())
        for label, row in rows.items()
    )
    return Plot(caption, plots.dot_plot(rows, x), description or f"{caption}. {text}")


def _short(estimate: Estimate) -> str:
    return figure(estimate, interval=False)
