"""Thresholds: how much drift a nightly run may bring before somebody has to look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segrec_batch.common.errors import DriftError, InputError
from segrec_batch.evaluation.drift.figures import MEASURES
from segrec_batch.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Limits:
    """The most that each measure of drift may be. named: one by one, so that a measure which is
    absent is too much as well.
    """

    most: Mapping[str, float]
    named: bool

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """`0.2`, for all measures, or `failures=0.01,overlap=0.3`. Raises InputError.

        >>> Limits.parse("gone=0.1,overlap=0.3").most
        {'gone': 0.1, 'overlap': 0.3}
        """
        if "=" not in text:
            return cls(dict.fromkeys(MEASURES, _limit(text)), named=False)
        most = {}
        for part in text.split(","):
            name, _, limit = part.strip().partition("=")
            if name not in MEASURES or name in most:
                raise InputError(f"--fail-over {part!r}: name each of {', '.join(MEASURES)} once")
            most[name] = _limit(limit)
        return cls(most, named=True)

    def exceeded(self, estimates: Sequence[Estimate]) -> list[str]:
        """The measures above their limit, in words."""
        values = {e.key.name: e.value for e in estimates}
        found = []
        for name, most in self.most.items():
            value = values[f"drift_{name}"]
            if value is None and self.named:
                found.append(f"{name} is absent, so not known to be at most {most:g}")
            elif value is not None and value > most:
                found.append(f"{name} {value:.4g} > {most:g}")
        return found

    def check(self, estimates: Sequence[Estimate]) -> None:
        """Raises DriftError if a measure of a report is above its limit."""
        found = self.exceeded(estimates)
        if found:
            raise DriftError(f"drift above --fail-over: {'; '.join(found)}")


def _limit(text: str) -> float:
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit <= 1:
        raise InputError(f"--fail-over {text!r}: give a share, 0 to 1")
    return limit
