"""Index images under faults, and compare with an undisturbed index.

A trial begins with an empty index or with a good one. Its steps change images (some are new, some
change, go, move, break or are touched), start the indexing job and disturb it: a process is killed,
images cannot be read, their folder vanishes, the disk is full, a clock is wrong, another job writes
to the same index. After each step the index must be whole, and no good row may be lost for a fault
of the moment. Then all faults are mended, and one run must bring the index, row for row, to what an
undisturbed index of the same images has. All of it follows from the seed, except how far a job gets
before it is disturbed.
"""

import argparse
import json
import multiprocessing
import os
import random
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from ray.cluster_utils import Cluster

import segrec_batch
from segrec_batch.common import console
from segrec_batch.distributed import cluster
from segrec_batch.index import snapshot as store
from segrec_batch.index.files import group_by_part
from segrec_batch.maintenance.verify import check_part
from tests.support.builders import smooth_pixels, tiny_model
from tests.support.processes import victims

ROOT = Path(__file__).parents[2]
EXAMPLES = """\
examples:
  python tests/support/chaos.py --trials 200
  # one trial again
  python tests/support/chaos.py --first 17 --trials 1 --keep /tmp/chaos
"""
NAMES = tuple(f"{n:02}.png" for n in range(14))
BROKEN = "no image"  # a content beside the numbered ones
VERSIONS = (0, 1, BROKEN)
TABLES = ("images", "regions", "descriptors", "failures")
OF_THE_RUN = {"run_id", "indexed_at", "failed_at", "source_etag"}
DISK = 128 * 2**20  # bytes
JOB_SECONDS = 300
NODE_CPUS = 3  # on two, models of two runs at once can leave none for the tasks of either
LIBFAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"

State = dict[str, int | str]  # content, by name

HALF_ROWS = """
    WITH parts AS (SELECT image_id, sum(coverage) AS whole FROM regions GROUP BY ALL)
    SELECT
        (SELECT count(*) FROM images LEFT JOIN parts USING (image_id)
         WHERE whole IS NULL OR abs(whole - 1) > 1e-5) AS half,
        (SELECT count(*) FROM parts ANTI JOIN images USING (image_id)) AS without_image,
        (SELECT count(*) FROM descriptors ANTI JOIN images USING (image_id)) AS vectors_without,
        (SELECT count(*) - count(DISTINCT uri) FROM images) AS images_twice,
        (SELECT count(*) - count(DISTINCT uri) FROM failures) AS failures_twice,
        (SELECT count(*) FROM failures SEMI JOIN images USING (uri) WHERE stage <> 'read') AS both
"""


class ChaosError(AssertionError):
    """Raise when an index is not what it has to be."""


@dataclass
class Stage:
    """Parts that trials share: cluster, images, small disk for the index, undisturbed indexes."""

    cluster: Cluster
    nodes: list[Any]
    folder: Path
    is_disk_small: bool
    context: Any = field(default_factory=lambda: multiprocessing.get_context("forkserver"))
    drivers: list["Driver"] = field(default_factory=list)
    expected: dict[int | str, dict[str, dict[Any, dict[str, Any]]]] = field(default_factory=dict)
    run_seconds: float = 5.0

    @property
    def images(self) -> Path:
        """The folder of images: the same in all trials, for URIs are part of the rows."""
        return self.folder / "images"

    @property
    def index(self) -> Path:
        """The index of the trial."""
        return self.folder / "disk" / "index"

    @property
    def template(self) -> Path:
        """An undisturbed index of all names in version 0."""
        return self.folder / "template"

    def arguments(self) -> list[str]:
        """Return the arguments of the indexing job."""
        given = {"--images": self.images, "--model": self.folder / "model", "--index": self.index}
        fixed = {"--device": "cpu", "--engine": "ncnn", "--batch-size": 2, "--commit-seconds": 0.3}
        return [str(x) for pair in (given | fixed).items() for x in pair]

    def start(self, program: str = "jobs/index.py", *arguments: str) -> "Driver":
        """Start a job in a process of its own, one that has no job at the moment if there is."""
        self.drivers = [driver for driver in self.drivers if driver.process.is_alive()]
        driver = next((driver for driver in self.drivers if driver.exitcode is not None), None)
        if driver is None:
            driver = Driver(self.context)
            self.drivers.append(driver)
        driver.start(program, [*(arguments or self.arguments())], str(self.log))
        return driver

    @property
    def log(self) -> Path:
        """Output of the jobs of the trial."""
        return self.folder / "log"

    def run(self) -> int:
        """Run the indexing job undisturbed and return its exit code."""
        return finish(self.start())


class Driver:
    """A process that runs jobs one after the other, so that Ray may keep its workers in between."""

    def __init__(self, context: Any) -> None:
        self.link, other = context.Pipe()
        self.process = context.Process(target=run_jobs, args=(other,), daemon=True)
        self.process.start()
        self._code: int | None = 0

    def start(self, program: str, arguments: list[str], log: str) -> None:
        """Start a job as `python PROGRAM ARGUMENTS`."""
        self._code = None
        self.link.send((program, arguments, log))

    @property
    def exitcode(self) -> int | None:
        """The exit code of the job, None while it runs; that of the process if it was killed."""
        if self._code is None and self.link.poll():
            with suppress(EOFError, ConnectionError):
                self._code = self.link.recv()
        if self._code is None:
            self._code = self.process.exitcode
        return self._code

    def join(self, seconds: float) -> None:
        """Wait for the job, so many seconds at most."""
        end = time.monotonic() + seconds
        while self.exitcode is None and time.monotonic() < end:
            wait([self.link, self.process.sentinel], end - time.monotonic())

    def kill(self) -> None:
        """Kill the process, and the job with it."""
        self.process.kill()


def run_jobs(link: Any) -> None:
    """Run the jobs that come over a link: the target of the process of a `Driver`."""
    with cluster.join():
        while True:
            program, arguments, log = link.recv()
            with open(log, "ab", buffering=0) as file:  # noqa: PTH123
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.argv = [program, *arguments]
            try:
                runpy.run_path(str(ROOT / program), run_name="__main__")
            except SystemExit as end:
                link.send(int(end.code or 0))


def finish(process: Any) -> int:
    """Wait for a job and return its exit code. Raises ChaosError if it does not end."""
    process.join(JOB_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise ChaosError(f"a job did not end within {JOB_SECONDS} s")
    return int(process.exitcode)


@contextmanager
def open_stage(folder: Path) -> Iterator[Stage]:
    """Start a cluster, and index each content of each image undisturbed."""
    model = tiny_model(taps=("conv3_3", "conv5_3"))
    model = model.with_descriptor("hog", {"cell": 8, "block": 2, "bins": 9}, {})
    model.save(str(folder / "model"))
    (folder / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder / "disk")]
    is_small = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    ray_cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = ray_cluster.address  # of jobs
    stage = Stage(ray_cluster, [ray_cluster.add_node(num_cpus=NODE_CPUS)], folder, is_small)
    try:
        stage.context.set_forkserver_preload(["__main__", "segrec_batch.pipeline.run"])
        for content in VERSIONS:
            record_reference(stage, content)
        yield stage
    finally:
        for driver in stage.drivers:
            driver.kill()
        ray_cluster.shutdown()
        del os.environ["RAY_ADDRESS"]
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        if is_small:
            subprocess.run(["umount", "--lazy", str(folder / "disk")], check=True)


def record_reference(stage: Stage, content: int | str) -> None:
    """Index all names with one content, and keep the rows by name."""
    reset(stage, dict.fromkeys(NAMES, content), index=None)
    started = time.monotonic()
    code = stage.run()
    if code:
        raise ChaosError(f"the undisturbed run of {content!r} ended with {code}: {tail(stage)}")
    if content == 1:  # the process from which jobs are forked is there, and images are to be done
        stage.run_seconds = time.monotonic() - started
    stage.expected[content] = read_rows(str(stage.index))
    if content == 0:
        shutil.copytree(stage.index, stage.template)


def reset(stage: Stage, state: State, index: Path | None) -> None:
    """Begin anew: images of a state, and a copy of an index, or none."""
    for path in (stage.images, stage.index):
        shutil.rmtree(path, ignore_errors=True)
    stage.log.unlink(missing_ok=True)
    stage.images.mkdir()
    for name, content in state.items():
        write_image(stage.images / name, content)
    if index:
        shutil.copytree(index, stage.index)


def write_image(path: Path, content: int | str) -> None:
    """Write a content, which is another one for each name, with the time that belongs to it."""
    number = VERSIONS.index(content)
    if content == BROKEN:
        path.write_bytes(f"{BROKEN} {path.name}".encode())
    else:
        seed = number * 100 + int(path.stem) // 2  # pairs of names have the same bytes
        Image.fromarray(smooth_pixels(48, 64, seed=seed)).save(path)
    os.utime(path, (1e9 + number, 1e9 + number))


def read_rows(index: str) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return the rows of all tables by key, less what tells two runs apart."""
    connection = segrec_batch.connect(index)
    result = {}
    for table in TABLES:
        rows = connection.sql(f"SELECT * FROM {table}").to_arrow_table().to_pylist()
        keys = [(Path(r["uri"]).name, r.get("class"), r.get("descriptor")) for r in rows]
        if len(set(keys)) < len(keys):
            raise ChaosError(f"{table} has a row twice")
        kept = [{k: v for k, v in row.items() if k not in OF_THE_RUN} for row in rows]
        result[table] = dict(zip(keys, kept, strict=True))
    return result


def compare(stage: Stage, state: State) -> int:
    """Compare the index with undisturbed rows and return how many were compared."""
    actual, compared = read_rows(str(stage.index)), 0
    for table in TABLES:
        expected = {
            key: row
            for name, content in state.items()
            for key, row in stage.expected[content][table].items()
            if key[0] == name
        }
        if actual[table].keys() != expected.keys():
            other = sorted(actual[table].keys() ^ expected.keys(), key=str)
            raise ChaosError(f"{table}: rows are lost or left: {other[:6]}")
        for key, row in expected.items():
            compare_rows(table, key, actual[table][key], row)
        compared += len(expected)
    etags = dict(segrec_batch.connect(str(stage.index)).sql(ETAGS).fetchall())
    for name in state:
        path = stage.images / name
        if etags[str(path)] != f"{path.stat().st_mtime_ns / 1e9:.6f}":
            raise ChaosError(f"{name}: the index has another time than the file")
    snapshot = store.open_snapshot(str(stage.index))
    for files in group_by_part(snapshot.all_files).values():
        if problems := check_part((snapshot.index, files, snapshot.spec, snapshot.model_id)):
            raise ChaosError(f"verify: {problems[:3]}")
    return compared


ETAGS = "SELECT uri, source_etag FROM images UNION ALL SELECT uri, source_etag FROM failures"


def compare_rows(table: str, key: object, actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise ChaosError if two rows differ."""
    for column in actual.keys() | expected.keys():
        a, b = actual.get(column), expected.get(column)
        if column in ("feature", "inv_norm"):  # a batch of other images may round otherwise
            same = np.allclose(np.float64(a), np.float64(b), rtol=1e-4, atol=1e-5)
        else:
            same = a == b
        if not same:
            raise ChaosError(f"{table} {key}: {column} is {str(a)[:80]}, not {str(b)[:80]}")


def check_whole(stage: Stage, before: set[str], state: State) -> set[str]:
    """Check an index after a fault and return the names that have a good row.

    before: names that had one; they still must, unless their source is gone or broken.
    """
    if not store.exists(str(stage.index)):
        if before:
            raise ChaosError("the index is gone")
        return set()
    connection = segrec_batch.connect(str(stage.index))
    (row,) = connection.sql(HALF_ROWS).fetchall()
    if any(row):
        raise ChaosError(f"half rows: {row}")
    good = {Path(u).name for (u,) in connection.sql("SELECT uri FROM images").fetchall()}
    lost = {n for n in before - good if state.get(n, BROKEN) != BROKEN}
    if lost:
        raise ChaosError(f"good rows are lost: {sorted(lost)}")
    return good


def mutate(stage: Stage, state: State, dice: random.Random) -> None:
    """Change some images on disk, and the state with them; less than half of them go."""
    for _ in range(dice.randrange(1, 6)):
        name, there = dice.choice(NAMES), stage.images
        action = dice.choice(("write", "write", "touch", "remove", "move", "break"))
        if action == "write":
            state[name] = dice.choice((0, 1))
        elif action == "break":
            state[name] = BROKEN
        elif name not in state:
            continue
        elif action == "touch":
            os.utime(there / name, (2e9, 2e9 + dice.randrange(1000)))
            continue
        elif action == "remove" and len(state) > 2 * len(NAMES) // 3:
            del state[name]
            (there / name).unlink()
            continue
        else:
            continue
        write_image(there / name, state[name])


Fault = Callable[[Stage, random.Random, Any], bool]  # disturbs a job; whether it could


def kill_driver(stage: Stage, dice: random.Random, job: Any) -> bool:
    """Kill the job."""
    job.kill()
    return True


def kill_worker(kind: str) -> Fault:
    """Return a fault that kills a process of a kind of VICTIMS."""

    def kill(stage: Stage, dice: random.Random, job: Any) -> bool:
        with suppress(psutil.NoSuchProcess):
            if result := victims(stage.nodes, kind):
                dice.choice(result).kill()
                return True
        return False

    return kill


def kill_raylet(stage: Stage, dice: random.Random, job: Any) -> bool:
    """Replace the node on which the job works."""
    stage.cluster.remove_node(stage.nodes.pop(), allow_graceful=False)
    stage.nodes.append(stage.cluster.add_node(num_cpus=NODE_CPUS))
    return True


def hide_images(stage: Stage, dice: random.Random, job: Any) -> bool:
    """Take the folder of images away, until the step ends."""
    stage.images.rename(stage.folder / "away")
    return True


def fill_disk(stage: Stage, dice: random.Random, job: Any) -> bool:
    """Fill the disk of the index, until the step ends."""
    block = bytes(2**16)
    with suppress(OSError), (stage.folder / "disk" / "filler").open("wb", buffering=0) as file:
        while file.write(block) == len(block):
            pass
    return True


def start_second_writer(stage: Stage, dice: random.Random, job: Any) -> bool:
    """Run another job on the same index: indexing, or maintenance."""
    program, *arguments = dice.choice(
        (
            ["jobs/index.py"],
            ["jobs/maintain.py", "--index", str(stage.index), "compact"],
            ["jobs/maintain.py", "--index", str(stage.index), "vacuum"],
        )
    )
    finish(stage.start(program, *arguments))
    return True


def spoil_reads(stage: Stage, dice: random.Random, job: Any) -> bool:
    """Put broken links in place of some images, until the step ends."""
    for path in dice.sample(sorted(stage.images.iterdir()), 4):
        with suppress(FileNotFoundError):
            (stage.folder / "spoilt").mkdir(exist_ok=True)
            path.rename(stage.folder / "spoilt" / path.name)
            path.symlink_to("no such file")
    return True


FAULTS: Mapping[str, Fault] = {
    "driver killed": kill_driver,
    "actor killed": kill_worker("actor"),
    "task worker killed": kill_worker("task worker"),
    "decoder killed": kill_worker("decoder"),
    "raylet killed": kill_raylet,
    "images unreadable": spoil_reads,
    "images vanish": hide_images,
    "disk full": fill_disk,
    "two writers": start_second_writer,
    "clock wrong": lambda stage, dice, job: True,
}


def mend(stage: Stage) -> None:
    """Undo the faults that last: the folder is back, images can be read, the disk has room."""
    (stage.folder / "disk" / "filler").unlink(missing_ok=True)
    away = stage.folder / "away"
    if away.exists():
        if stage.images.exists():
            shutil.rmtree(stage.images)
        away.rename(stage.images)
    for path in (stage.folder / "spoilt").glob("*"):
        (stage.images / path.name).unlink(missing_ok=True)
        path.rename(stage.images / path.name)


def disturb(stage: Stage, name: str, dice: random.Random) -> tuple[bool, int]:
    """Start the job and disturb it; whether the fault met it, and its exit code."""
    if early := name == "images unreadable" and dice.random() < 0.5:
        spoil_reads(stage, dice, None)
    job = start_with_wrong_clock(stage, dice) if name == "clock wrong" else stage.start()
    hit = early
    try:
        if not early:
            time.sleep(dice.uniform(0, stage.run_seconds))
            hit = job.exitcode is None and FAULTS[name](stage, dice, job)
        return hit, finish(job)
    finally:
        mend(stage)


class ClockedJob:
    """A job in a process whose clock is wrong; as much of a Process as is used here."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    @property
    def exitcode(self) -> int | None:
        """As of a Process."""
        return self.process.poll()

    def join(self, seconds: float | None = None) -> None:
        """As of a Process."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def kill(self) -> None:
        """As of a Process."""
        self.process.kill()


def start_with_wrong_clock(stage: Stage, dice: random.Random) -> ClockedJob:
    """Start the job with a clock that is days before or after that of the cluster."""
    days = dice.choice((-400, -2, 2, 400))
    environment = {
        **os.environ,
        "LD_PRELOAD": find_libfaketime() or "",
        "FAKETIME": f"{days:+}d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with stage.log.open("ab") as log:
        command = [sys.executable, str(ROOT / "jobs" / "index.py"), *stage.arguments()]
        return ClockedJob(
            subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)
        )


def find_libfaketime() -> str | None:
    """Return the path of Debian's libfaketime, None if it is not installed."""
    return next((str(p) for p in Path("/").glob(LIBFAKETIME.lstrip("/"))), None)


def possible_faults(stage: Stage) -> list[str]:
    """Return the faults that this machine allows."""
    left_out = set()
    if not stage.is_disk_small:
        left_out.add("disk full")
    if find_libfaketime() is None:
        left_out.add("clock wrong")
    return [name for name in FAULTS if name not in left_out]


@dataclass
class Outcome:
    """Result of a trial: faults tried, faults that met a running job, rows compared."""

    tried: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    exit_codes: Counter[int] = field(default_factory=Counter)
    rows: int = 0

    def add(self, other: "Outcome") -> None:
        """Add what another trial did."""
        self.tried += other.tried
        self.met += other.met
        self.exit_codes += other.exit_codes
        self.rows += other.rows


def run_trial(stage: Stage, seed: int) -> Outcome:
    """Run one trial. Raises ChaosError."""
    dice, outcome = random.Random(seed), Outcome()  # noqa: S311
    faults = possible_faults(stage)
    state: State = dict.fromkeys(NAMES, 0)
    fresh = dice.random() < 0.25
    reset(stage, state, None if fresh else stage.template)
    good = set() if fresh else set(NAMES)
    for step in range(dice.choice((1, 2))):
        mutate(stage, state, dice)
        name = faults[(seed + step) % len(faults)]
        hit, code = disturb(stage, name, dice)
        outcome.tried[name] += 1
        outcome.met[name] += hit
        outcome.exit_codes[code] += 1
        good = check_whole(stage, good, state)
    code = stage.run()
    if code:
        raise ChaosError(f"the run after all faults were mended ended with {code}: {tail(stage)}")
    outcome.rows = compare(stage, state)
    return outcome


def tail(stage: Stage) -> str:
    """Return the end of the jobs' log."""
    return stage.log.read_text(errors="replace")[-2000:]


def main() -> int:
    """Run trials, print what came of them, and return 1 if any failed."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=form)
    parser.add_argument("--trials", type=console.count, default=10, help="(default: 10)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="(default: 0)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and leave it")
    a = parser.parse_args()
    folder = a.keep or Path(tempfile.mkdtemp(prefix="segrec-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    total, failed = Outcome(), {}
    with open_stage(folder) as stage, console.ProgressMeter("trials", a.trials) as meter:
        with suppress(KeyboardInterrupt):  # what has been done is said all the same
            for seed in range(a.first, a.first + a.trials):
                try:
                    total.add(run_trial(stage, seed))
                except ChaosError as error:
                    failed[seed] = str(error)
                    print(f"trial {seed}: {error}", file=sys.stderr)
                    if a.keep:
                        shutil.copytree(stage.index, folder / f"failed-{seed}", dirs_exist_ok=True)
                meter.advance()
        left_out = FAULTS.keys() - set(possible_faults(stage))
    rows = [[name, str(n), str(total.met[name])] for name, n in total.tried.items()]
    console.show(console.table("", ("fault", "runs", "met a running job"), rows))
    figures = {
        "trials": meter.done,
        "failed": len(failed),
        "rows compared": total.rows,
        "exit codes": dict(total.exit_codes),
        "not possible here": sorted(left_out),
    }
    print(json.dumps(figures))
    if not a.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
