"""Prometheus metrics of a run, exported by Ray from the driver when parts are written.

Ray prefixes names with `ray_`, and appends `_total` to the name of a counter. Counts before Ray
starts are not exported; the last counts are exported when the driver leaves Ray. A gauge expires
20 s after it was set, so it is set repeatedly. A gauge without a value means that no job runs.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge

from segrec_batch.common.console import every
from segrec_batch.pipeline.tally import MAX_LABELS, OTHERS, STAGES, Cost, FailureReason

COUNTERS = {  # description and label of each counter
    "segrec_images_total": ("Images that are done.", "outcome"),
    "segrec_failures_total": ("Images that failed or are stale.", "reason"),
    "segrec_stage_seconds_total": ("Seconds of stages and of waiting for them.", "stage"),
    "segrec_read_bytes_total": ("Bytes of images that were read.", None),
    "segrec_written_bytes_total": ("Bytes of new files of the index.", None),
    "segrec_commits_total": ("Commits of the index.", None),
}
GAUGES = {
    "segrec_todo_images": "Images that the running job has yet to process.",
    "segrec_last_commit_timestamp_seconds": "Time of the job's last commit, or of its start.",
}
EXPORTED = frozenset(f"ray_{name}" for name in (*COUNTERS, *GAUGES))  # as Prometheus sees them

_GAUGE_SECONDS = 5.0  # interval at which gauges are set: half of the interval of Ray's reports


class Metrics:
    """The metrics of one run; their label `run_id` joins them with its log and its commits."""

    def __init__(self, run_id: str) -> None:
        tags = {"run_id": run_id}
        self._counters = {
            name: Counter(name, text, ("run_id", label) if label else ("run_id",))
            for name, (text, label) in COUNTERS.items()
        }
        self._gauges = {name: Gauge(name, text, ("run_id",)) for name, text in GAUGES.items()}
        for metric in (*self._counters.values(), *self._gauges.values()):
            metric.set_default_tags(tags)
        self._todo = 0
        self._last_commit = time.time()
        self._reasons: set[str] = set()

    @contextmanager
    def export_gauges(self, todo: int) -> Iterator[None]:
        """Export the gauges until the block ends; `todo` is the number of images to process."""
        self._todo = todo
        self._set_gauges()
        with every(_GAUGE_SECONDS, self._set_gauges):
            yield
        self._set_gauges()

    def count_images(
        self,
        indexed: int,
        copied: int,
        stale: int,
        reasons: Mapping[FailureReason, int],
        cost: Cost,
    ) -> None:
        """Count finished images: computed, copied, or failed; some of the failed are stale."""
        failed = sum(reasons.values()) - stale
        outcomes = {"indexed": indexed, "copied": copied, "failed": failed, "stale": stale}
        self._todo -= sum(outcomes.values())
        for outcome, n in outcomes.items():
            self._count("segrec_images_total", n, outcome)
        for reason, n in reasons.items():
            self._count("segrec_failures_total", n, self._limit_label(str(reason)))
        for stage in (*STAGES, "starved"):
            self._count("segrec_stage_seconds_total", cost[stage], stage)
        self._count("segrec_read_bytes_total", cost["bytes_read"])

    def count_written(self, size: int) -> None:
        """Count bytes that were written to the index."""
        self._count("segrec_written_bytes_total", size)

    def count_commit(self) -> None:
        """Count a commit."""
        self._last_commit = time.time()
        self._count("segrec_commits_total", 1)

    def _limit_label(self, label: str) -> str:
        """Return the label in ASCII, as Ray requires, or `others` after the first few labels."""
        label = label.encode("ascii", "backslashreplace").decode()
        if len(self._reasons) < MAX_LABELS:
            self._reasons.add(label)
        return label if label in self._reasons else OTHERS

    def _count(self, name: str, value: float, label: str | None = None) -> None:
        if value > 0:  # Ray accepts positive values only
            key = COUNTERS[name][1]
            self._counters[name].inc(value, {key: label} if key and label else {})

    def _set_gauges(self) -> None:
        self._gauges["segrec_todo_images"].set(self._todo)
        self._gauges["segrec_last_commit_timestamp_seconds"].set(self._last_commit)
