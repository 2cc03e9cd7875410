"""`segrec index` that records in $SEGREC_COUNTS each image of its backbone.

The kill tests start this program by its path; it has no tests.
"""

import os
import sys
from functools import partialmethod

import pyarrow as pa

from segrec_batch.cli.main import main
from segrec_batch.pipeline import chain
from segrec_batch.pipeline.segment import SegmentStage


class Counted(SegmentStage):
    """Reaches the actors by value, since it is of `__main__`."""

    def note(self, path: str, decoded: pa.Table) -> pa.Table:
        uris = [row["uri"] for row in decoded.to_pylist() if row["shape"]]
        with open(path, "a") as file:  # noqa: PTH123
            file.write("".join(f"{uri}\n" for uri in uris))
        return SegmentStage.__call__(self, decoded)


if __name__ == "__main__":
    Counted.__call__ = partialmethod(Counted.note, os.environ["SEGREC_COUNTS"])  # type: ignore[assignment,method-assign]
    chain.SegmentStage = Counted  # type: ignore[misc]
    sys.exit(main(["index", *sys.argv[1:]]))
