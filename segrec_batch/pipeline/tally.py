"""Costs of stages and reasons of failures, in columns of the tables between the stages.

The first row of a batch holds the cost of the whole batch, so sums over rows stay exact when
batches are split or merged. If a worker dies, the cost of its task is lost with the rows; another
task repeats both.
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
MAX_LABELS = 10  # maximum number of labels with a count of their own
OTHERS = "others"

_REASON_CHARACTERS = 60  # maximum characters of a reason
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

Cost = dict[str, Any]


class FailureReason(NamedTuple):
    """The stage of a failure, and its reason without details such as file names and numbers."""

    stage: str
    text: str

    @classmethod
    def of(cls, stage: str, reason: str) -> "FailureReason":
        """Return the reason up to its first colon, with N for each number.

        >>> str(FailureReason.of("decode", "50000×40000 pixels are too many"))
        'decode: N×N pixels are too many'
        >>> str(FailureReason.of("read", "OSError: a.jpg: gone"))
        'read: OSError'
        """
        return cls(stage, _NUMBER.sub("N", reason.partition(":")[0]).strip()[:_REASON_CHARACTERS])

    def __str__(self) -> str:
        return f"{self.stage}: {self.text}"


def sum_costs(costs: Iterable[Mapping[str, Any] | None]) -> Cost:
    """Return the sum of costs, for each field of COST; None is no cost."""
    present = [cost for cost in costs if cost]
    return {field.name: sum(cost[field.name] for cost in present) for field in COST}


def add_cost(rows: pa.Table, **cost: float) -> pa.Table:
    """Add fields of COST to the first row; the table has at least one."""
    costs = rows["cost"].to_pylist()
    added = dict.fromkeys(COST.names, 0) | cost
    costs[0] = sum_costs([costs[0], added])
    column = rows.schema.get_field_index("cost")
    return rows.set_column(column, rows.schema.field(column), pa.array(costs, COST))


class Stopwatch:
    """A clock that measures the time since it was last read."""

    def __init__(self) -> None:
        self._lap_start = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last call, or since the clock was made."""
        start, self._lap_start = self._lap_start, time.perf_counter()
        return self._lap_start - start


class Occupancy:
    """A meter of the busy and idle time of an object that several threads call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._watch: Stopwatch | None = None  # None before the first call

    def enter(self) -> float:
        """Begin a call; return the idle seconds before it."""
        with self._lock:
            self._calls += 1
            self._watch = self._watch or Stopwatch()
            return self._watch.lap() if self._calls == 1 else 0.0

    def leave(self) -> float:
        """End a call; return the busy seconds since the last `enter` or `leave` of any call."""
        with self._lock:
            assert self._watch  # noqa: S101 - `enter` sets it
            self._calls -= 1
            return self._watch.lap()


def count_reasons(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the reasons of failed rows with their counts, as entries of REASONS."""
    counts = Counter(FailureReason.of(row["stage"], row["reason"]) for row in rows)
    return [{**reason._asdict(), "images": count} for reason, count in counts.items()]


def count_most_frequent(counts: Mapping[Any, int]) -> dict[str, int]:
    """Return the counts of the most frequent labels, in descending order, and the sum of the rest.

    >>> list(count_most_frequent({f"{i}": i for i in range(1, 13)}).items())[-3:]
    [('4', 4), ('3', 3), ('others', 3)]
    """
    by_text = {str(label): count for label, count in counts.items()}
    ordered = sorted(by_text.items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in ordered[MAX_LABELS:])
    return dict(ordered[:MAX_LABELS]) | ({OTHERS: others} if others else {})
