"""What a drift report was made of."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.evaluation.drift.limits import Limits
from segrec_batch.evaluation.statistics import Estimate, Key
from segrec_batch.index.snapshot import Snapshot

Found = Mapping[Key, Estimate]
Row = list[Estimate | str]


@dataclass(frozen=True)
class Told:
    """What was found. golden: as `Pair.golden` has it. missing: golden images that were asked for
    and are not in both snapshots.
    """

    counts: pa.Table
    golden: pa.Table
    before: Snapshot
    after: Snapshot
    limits: Limits | None
    missing: int

    @property
    def split(self) -> str:
        """Which snapshots the figures are of."""
        return f"version {self.before.version} to {self.after.version}"

    @property
    def remade(self) -> int:
        """Golden images with the same content and another feature."""
        new = pc.and_(self.golden["new_feature"], pc.invert(self.golden["new_content"]))
        return pc.sum(new).as_py() or 0
