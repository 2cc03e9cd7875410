"""Comparison of two versions of an index, and limits of its drift."""

import datetime as dt
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.common.errors import DriftError, InputError
from segrec_batch.distributed.scratch import scratch_folder
from segrec_batch.evaluation.drift.figures import MEASURES
from segrec_batch.evaluation.drift.golden import compare_recommendations, read_golden
from segrec_batch.evaluation.drift.snapshots import Pair
from segrec_batch.evaluation.statistics import Estimate
from segrec_batch.index.history import history
from segrec_batch.index.snapshot import Snapshot, open_snapshot
from segrec_batch.sources import storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Largest allowed value of each measure of drift.

    is_named: the limits have names, so that an absent measure exceeds its limit as well.
    """

    most: Mapping[str, float]
    is_named: bool

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Read `0.2`, for all measures, or `failures=0.01,overlap=0.3`. Raises InputError.

        >>> Limits.parse("gone=0.1,overlap=0.3").most
        {'gone': 0.1, 'overlap': 0.3}
        """
        if "=" not in text:
            return cls(dict.fromkeys(MEASURES, _limit(text)), is_named=False)
        most = {}
        for part in text.split(","):
            name, _, limit = part.strip().partition("=")
            if name not in MEASURES or name in most:
                raise InputError(f"--fail-over {part!r}: name each of {', '.join(MEASURES)} once")
            most[name] = _limit(limit)
        return cls(most, is_named=True)

    def exceeded(self, estimates: Iterable[Estimate]) -> list[str]:
        """Return a text for each measure above its limit."""
        values = {e.key.name: e.value for e in estimates}
        texts = []
        for name, most in self.most.items():
            value = values[f"drift_{name}"]
            if value is None and self.is_named:
                texts.append(f"{name} is absent, so not known to be at most {most:g}")
            elif value is not None and value > most:
                texts.append(f"{name} {value:.4g} > {most:g}")
        return texts

    def check(self, estimates: Sequence[Estimate]) -> None:
        """Raise DriftError if a measure of a report is above its limit."""
        if texts := self.exceeded(estimates):
            raise DriftError(f"drift above --fail-over: {'; '.join(texts)}")


def _limit(text: str) -> float:
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit <= 1:
        raise InputError(f"--fail-over {text!r}: give a share, 0 to 1")
    return limit


@dataclass(frozen=True)
class Settings:
    """Two versions of an index to compare, by default the newest and the one before it.

    before: a version, or a time (aware): the version of that time, or the first version if that is
    later. golden: file of image_ids, URIs or paths, see `read_golden`; by default the `golden_size`
    images of both snapshots with the lowest md5(image_id). k: number of recommendations for each.
    limits: shown on the page. seed: of the bootstrap.
    """

    index: str
    before: int | dt.datetime | None = None
    after: int | None = None
    golden: str | None = None
    golden_size: int = 200
    k: int = 10
    limits: Limits | None = None
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """Two snapshots with their counts.

    golden: rows of `Pair.golden`. missing: requested golden images that are not in both snapshots.
    """

    counts: pa.Table
    golden: pa.Table
    before: Snapshot
    after: Snapshot
    missing: int

    @property
    def notice(self) -> str:
        """Warning about models, classes and golden images; empty if there is none."""
        before, after = self.before, self.after
        parts = [after.spec.notice] if after.spec.notice else []
        if before.model_id != after.model_id:
            parts.append(
                f"Two models: {before.model_id} before, {after.model_id} after. Their features "
                "cannot be compared, so the drift of features is absent; coverage and "
                "recommendations can be compared."
            )
        for a, b, side in ((before, after, "before"), (after, before, "after")):
            if only := [c for c in a.spec.classes if c not in b.spec.classes]:
                parts.append(f"Classes in the snapshot {side} only: {', '.join(only)}.")
        new = pc.and_(self.golden["new_feature"], pc.invert(self.golden["new_content"]))
        if n := pc.sum(new).as_py():
            parts.append(
                f"Golden images with the same content and another feature: {n}. The model, its "
                "arithmetic or the decoder has changed."
            )
        if self.missing:
            parts.append(f"Golden images that are not in both snapshots, left out: {self.missing}.")
        return " ".join(parts)


def open_pair(settings: Settings) -> tuple[Snapshot, Snapshot]:
    """Open both snapshots. Raises IndexStateError, InputError if none is before the newer one."""
    index = storage.absolute(settings.index)
    after = open_snapshot(index, settings.after)
    if isinstance(settings.before, int):
        return open_snapshot(index, settings.before), after
    commits = [c for c in history(index) if c.version <= after.version]
    if settings.before is None:
        older = [c.version for c in commits if c.version < after.version]
        if not older:
            raise InputError(f"{index}: there is no version before {after.version} to compare with")
    else:
        older = [c.version for c in commits if c.time <= settings.before] or [commits[-1].version]
    return open_snapshot(index, max(older)), after


def compare_snapshots(settings: Settings) -> Comparison:
    """Count the changes between two snapshots. Raises InputError, IndexStateError, StorageError."""
    before, after = open_pair(settings)
    ids = read_golden(settings.golden) if settings.golden else None
    log.info(f"{before.index}: version {before.version} ({before.rows('images'):,} images) against "
        f"{after.version} ({after.rows('images'):,})")  # fmt: skip
    with scratch_folder("segrec-drift-") as folder, closing(Pair(before, after, folder)) as pair:
        n = pair.choose_golden(settings.golden_size, ids)
        if ids and not n:
            raise InputError(f"{settings.golden}: none of its images is in both snapshots")
        golden = pair.golden()
        log.info(f"{n:,} golden images; recommendations for each, before and after")
        overlaps = compare_recommendations(before, after, golden, pair.classes, settings.k)
        counts = pair.counts(overlaps)
    return Comparison(counts, golden, before, after, len(ids) - n if ids else 0)
