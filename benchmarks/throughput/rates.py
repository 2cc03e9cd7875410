"""Rates of one way to do the job, without start-up, and ratios of two ways."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common.cpu_time import Watched, watch
from benchmarks.throughput.case import Case

log = logging.getLogger("segrec_batch.benchmarks")


@dataclass
class Run:
    """One way: its seconds for N and 2 N images, a pair for each round."""

    way: str
    count: int
    pairs: list[tuple[Watched, Watched]] = field(default_factory=list)

    @property
    def whole(self) -> list[float]:
        """Images/s of 2 N, start-up and all."""
        return [2 * self.count / twice.seconds for _, twice in self.pairs]

    @property
    def rates(self) -> list[float]:
        """Images/s of the second N: those without start-up; NaN if noise is more."""
        more = [twice.seconds - once.seconds for once, twice in self.pairs]
        return [self.count / seconds if seconds > 0 else math.nan for seconds in more]

    @property
    def start_up(self) -> list[float]:
        """Seconds that are not there for the second N."""
        return [2 * once.seconds - twice.seconds for once, twice in self.pairs]

    @property
    def cpu(self) -> list[float]:
        """CPU seconds of an image of the second N, of all processes."""
        sums = [[sum(w.cpu.values()) for w in pair] for pair in self.pairs]
        return [(twice - once) / self.count for once, twice in sums]

    def more(self, step: str, case: Case) -> None:
        """One more round."""
        number = len(self.pairs)
        done = []
        for count in (self.count, 2 * self.count):
            log.info(f"({self.way}) {count} images, round {number + 1}")
            done.append(watch(step, case.taking(count, f"{self.way}_{count}_{number}")))
        self.pairs.append((done[0], done[1]))


def all_ratios(found: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """(b) over each other way, of each round: of images/s, and of images per CPU second."""
    runs, limits = dict(found["runs"]), found["limits"]
    if "b" not in runs:
        return {}
    ours = runs.pop("b")
    others = {way: (run.rates, run.cpu) for way, run in runs.items()}
    if limits:
        others["a"] = [x["images/s"] for x in limits], [x["cpu"] for x in limits]
    return {
        way: {
            "rate": [x / y for x, y in zip(ours.rates, rates, strict=True)],
            "cpu": [y / x for x, y in zip(ours.cpu, cpu, strict=True)],
        }
        for way, (rates, cpu) in sorted(others.items())
    }
