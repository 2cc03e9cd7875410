"""Rates of one way to run the job, without start-up, and ratios of ways."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common.cpu_time import TimedResult, watch
from benchmarks.throughput.case import Case

log = logging.getLogger("segrec_batch.benchmarks")


@dataclass
class Run:
    """One way: pairs of results for N and 2 N images, one pair for each round."""

    way: str
    count: int
    pairs: list[tuple[TimedResult, TimedResult]] = field(default_factory=list)

    @property
    def whole(self) -> list[float]:
        """Images/s of 2 N, with start-up."""
        return [2 * self.count / twice.seconds for _, twice in self.pairs]

    @property
    def rates(self) -> list[float]:
        """Images/s of the second N, without start-up; NaN if noise is larger."""
        more = [twice.seconds - once.seconds for once, twice in self.pairs]
        return [self.count / seconds if seconds > 0 else math.nan for seconds in more]

    @property
    def start_up(self) -> list[float]:
        """Seconds of the first N minus those of the second N."""
        return [2 * once.seconds - twice.seconds for once, twice in self.pairs]

    @property
    def cpu(self) -> list[float]:
        """CPU seconds of all processes for an image of the second N."""
        sums = [[sum(w.cpu.values()) for w in pair] for pair in self.pairs]
        return [(twice - once) / self.count for once, twice in sums]

    def add_round(self, step: str, case: Case) -> None:
        """Run the way on N and 2 N images and record the results."""
        number = len(self.pairs)
        results = []
        for count in (self.count, 2 * self.count):
            log.info(f"({self.way}) {count} images, round {number + 1}")
            results.append(watch(step, case.taking(count, f"{self.way}_{count}_{number}")))
        self.pairs.append((results[0], results[1]))


def compute_ratios(results: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Return the ratios of (b) to each other way by round: images/s, and images per CPU second."""
    runs, limits = dict(results["runs"]), results["limits"]
    if "b" not in runs:
        return {}
    segrec = runs.pop("b")
    others = {way: (run.rates, run.cpu) for way, run in runs.items()}
    if limits:
        others["a"] = [x["images/s"] for x in limits], [x["cpu"] for x in limits]
    return {
        way: {
            "rate": [x / y for x, y in zip(segrec.rates, rates, strict=True)],
            "cpu": [y / x for x, y in zip(segrec.cpu, cpu, strict=True)],
        }
        for way, (rates, cpu) in sorted(others.items())
    }
