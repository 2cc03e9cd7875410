"""Reports to compare, and the differences of their metric values."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.report import (
    Provenance,
    counts_uri,
    read_counts,
    read_estimate,
    read_metrics,
)
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key, Measure, difference

Evaluator = Callable[[pa.Table], list[Evaluation]]
"""Function that returns the measures of the counts of a report."""
V = TypeVar("V")

PAIRED, INDEPENDENT = "paired", "independent"
NO_COUNTS, NO_UNITS, OTHER_VALUE = (
    "none: no counts",
    "none: not of single units",
    "none: the counts give another value",
)
_TOLERANCE = 1e-9  # of equal values, and of the ends of an interval that excludes 0


@dataclass(frozen=True)
class Settings:
    """Reports to compare, by their folder or `metrics.json`; the first is the base.

    names: of the reports, by default A, B, … methods: the one method to compare of each report; by
    default each method is compared with itself.
    """

    reports: Sequence[str]
    names: Sequence[str] = ()
    methods: Sequence[str] = ()
    seed: int = 0

    def check(self) -> None:
        """Raise InputError if the numbers of reports, names and methods do not match."""
        if not 2 <= len(self.reports) <= len(string.ascii_uppercase):
            raise InputError(f"give 2 to {len(string.ascii_uppercase)} reports to compare")
        for option, values in (("names", self.names), ("method", self.methods)):
            if values and len(values) != len(self.reports):
                raise InputError(f"--{option} has {len(values)}, for {len(self.reports)} reports")
        if len(set(self.names)) < len(self.names) or not all(self.names):
            raise InputError(f"--names {','.join(self.names)}: give each report a name of its own")


@dataclass(frozen=True)
class SavedReport:
    """A report read from its files; counts and evaluations are None without `counts.parquet`."""

    name: str
    uri: str
    provenance: Provenance
    estimates: Mapping[Key, Estimate]
    counts: pa.Table | None
    evaluations: Sequence[Evaluation] | None

    @classmethod
    def read(cls, name: str, uri: str, evaluators: Mapping[str, Evaluator]) -> "SavedReport":
        """Read a report and evaluate its counts. Raises InputError."""
        metrics = read_metrics(uri)
        provenance = Provenance(**metrics["provenance"])
        if provenance.kind not in evaluators:
            raise InputError(
                f"{uri}: of a report of {provenance.kind}; give one of {', '.join(evaluators)}"
            )
        counts = read_counts(uri)
        try:
            evaluations = None if counts is None else evaluators[provenance.kind](counts)
        except InputError as error:
            raise InputError(f"{counts_uri(uri)}: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
            raise InputError(f"{counts_uri(uri)}: not the counts of a report: {error}") from error
        estimates = {e.key: e for e in map(read_estimate, metrics["measures"])}
        return cls(name, uri, provenance, estimates, counts, evaluations)

    def of_method(self, method: str) -> "SavedReport":
        """Return the values of one method under keys without a method. Raises InputError."""
        estimates = {k: replace(e, key=k) for k, e in _of_method(self.estimates, method).items()}
        if not estimates:
            known = sorted({key.method for key in self.estimates} - {""})
            raise InputError(f"{self.uri}: no method {method!r}; it has {', '.join(known)}")
        evaluations = self.evaluations and [
            Evaluation(e.units, _of_method(e.measures, method)) for e in self.evaluations
        ]
        return replace(self, estimates=estimates, evaluations=evaluations)

    def has_value(self, key: Key, measure: Measure) -> bool:
        """Return whether the value of a measure is that in `metrics.json`."""
        if key not in self.estimates:
            return False
        value, saved = measure.value, self.estimates[key].value
        if value is None or saved is None:
            return value is saved
        return abs(value - saved) <= _TOLERANCE * max(1.0, abs(value))


def _of_method(values: Mapping[Key, V], method: str) -> dict[Key, V]:
    """Return the values of one method under keys without a method."""
    return {replace(k, method=""): value for k, value in values.items() if k.method == method}


def read_reports(settings: Settings, evaluators: Mapping[str, Evaluator]) -> list[SavedReport]:
    """Read and evaluate the reports. Raises InputError if they cannot be compared."""
    settings.check()
    names = settings.names or string.ascii_uppercase[: len(settings.reports)]
    reports = [
        SavedReport.read(name, uri, evaluators)
        for name, uri in zip(names, settings.reports, strict=True)
    ]
    kinds = {r.provenance.kind: r.uri for r in reports}
    if len(kinds) > 1:
        text = ", ".join(f"{uri} is of {kind}" for kind, uri in kinds.items())
        raise InputError(f"only reports of one kind can be compared: {text}")
    if settings.methods:
        return [r.of_method(m) for r, m in zip(reports, settings.methods, strict=True)]
    return reports


@dataclass(frozen=True)
class Difference:
    """A value of a report minus that of the base. interval: its kind, or why there is none."""

    base: Estimate
    other: Estimate
    estimate: Estimate
    interval: str

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes 0, else 0."""
        low, high = self.estimate.low, self.estimate.high
        if low is None or high is None:
            return 0
        return (low > _TOLERANCE) - (high < -_TOLERANCE)

    @property
    def size(self) -> float:
        """|difference|, -1 if it is absent."""
        return -1.0 if self.estimate.value is None else abs(self.estimate.value)


def shared_keys(reports: Sequence[SavedReport]) -> list[Key]:
    """Return the keys that all reports have, in the order of the first."""
    first, *others = reports
    return [k for k in first.estimates if all(k in r.estimates for r in others)]


def differences(
    base: SavedReport, other: SavedReport, keys: Sequence[Key], seed: int = 0
) -> list[Difference]:
    """Return the differences of some values, clear ones first, then by size."""
    has_counts = base.evaluations is not None and other.evaluations is not None
    results = {}
    for key in keys:
        a, b = base.estimates[key], other.estimates[key]
        value = None if a.value is None or b.value is None else b.value - a.value
        estimate = Estimate(key, value, None, None, min(a.units, b.units))
        results[key] = Difference(a, b, estimate, NO_UNITS if has_counts else NO_COUNTS)
    for one, two in product(base.evaluations or (), other.evaluations or ()):
        kind = PAIRED if one.units == two.units else INDEPENDENT
        for estimate in difference(one, two, seed=seed):
            key = estimate.key
            if key not in results:
                continue
            if base.has_value(key, one.measures[key]) and other.has_value(key, two.measures[key]):
                results[key] = replace(results[key], estimate=estimate, interval=kind)
            else:
                results[key] = replace(results[key], interval=OTHER_VALUE)
    return sorted(results.values(), key=lambda d: (not d.sign, -d.size, d.base.key))
