"""Costs of stages and reasons of failures, as columns of the rows that pass the stages.

The first row of a batch carries the cost of the whole batch, so sums over rows are exact however
batches are cut and joined. The cost of a task whose worker dies is lost with its rows, which
another task makes again.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from segrec_batch.pipeline.stage_schema import COST

STAGES = ("read", "decode", "segment", "describe", "write")
MOST = 10  # maximum number of labels that are counted separately
OTHERS = "others"

_WIDTH = 60  # maximum characters of a reason
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

Cost = dict[str, Any]


class FailureReason(NamedTuple):
    """A stage, and the reason of a failure without its details."""

    stage: str
    text: str

    @classmethod
    def of(cls, stage: str, reason: str) -> "FailureReason":
        """Return the reason to its first colon, without its numbers.

        >>> str(FailureReason.of("decode", "50000×40000 pixels are too many"))
        'decode: N×N pixels are too many'
        >>> str(FailureReason.of("read", "OSError: a.jpg: gone"))
        'read: OSError'
        """
        return cls(stage, _NUMBER.sub("N", reason.partition(":")[0]).strip()[:_WIDTH])

    def __str__(self) -> str:
        return f"{self.stage}: {self.text}"


def sum_costs(costs: Iterable[Mapping[str, Any] | None]) -> Cost:
    """Return the sum of costs, with all fields of COST."""
    carried = [cost for cost in costs if cost]
    return {field.name: sum(cost[field.name] for cost in carried) for field in COST}


def charge(rows: pa.Table, **cost: float) -> pa.Table:
    """Add fields of COST to the first of at least one row."""
    costs = rows["cost"].to_pylist()
    more = dict.fromkeys(COST.names, 0) | cost
    costs[0] = sum_costs([costs[0], more])
    column = rows.schema.get_field_index("cost")
    return rows.set_column(column, rows.schema.field(column), pa.array(costs, COST))


class Stopwatch:
    """A clock that measures laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last call."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


class Occupancy:
    """Busy and idle time of an object that several threads call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._watch: Stopwatch | None = None  # there is nothing to wait for before the first call

    def enter(self) -> float:
        """Begin a call; return the idle seconds before it."""
        with self._lock:
            self._calls += 1
            self._watch = self._watch or Stopwatch()
            return self._watch.lap() if self._calls == 1 else 0.0

    def leave(self) -> float:
        """End a call; return the busy seconds that no other call has returned."""
        with self._lock:
            assert self._watch  # noqa: S101 - `enter` sets it
            self._calls -= 1
            return self._watch.lap()


def count_reasons(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the reasons of failed rows with their counts, as entries of REASONS."""
    counts = Counter(FailureReason.of(row["stage"], row["reason"]) for row in rows)
    return [{**reason._asdict(), "images": count} for reason, count in counts.items()]


def most_frequent(counts: Mapping[Any, int]) -> dict[str, int]:
    """Return the most frequent labels, most frequent first, and the sum of all others.

    >>> list(most_frequent({f"{i}": i for i in range(1, 13)}).items())[-3:]
    [('4', 4), ('3', 3), ('others', 3)]
    """
    texts = {str(label): count for label, count in counts.items()}
    ordered = sorted(texts.items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in ordered[MOST:])
    return dict(ordered[:MOST]) | ({OTHERS: others} if others else {})
