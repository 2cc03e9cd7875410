"""Cost of opening a snapshot and of a commit, as the number of files grows.

A part has 5 files (images, and regions of 4 classes); the log describes them, but they do not
exist. Each step runs in a new process:

    open      `open_snapshot`                              peer: deltalake opens the tables
    commit    `commit` of 100 new and 100 removed parts    peer: the same

The benchmark also prints bytes of the log per file: in the commit that added the files, and in a
checkpoint. driver: peak memory of the process. KB/file: growth of that peak since the previous
number, per additional file. The exit code is 1 if that growth increases.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deltalake import DeltaTable

from benchmarks.common.peak_memory import Growth, check_count, measure
from benchmarks.common.stand_in import SPEC, StandInModel
from segrec_batch.common import console, logs
from segrec_batch.index import snapshot as store
from segrec_batch.index.files import DataFile, new_part, path_in_part
from segrec_batch.index.schema import TABLES, coverage_column

log = logging.getLogger("segrec_batch.benchmarks")

EXAMPLES = """\
examples:
  python -m benchmarks.scale.snapshots
  python -m benchmarks.scale.snapshots --parts 100 1000 10000
"""
COMMIT_PARTS = 100


@dataclass
class Case:
    """An index of `parts` parts."""

    parts: int
    folder: str

    @property
    def index(self) -> str:
        """Folder of the index."""
        return f"{self.folder}/index"


def make_part() -> list[DataFile]:
    """Return the files of a part that does not exist on disk."""
    name = new_part()
    columns = ["image_id", *map(coverage_column, SPEC.all_classes)]
    places: list[tuple[str, str | None, list[str]]] = [("images", None, columns)]
    places += [("regions", c, ["image_id", "coverage"]) for c in SPEC.all_classes]
    return [
        DataFile(table, path_in_part(table, name, c), 10**8, 65_536, c, make_statistics(names))
        for table, c, names in places
    ]


def make_statistics(names: list[str]) -> str:
    """Return statistics like those of `segrec_batch.index.files`."""
    low, high = (
        {n: v * 32 if n == "image_id" else int(v) + 0.12345678 for n in names} for v in "01"
    )
    nulls = dict.fromkeys(names, 0)
    return json.dumps(
        {"numRecords": 65_536, "minValues": low, "maxValues": high, "nullCount": nulls}
    )


def make(case: Case) -> dict[str, float]:
    """Write the index; return bytes of the log per file."""
    base = store.create(case.index, StandInModel())  # type: ignore[arg-type]
    files = [file for _ in range(case.parts) for file in make_part()]
    store.commit(base, files, [])
    folders = [Path(case.index, table, "_delta_log") for table in TABLES]
    commit_bytes = sum(path.stat().st_size for folder in folders for path in folder.glob("*1.json"))
    for table in TABLES:
        DeltaTable(f"{case.index}/{table}").create_checkpoint()
    checkpoints = (p for folder in folders for p in folder.glob("*.checkpoint.parquet"))
    checkpoint_bytes = sum(path.stat().st_size for path in checkpoints)
    return {"commit": commit_bytes / len(files), "checkpoint": checkpoint_bytes / len(files)}


def open_index(case: Case) -> float:
    """Open the newest snapshot; return the seconds, as all steps below."""
    clock = time.perf_counter()
    snapshot = store.open_snapshot(case.index)
    check_count(sum(1 for _ in snapshot.all_files), case.parts * 5)
    return time.perf_counter() - clock


def commit(case: Case) -> float:
    """Commit new parts in place of old ones."""
    base = store.open_snapshot(case.index)
    remove = [f for files in base.files.values() for f in files[:COMMIT_PARTS]]
    clock = time.perf_counter()
    store.commit(base, [file for _ in range(COMMIT_PARTS) for file in make_part()], remove)
    return time.perf_counter() - clock


def open_tables(case: Case) -> float:
    """Open the tables, and list their files in Arrow."""
    clock = time.perf_counter()
    tables = [DeltaTable(f"{case.index}/{table}") for table in TABLES]
    check_count(sum(table.get_add_actions().num_rows for table in tables), case.parts * 5)
    return time.perf_counter() - clock


STEPS = {"open": open_index, "commit": commit}


def main(a: argparse.Namespace) -> None:
    """Run the benchmark. Raises SegrecError if memory per file grows."""
    growth, rows = Growth(), []
    for parts in sorted(a.parts):
        with tempfile.TemporaryDirectory(prefix="segrec-snapshot-") as folder:
            case = Case(parts, folder)
            log_bytes = measure(make, case).result
            sizes = [f"{log_bytes[name]:,.0f}" for name in ("commit", "checkpoint")]
            for name, step in STEPS.items():
                log.info(f"{parts:,} parts: {name}")
                peer_seconds, measured = measure(open_tables, case).result, measure(step, case)
                kb = growth.add(name, parts * 5, measured.driver)
                ratio = measured.result / peer_seconds
                times = [f"{measured.result:.2f}", f"{peer_seconds:.2f}", f"{ratio:.1f}"]
                memory = [f"{measured.driver / 1e6:,.0f}", kb]
                rows.append([f"{parts * 5:,}", name, *times, *memory, *sizes])
    header = ["files", "step", "s", "peer", "×", "driver MB", "KB/file"]
    header += ["log bytes/file", "in a checkpoint"]
    print(console.table("snapshots", header, rows), end="")
    growth.check()


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    counts = [200, 2000, 20_000]
    parser.add_argument("--parts", type=int, nargs="+", default=counts, metavar="N")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
