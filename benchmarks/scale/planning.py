"""Time and peak memory of listing and planning with up to a million sources, next to peers.

Nothing is decoded: the sources are empty files in folders of 1,000. The index has a row of the real
schema for each of them (features are 512 zeros, masks empty), written by this package; 1 % of the
sources have changed since, and 1 % have moved: one new source and one gone for each. Each step runs
in a new process:

    list       all of `iter_images`                     peer: os.walk and os.stat
    first run  `Plan` on an empty index                   peer: DuckDB sorts the listing
    nightly    `Plan` on the index                        peer: DuckDB joins listing and index
    manifest   all of `Plan.read_manifest` of the first run    peer: Arrow reads the listing

All steps but `list` read the listing from a Parquet file and write to a DuckDB database on disk.
driver: peak memory of the process; total: with all its children; disk: peak of its temporary files.
KB/source: growth of the driver's peak since the previous count, per additional source. The exit
code is 1 if that growth increases.
"""

import argparse
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.common.peak_memory import Growth, check_count, measure
from benchmarks.common.stand_in import SPEC
from segrec_batch.common import console, logs
from segrec_batch.index.column_values import image_id
from segrec_batch.index.parts import write_part
from segrec_batch.index.schema import images_schema
from segrec_batch.index.snapshot import Snapshot, empty_snapshot, with_changes
from segrec_batch.sources.listing import BATCH_ROWS, LISTED, FileCounts, iter_files, iter_images

log = logging.getLogger("segrec_batch.benchmarks")

if TYPE_CHECKING:  # DuckDB, imported in a spawned process, would behave as in a notebook
    from segrec_batch.pipeline.plan import Plan

EXAMPLES = """\
examples:
  python -m benchmarks.scale.planning
  python -m benchmarks.scale.planning --counts 10000 100000 --folder /mnt/disk
  # as if there were 40 times as many sources
  python -m benchmarks.scale.planning --memory 100MB
"""
CONSTANTS = {pa.string(): "text", pa.binary(): b"", pa.int32(): 1, pa.float32(): 0.5}
FOLDER_FILES = 1000


@dataclass
class Case:
    """Sources in a folder, their listing in Parquet, and an index of their former state."""

    count: int
    folder: str
    memory: str | None
    index: Snapshot = field(init=False)

    def __post_init__(self) -> None:
        self.images, self.listing = f"{self.folder}/images", f"{self.folder}/listing.parquet"
        self.empty = empty_snapshot(f"{self.folder}/index", "none", SPEC)


def make(case: Case) -> Case:
    """Write the files, the listing and the index."""
    for start in range(0, case.count, FOLDER_FILES):
        folder = Path(case.images, f"{start:09}")
        folder.mkdir(parents=True)
        for i in range(start, min(start + FOLDER_FILES, case.count)):
            (folder / f"image-{i:09}.jpg").touch()
    files = []
    with pq.ParquetWriter(case.listing, LISTED) as writer:
        for batch in iter_files(case.images, FileCounts()):
            writer.write_batch(batch)
            files += write_part(case.empty.index, [("images", None, make_image_rows(batch))])
    case.index = with_changes(case.empty, files)
    return case


def make_image_rows(sources: pa.RecordBatch) -> pa.Table:
    """Return rows of `images` for sources before 1 % of them changed and 1 % moved."""
    n = sources.num_rows
    kind = np.arange(n) % 100
    uris = pc.if_else(
        pa.array(kind == 0), pc.binary_join_element_wise(sources["uri"], "old", "."), sources["uri"]
    )
    ids = pa.array([image_id(uri) for uri in uris.to_pylist()])
    zeros = pa.array(np.zeros(512 * n, np.float32))
    columns = {
        "image_id": ids,
        "uri": uris,
        "source_size": pc.add(sources["source_size"], pa.array((kind == 1).astype(int))),
        "source_etag": sources["source_etag"],
        "content_hash": ids,
        "feature": pa.ListArray.from_arrays(pa.array(range(0, 512 * n + 1, 512)), zeros),
        "sign_bits": pa.array([[0] * 8] * n),
        "indexed_at": pa.array([0] * n),
    }
    schema = images_schema(SPEC.classes)
    constant = {f.name: pa.array([CONSTANTS.get(f.type)] * n, f.type) for f in schema}
    return pa.table([{**constant, **columns}[f.name].cast(f.type) for f in schema], schema)


def list_images(case: Case) -> float:
    """List the images; return the seconds, as all steps below."""
    clock = time.perf_counter()
    check_count(sum(batch.num_rows for batch in iter_images(case.images)), case.count)
    return time.perf_counter() - clock


def walk_folder(case: Case) -> float:
    """Walk the folder and stat each file."""
    clock = time.perf_counter()
    paths = (f"{folder}/{name}" for folder, _, names in os.walk(case.images) for name in names)
    check_count(sum(stat.S_ISREG(os.stat(path).st_mode) for path in paths), case.count)  # noqa: PTH116
    return time.perf_counter() - clock


def make_planner(case: Case) -> "Callable[[Snapshot], Plan]":
    """Return a function that makes a plan from the listing and a snapshot."""
    from segrec_batch.pipeline import plan

    vars(plan)["_MEMORY"] = case.memory or vars(plan)["_MEMORY"]
    vars(plan)["iter_files"] = lambda *_: pq.ParquetFile(case.listing).iter_batches()
    return partial(plan.Plan, plan.Request(case.images))


def plan_first_run(case: Case) -> float:
    """Plan a run on an empty index."""
    plan, clock = make_planner(case), time.perf_counter()
    with plan(case.empty) as result:
        check_count(result.todo, case.count)
        return time.perf_counter() - clock


def plan_nightly_run(case: Case) -> float:
    """Plan a run on the index."""
    plan, clock = make_planner(case), time.perf_counter()
    with plan(case.index) as result:
        check_count(result["unchanged"] + result["new"] + result["changed"], case.count)
        check_count(result["gone"], result["new"])
        return time.perf_counter() - clock


def fetch_manifest(case: Case) -> float:
    """Read the manifest of a first run in batches, as one actor does."""
    with make_planner(case)(case.empty) as plan:
        clock = time.perf_counter()
        starts = range(0, plan.todo, BATCH_ROWS)
        check_count(sum(plan.read_manifest(i, i + BATCH_ROWS).num_rows for i in starts), case.count)
        return time.perf_counter() - clock


def read_listing(case: Case) -> float:
    """Read the listing into Arrow."""
    clock = time.perf_counter()
    check_count(sum(b.num_rows for b in pq.ParquetFile(case.listing).iter_batches()), case.count)
    return time.perf_counter() - clock


def sort_listing(case: Case) -> float:
    """Sort the listing."""
    return write_table(f"FROM '{case.listing}' ORDER BY uri")


def join_listing(case: Case) -> float:
    """Join the listing and the index."""
    return write_table(
        f"FROM '{case.listing}' FULL JOIN (SELECT image_id, uri, source_size, source_etag, "  # noqa: S608
        f"content_hash FROM '{case.empty.index}/images/*.parquet') USING (uri)"
    )


def write_table(sql: str) -> float:
    """Write the rows of a query to a DuckDB database on disk."""
    import duckdb

    with tempfile.TemporaryDirectory() as folder, duckdb.connect(f"{folder}/peer") as connection:
        clock = time.perf_counter()
        connection.execute(f"CREATE TABLE result AS {sql}")
        return time.perf_counter() - clock


STEPS = {
    "list": (list_images, walk_folder),
    "first run": (plan_first_run, sort_listing),
    "nightly": (plan_nightly_run, join_listing),
    "manifest": (fetch_manifest, read_listing),
}


def main(a: argparse.Namespace) -> None:
    """Run the benchmark. Raises SegrecError if memory per source grows."""
    growth, rows = Growth(), []
    for count in sorted(a.counts):
        with tempfile.TemporaryDirectory(prefix="segrec-planning-", dir=a.folder) as folder:
            log.info(f"{count:,} sources: files and index")
            case = measure(make, Case(count, folder, a.memory)).result
            for name, (step, peer) in STEPS.items():
                log.info(f"{count:,} sources: {name}")
                peer_seconds, measured = measure(peer, case).result, measure(step, case)
                times = [
                    f"{seconds / count * 1e6:.2f}" for seconds in (measured.result, peer_seconds)
                ]
                memory = [
                    f"{x / 1e6:,.0f}" for x in (measured.driver, measured.total, measured.disk)
                ]
                kb = growth.add(name, count, measured.driver)
                rows.append(
                    [
                        f"{count:,}",
                        name,
                        *times,
                        f"{measured.result / peer_seconds:.1f}",
                        *memory,
                        kb,
                    ]
                )
    header = ["sources", "step", "s/million", "peer", "×"]
    header += ["driver MB", "total MB", "disk MB", "KB/source"]
    print(console.table("listing and planning", header, rows), end="")
    growth.check()


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    counts = [10_000, 100_000, 1_000_000]
    add = parser.add_argument
    add("--counts", type=int, nargs="+", default=counts, metavar="N", help="numbers of sources")
    add("--folder", metavar="DIR", help="for the files, about 2.5 GB a million (default: /tmp)")
    add("--memory", metavar="SIZE", help="of DuckDB (default: the planner's own, 4GB)")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
