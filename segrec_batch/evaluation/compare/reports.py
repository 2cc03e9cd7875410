"""Reports that were read again, to be compared."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.report import Provenance, counts_uri, read_counts, read_metrics
from segrec_batch.evaluation.statistics import Estimate, Evaluation, Key

Judge = Callable[[pa.Table], list[Evaluation]]


@dataclass(frozen=True)
class Settings:
    """What is compared: `metrics.json` of each report, or its folder; the first is the base.

    names: of the reports, by default A, B, … methods: of each report the one method to compare;
    by default all methods, each with itself.
    """

    reports: Sequence[str]
    names: Sequence[str] = ()
    methods: Sequence[str] = ()
    seed: int = 0

    def check(self) -> None:
        """Raises InputError for numbers that do not match."""
        if not 2 <= len(self.reports) <= len(string.ascii_uppercase):
            raise InputError(f"give 2 to {len(string.ascii_uppercase)} reports to compare")
        for option, values in (("names", self.names), ("method", self.methods)):
            if values and len(values) != len(self.reports):
                raise InputError(f"--{option} has {len(values)}, for {len(self.reports)} reports")
        if len(set(self.names)) < len(self.names) or not all(self.names):
            raise InputError(f"--names {','.join(self.names)}: give each report a name of its own")


@dataclass(frozen=True)
class Compared:
    """A report. counts, judged: None if its counts are not there."""

    name: str
    uri: str
    provenance: Provenance
    estimates: Mapping[Key, Estimate]
    counts: pa.Table | None
    judged: Sequence[Evaluation] | None

    def of_method(self, method: str) -> "Compared":
        """The figures of one method, as if there were no other. Raises InputError if none is."""
        estimates = {
            replace(key, method=""): replace(e, key=replace(key, method=""))
            for key, e in self.estimates.items()
            if key.method == method
        }
        if not estimates:
            known = sorted({key.method for key in self.estimates} - {""})
            raise InputError(f"{self.uri}: no method {method!r}; it has {', '.join(known)}")
        judged = [_of_method(j, method) for j in self.judged] if self.judged is not None else None
        return replace(self, estimates=estimates, judged=judged)


def _of_method(judged: Evaluation, method: str) -> Evaluation:
    kept = {k: m for k, m in judged.measures.items() if k.method == method}
    return Evaluation(judged.units, {replace(k, method=""): m for k, m in kept.items()})


def read_reports(settings: Settings, judges: Mapping[str, Judge]) -> list[Compared]:
    """The reports, judged anew. Raises InputError if they cannot be compared."""
    settings.check()
    names = settings.names or string.ascii_uppercase
    found = [_read(n, u, judges) for n, u in zip(names, settings.reports, strict=False)]
    kinds = {r.provenance.kind: r for r in found}
    if len(kinds) > 1:
        told = ", ".join(f"{r.uri} is of {kind}" for kind, r in kinds.items())
        raise InputError(f"only reports of one kind can be compared: {told}")
    if settings.methods:
        return [r.of_method(m) for r, m in zip(found, settings.methods, strict=True)]
    return found


def _read(name: str, uri: str, judges: Mapping[str, Judge]) -> Compared:
    metrics = read_metrics(uri)
    provenance = Provenance(**metrics["provenance"])
    if provenance.kind not in judges:
        raise InputError(
            f"{uri}: of a report of {provenance.kind}; give one of {', '.join(judges)}"
        )
    estimates = map(_estimate, metrics["measures"])
    counts = read_counts(uri)
    try:
        judged = judges[provenance.kind](counts) if counts is not None else None
    except InputError as error:
        raise InputError(f"{counts_uri(uri)}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise InputError(f"{counts_uri(uri)}: not the counts of a report: {error}") from error
    return Compared(name, uri, provenance, {e.key: e for e in estimates}, counts, judged)


def _estimate(row: Mapping[str, Any]) -> Estimate:
    key = Key(row["measure"], row["method"], row["split"], row["setting"], row["class"], row["k"])
    return Estimate(key, row["value"], row["low"], row["high"], row["units"])
