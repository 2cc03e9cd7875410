"""What stages cost and why images failed, on its way through the data into `RunStats`.

A row carries what was spent on it and on rows beside it that carry nothing: usually the first of a
batch has all of the batch's. So sums over rows are exact however batches are cut and joined, and
what a task had spent whose worker died is not in them, for its rows are made again.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from segrec_batch.pipeline.stage_schema import COST

STAGES = ("read", "decode", "segment", "describe", "write")
MOST = 10  # reasons that are told apart
OTHERS = "others"
READ = "read: "
"""How labels of failures of the stage `read` begin: of those that say nothing of the image."""

_WIDTH = 60  # characters of a reason
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

Cost = dict[str, Any]


def total(costs: Iterable[Mapping[str, Any] | None]) -> Cost:
    """The sum of some costs, with all fields of COST."""
    carried = [cost for cost in costs if cost]
    return {field.name: sum(cost[field.name] for cost in carried) for field in COST}


def charge(rows: pa.Table, **cost: float) -> pa.Table:
    """Rows, one at least, of which the first carries some more: fields of COST."""
    costs = rows["cost"].to_pylist()
    more = dict.fromkeys(COST.names, 0) | cost
    costs[0] = total([costs[0], more])
    column = rows.schema.get_field_index("cost")
    return rows.set_column(column, rows.schema.field(column), pa.array(costs, COST))


class Stopwatch:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since this was last called."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


class Occupancy:
    """When something with calls was busy, and when it had to wait for the next; in any threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._watch: Stopwatch | None = None  # there is nothing to wait for before the first call

    def enter(self) -> float:
        """A call begins; the seconds in which there was none."""
        with self._lock:
            self._calls += 1
            self._watch = self._watch or Stopwatch()
            return self._watch.lap() if self._calls == 1 else 0.0

    def leave(self) -> float:
        """A call ends; the seconds in which there was any, less those that others were given."""
        with self._lock:
            assert self._watch  # noqa: S101 - somebody entered
            self._calls -= 1
            return self._watch.lap()


def label(stage: str, reason: str) -> str:
    """A failure as one of few: its stage, and its reason to the first colon without its numbers.

    >>> label("decode", "50000×40000 pixels are too many"), label("read", "OSError: a.jpg: gone")
    ('decode: N×N pixels are too many', 'read: OSError')
    """
    words = _NUMBER.sub("N", reason.partition(":")[0]).strip()
    return f"{stage}: {words[:_WIDTH]}"


def reasons(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Failed rows, counted by label: entries of REASONS."""
    counts = Counter(label(row["stage"], row["reason"]) for row in rows)
    return [{"label": name, "images": count} for name, count in counts.items()]


def most_frequent(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent labels, most frequent first, and the sum of the others where there are any.

    >>> list(most_frequent({f"{i}": i for i in range(1, 13)}).items())[-3:]
    [('4', 4), ('3', 3), ('others', 3)]
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in ordered[MOST:])
    return dict(ordered[:MOST]) | ({OTHERS: others} if others else {})
