"""Age of the reference sets of descriptors, see `operators.augmentation`.

Vectors are never out of date against their bundle, but a reference set is drawn once. Its drift is
what another draw, from the present images, would change.
"""

import logging
from dataclasses import dataclass

import pyarrow as pa

from segrec_batch.descriptors.root_pca import REFERENCE_HASHES
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.bundle import load_descriptor
from segrec_batch.pipeline.samples import CONTENTS
from segrec_batch.search.database import open_files
from segrec_batch.search.sql.connection import query

log = logging.getLogger(__name__)

DUE = 0.1
"""Drift from which a refresh is due."""

_COUNTS = f"""
WITH drawn AS MATERIALIZED ({CONTENTS})
SELECT (SELECT count(*) FROM drawn) AS drawn,
       (SELECT count(*) FROM drawn ANTI JOIN stored USING (hash)) AS added,
       (SELECT count(*) FROM stored ANTI JOIN (SELECT md5(content_hash) AS hash FROM images)
        USING (hash)) AS gone
"""  # noqa: S608


@dataclass(frozen=True)
class ReferenceDrift:
    """Difference of a stored reference set from one drawn now.

    Attributes:
        descriptor: its name.
        arguments: its arguments, as `segrec describe --add` takes them.
        stored: images in the stored set.
        drawn: images that would be drawn now.
        added: of these, images that the stored set lacks.
        gone: stored images that are no longer in the index.
    """

    descriptor: str
    arguments: str
    stored: int
    drawn: int
    added: int
    gone: int

    @property
    def share(self) -> float:
        """The larger of the shares of added and of gone images, 0 to 1."""
        return max(self.added / max(self.drawn, 1), self.gone / max(self.stored, 1))


def reference_drifts(snapshot: Snapshot) -> list[ReferenceDrift]:
    """Return the drift of each descriptor with a reference set, by the images of a snapshot."""
    drifts = []
    for descriptor in snapshot.spec.descriptors:
        settings = descriptor.settings
        if not settings.get("augment"):
            continue
        hashes = load_descriptor(snapshot.model_uri, descriptor).get(REFERENCE_HASHES)
        if hashes is None:
            continue
        stored = pa.table({"hash": [row.tobytes().hex() for row in hashes]})
        with open_files(snapshot).connection as connection:
            connection.register("stored", stored)
            (counts,) = query(connection, _COUNTS, {"count": settings["reference"]}).to_pylist()
        names = ("dimension", "augment", "reference")
        arguments = ",".join(f"{name}={settings[name]}" for name in names)
        drifts.append(ReferenceDrift(descriptor.name, arguments, len(hashes), **counts))
    return drifts


def log_drifts(snapshot: Snapshot) -> None:
    """Log each drift above 0 with the commands that refresh it: a warning if that is due."""
    for drift in reference_drifts(snapshot):
        if not drift.share:
            continue
        is_due = drift.share >= DUE
        log.log(
            logging.WARNING if is_due else logging.INFO,
            f"{drift.descriptor}: {drift.share:.1%} of its reference set is out of date: "
            f"{drift.added:,} of {drift.drawn:,} images are not in it, and it has vectors of "
            f"{drift.gone:,} images that the index no longer has. To refresh it"
            f"{'' if is_due else f' (due from {DUE:.0%})'}: segrec describe --index "
            f"{snapshot.index} --output MODEL --add {drift.descriptor}:{drift.arguments}, then "
            f"segrec index --images IMAGES --model MODEL --index {snapshot.index}",
        )
