"""Cost of opening a snapshot and of a commit, as the number of files grows.

The tables have 5 files a part (images, and regions of 4 classes); the log describes them, but they
are not there. Each step runs in a process of its own:

    open      `open_snapshot`                              peer: deltalake opens the three tables
    commit    `commit` of 100 parts more, 100 parts less   peer: the same

Prints also the bytes of the log a file: of the commit that added them, and of a checkpoint of it.
driver: peak memory of the process. KB/file: what that grew by since the number before, for each
file more. If that grows itself, the exit code is 1.
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

from benchmarks.common.peak_memory import Growth, check, measure
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
    """An index of so many parts."""

    parts: int
    folder: str

    @property
    def index(self) -> str:
        """Folder of the index."""
        return f"{self.folder}/index"


def part() -> list[DataFile]:
    """Return the files of a part that does not exist on disk."""
    name = new_part()
    columns = ["image_id", *map(coverage_column, SPEC.all_classes)]
    places: list[tuple[str, str | None, list[str]]] = [("images", None, columns)]
    places += [("regions", c, ["image_id", "coverage"]) for c in SPEC.all_classes]
    return [
        DataFile(table, path_in_part(table, name, c), 10**8, 65_536, c, stats(names))
        for table, c, names in places
    ]


def stats(names: list[str]) -> str:
    """Statistics like those of `segrec_batch.index.files`."""
    low, high = (
        {n: v * 32 if n == "image_id" else int(v) + 0.12345678 for n in names} for v in "01"
    )
    nulls = dict.fromkeys(names, 0)
    return json.dumps(
        {"numRecords": 65_536, "minValues": low, "maxValues": high, "nullCount": nulls}
    )


def make(case: Case) -> dict[str, float]:
    """Make the index; bytes of the log per file."""
    base = store.create(case.index, StandInModel())  # type: ignore[arg-type]
    files = [file for _ in range(case.parts) for file in part()]
    store.commit(base, files, [])
    logs = [Path(case.index, table, "_delta_log") for table in TABLES]
    log = sum(path.stat().st_size for folder in logs for path in folder.glob("*1.json"))
    for table in TABLES:
        DeltaTable(f"{case.index}/{table}").create_checkpoint()
    points = sum(p.stat().st_size for folder in logs for p in folder.glob("*.checkpoint.parquet"))
    return {"commit": log / len(files), "checkpoint": points / len(files)}


def open_index(case: Case) -> float:
    """Open the newest snapshot; seconds, as below."""
    clock = time.perf_counter()
    snapshot = store.open_snapshot(case.index)
    check(sum(1 for _ in snapshot.all_files), case.parts * 5)
    return time.perf_counter() - clock


def commit(case: Case) -> float:
    """Publish new parts in place of old ones."""
    base = store.open_snapshot(case.index)
    remove = [f for files in base.files.values() for f in files[:COMMIT_PARTS]]
    clock = time.perf_counter()
    store.commit(base, [file for _ in range(COMMIT_PARTS) for file in part()], remove)
    return time.perf_counter() - clock


def open_tables(case: Case) -> float:
    """Open the tables, and list their files in Arrow."""
    clock = time.perf_counter()
    tables = [DeltaTable(f"{case.index}/{table}") for table in TABLES]
    check(sum(table.get_add_actions().num_rows for table in tables), case.parts * 5)
    return time.perf_counter() - clock


STEPS = {"open": open_index, "commit": commit}


def main(a: argparse.Namespace) -> None:
    """Run the benchmark. Raises SegrecError if memory per file grows."""
    growth, rows = Growth(), []
    for parts in sorted(a.parts):
        with tempfile.TemporaryDirectory(prefix="segrec-snapshot-") as folder:
            case = Case(parts, folder)
            log = measure(make, case).result
            sizes = [f"{log[name]:,.0f}" for name in ("commit", "checkpoint")]
            for name, step in STEPS.items():
                log.info(f"{parts:,} parts: {name}")
                bare, found = measure(open_tables, case).result, measure(step, case)
                kb = growth.add(name, parts * 5, found.driver)
                times = [f"{found.result:.2f}", f"{bare:.2f}", f"{found.result / bare:.1f}"]
                memory = [f"{found.driver / 1e6:,.0f}", kb]
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
