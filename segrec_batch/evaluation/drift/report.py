"""The drift report: what happened to an index between two snapshots."""

import datetime as dt
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from segrec_batch.common.console import track
from segrec_batch.common.errors import InputError
from segrec_batch.distributed.scratch import scratch_folder
from segrec_batch.evaluation.drift import page
from segrec_batch.evaluation.drift.counts import golden_counts
from segrec_batch.evaluation.drift.figures import figures, judge
from segrec_batch.evaluation.drift.golden import fingerprint, read_golden
from segrec_batch.evaluation.drift.limits import Limits
from segrec_batch.evaluation.drift.overlap import overlaps
from segrec_batch.evaluation.drift.snapshots import Pair
from segrec_batch.evaluation.drift.told import Told
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.index.history import history
from segrec_batch.index.schema import coverage_column
from segrec_batch.index.snapshot import Snapshot, open_snapshot
from segrec_batch.search.database import open_files
from segrec_batch.sources import storage

log = logging.getLogger(__name__)

TIES = "of equal Pearson the lower image_id"


@dataclass(frozen=True)
class Settings:
    """What is compared: two versions of an index, by default the newest and the one before it.

    before: a version, or a time (aware): the index as it was then, or if that is too early for it,
    as it began.
    golden: a file of image_ids, URIs or paths, see `read_golden`; by default the `golden_size`
    images of both snapshots with the lowest md5(image_id). k: how many are recommended for each.
    limits: what the page marks. seed: of the bootstrap.
    """

    index: str
    before: int | dt.datetime | None = None
    after: int | None = None
    golden: str | None = None
    golden_size: int = 200
    k: int = 10
    limits: Limits | None = None
    seed: int = 0


def drift_report(settings: Settings) -> Report:
    """Compare two snapshots. Raises InputError, IndexStateError, StorageError."""
    before, after = open_pair(settings)
    asked = read_golden(settings.golden) if settings.golden else None
    log.info(f"{before.index}: version {before.version} ({before.rows('images'):,} images) against "
        f"{after.version} ({after.rows('images'):,})")  # fmt: skip
    with scratch_folder("segrec-drift-") as folder:
        pair = Pair(before, after, folder)
        try:
            found = pair.choose_golden(settings.golden_size, asked)
            if asked and not found:
                raise InputError(f"{settings.golden}: none of its images is in both snapshots")
            golden = pair.golden()
            counts = [pair.images(), pair.failures(), pair.stale(), pair.coverage()]
        finally:
            pair.close()
    log.info(f"{found:,} golden images; recommendations for each, before and after")
    rows = [*_figures(golden, pair.classes), *_overlaps(before, after, golden, pair, settings.k)]
    told = Told(
        pa.concat_tables([*counts, golden_counts(rows)]), golden, before, after, settings.limits,
        len(asked) - found if asked else 0,
    )  # fmt: skip
    return _report(told, settings)


def open_pair(settings: Settings) -> tuple[Snapshot, Snapshot]:
    """The two snapshots. Raises IndexStateError, InputError if there is none before the newer."""
    index = storage.absolute(settings.index)
    after = open_snapshot(index, settings.after)
    if isinstance(settings.before, int):
        return open_snapshot(index, settings.before), after
    older = [c for c in history(index) if c.version <= after.version]
    if settings.before is None:
        versions = [c.version for c in older if c.version < after.version]
        if not versions:
            raise InputError(f"{index}: there is no version before {after.version} to compare with")
        return open_snapshot(index, max(versions)), after
    versions = [c.version for c in older if c.time <= settings.before]
    return open_snapshot(index, max(versions or [min(c.version for c in older)])), after


def _figures(golden: pa.Table, classes: list[str]) -> Iterator[dict[str, Any]]:
    """COUNTS rows of what was compared in SQL."""
    for image in golden.to_pylist():
        values = {
            "feature_distance": image["distance"],
            "feature_changed": image["new_feature"],
            "content_changed": image["new_content"],
        }
        told = {"image_id": image["image_id"]}
        for name, value in values.items():
            yield {"name": name, "value": None if value is None else float(value), **told}
        for cls in classes:
            change = image[coverage_column(cls)]
            yield {"name": "coverage_change", "class": cls, "value": change, **told}


def _overlaps(
    before: Snapshot, after: Snapshot, golden: pa.Table, pair: Pair, k: int
) -> Iterator[dict[str, Any]]:
    older, newer = open_files(before), open_files(after)
    told = golden.select(["image_id", "class"]).to_pylist()
    for image in track(told, "recommended for"):
        yield from overlaps(older, newer, image, pair.classes, k)
    for index in (older, newer):
        index.connection.close()


def _report(told: Told, settings: Settings) -> Report:
    before, after = told.before, told.after
    estimates = [*figures(told.counts)]
    estimates += [e for j in judge(told.counts) for e in j.estimates(seed=settings.seed)]
    ids = told.golden["image_id"].to_pylist()
    provenance = Provenance(
        "drift", f"{len(ids)} golden images {fingerprint(ids)}", TIES, settings.seed,
        after.model_id, after.spec.weights, after.index, after.version,
    )  # fmt: skip
    return Report(
        title=f"Drift of {storage.name(after.index)}, version {before.version} to {after.version}",
        provenance=provenance,
        estimates=estimates,
        counts=told.counts,
        sections=page.sections(told, estimates),
        details={
            "from": {
                "version": before.version,
                "model_id": before.model_id,
                "images": before.rows("images"),
            },
            "to": {"version": after.version, "model_id": after.model_id},
            "limits": dict(settings.limits.most) if settings.limits else {},
            "golden": ids,
        },
        notice=page.notice(told) or None,
    )
