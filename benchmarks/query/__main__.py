"""Time to find the ten most similar images, next to other systems on the same vectors.

×: time relative to a matrix-vector product of NumPy over all vectors in memory. All figures come
from one warm run on all cores. In each round all ways run in turn on a new query; the best round
counts.

    questions    all images; the cars whose σ is in a window that 13 % or 1 % pass; or none
    peers        NumPy; FAISS, a flat index; LanceDB, a scan behind a filter on coverage;
                 DuckDB over unsorted Parquet, with the plain macro `pearson`
    segrec       `recommend`, by vector and by image_id, over a query cache and over the Parquet
                 files of the index; `recommend_by_sign_bits` over the cache
    floor        bytes of the vectors that pass / memory bandwidth measured in this run

All ways but the sign bits must give the same answer. The index is synthetic (see synthetic.py).
Bars are upper limits of × at the largest number of rows; the exit code is 1 if one is exceeded.
growth: time relative to that with the previous number of rows.
"""

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # no thread spins while another way runs

import numpy as np

from benchmarks.query.building import build
from benchmarks.query.synthetic import WIDE, WINDOWS, Case, Vectors
from segrec_batch.common import console, logs
from segrec_batch.common.errors import AccountingError, InputError, SegrecError
from segrec_batch.model.backbones import DEFAULT_BACKBONE

log = logging.getLogger("segrec_batch.benchmarks")

if TYPE_CHECKING:  # DuckDB, imported in a spawned process, would behave as in a notebook
    from benchmarks.query.peers import Ask, NumPy, Questions

Times = dict[tuple[str, str], float]
"""Best seconds by question and way."""
Built = dict[str, dict[str, float]]
"""Result of `build`."""

EXAMPLES = """\
examples:
  python -m benchmarks.query
  # the second run builds nothing
  python -m benchmarks.query --workdir /mnt/disk/query --keep
  python -m benchmarks.query --rows 100000 --without faiss,lancedb
"""
PACKAGES = {"faiss": "faiss-cpu", "lancedb": "lancedb"}
QUERIES = 50
MEMORY = "NumPy reads all bytes"
INEXACT = ("NumPy product", MEMORY, "cache, by sign bits")
SLOW, FEW = 3, 10  # rounds of ways that take seconds, or almost one
PAUSE = 0.03  # s; BLAS threads spin that long for more work
BARS = {
    ("all", "cache, by vector"): 7.0,
    ("all", "cache, by sign bits"): 1.0,
    ("13 %", "cache, by vector"): 1.0,
    ("1 %", "cache, by vector"): 0.1,
}
STEPS = {
    "index": "write the index",
    "bare": "read it with PyArrow",
    "cache": "make the query cache",
    "refresh": "refresh it after 1 % changed",
    "parquet": "write unsorted Parquet",
    "lancedb": "write the LanceDB table",
}
SIZES = ("peak MB", "MB")
ROW_GROUPS = 0.25  # at most, of those that the 13 % window could touch
RECALL = 0.99  # at least, of the sign bits' answers


@dataclass
class Way:
    """One way to answer a question, with its times and answers."""

    question: str
    name: str
    ask: "Ask"
    rounds: int = QUERIES
    seconds: list[float] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        """Question and name, which identify the measurement."""
        return self.question, self.name

    @property
    def best(self) -> float:
        """Seconds of the best round."""
        return min(self.seconds)

    def run(self, query: int) -> None:
        """Answer one query and record time and answer."""
        time.sleep(PAUSE)
        clock = time.perf_counter()
        answer = self.ask(query, WINDOWS[self.question])
        self.seconds.append(time.perf_counter() - clock)
        self.answers.append(answer)

    def clear(self) -> None:
        """Discard the times and answers of the warm-up."""
        self.seconds.clear()
        self.answers.clear()


def list_ways(questions: "Questions", numpy: "NumPy", without: list[str]) -> list[Way]:
    """Return all ways, those of NumPy first."""
    from benchmarks.query.peers import Faiss, Lance, Parquet, Segrec

    cache, files, plain = Segrec(questions, True), Segrec(questions, False), Parquet(questions)
    ways = [
        Way("all", "NumPy product", numpy.product),
        Way("all", MEMORY, numpy.read),
        Way("all", "cache, by vector", cache.images_by_vector),
        Way("all", "cache, by image_id", cache.images_by_image),
        Way("all", "cache, by sign bits", cache.by_sign_bits),
        Way("all", "Parquet of the index, by vector", files.images_by_vector, SLOW),
    ]
    if "faiss" not in without:
        ways.append(Way("all", "FAISS flat", Faiss(questions, numpy.matrix).ask))
    lance = None if "lancedb" in without else Lance(questions)
    for question in ("all", "13 %", "1 %"):
        ways.append(Way(question, "DuckDB, unsorted Parquet", plain.ask, SLOW))
        if lance:
            ways.append(Way(question, "LanceDB flat", lance.ask, FEW))
    for question in ("13 %", "1 %", "none"):
        ways.append(Way(question, "cache, by vector", cache.by_vector))
        ways.append(Way(question, "cache, by image_id", cache.by_image))
        ways.append(Way(question, "Parquet of the index, by vector", files.by_vector, SLOW))
    order = list(WINDOWS)
    return sorted(ways, key=lambda way: order.index(way.question))


def run_all(ways: list[Way]) -> None:
    """Run every way on every query, in turn."""
    for way in ways:
        way.run(0)
        way.clear()
    for query in range(QUERIES):
        for way in ways:
            if query < way.rounds:
                way.run(query)


def check_answers(ways: list[Way], questions: "Questions", numpy: "NumPy") -> None:
    """Raise AccountingError unless each exact answer equals that of NumPy, except for ties."""
    exact = [way for way in ways if way.name not in INEXACT]
    for query in range(QUERIES):
        answered = [way for way in exact if query < way.rounds]
        for row in (None, questions.rows[query]):
            unit = questions.units[query] if row is None else numpy.matrix[row]
            expected = numpy.find_best(unit, row)
            for way in answered:
                if ("image_id" in way.name) == (row is not None):
                    compare(way, way.answers[query], expected[WINDOWS[way.question]], numpy, unit)


def compare(
    way: Way, answer: list[int], expected: list[int], numpy: "NumPy", unit: Vectors
) -> None:
    """Raise AccountingError for answers with other scores."""
    exact = unit.astype(np.float64)
    first, second = [np.sort(numpy.matrix[rows] @ exact) for rows in (answer, expected)]
    if len(answer) != len(expected) or not np.allclose(first, second, rtol=0, atol=1e-6):
        raise AccountingError(f"{way.question}, {way.name}: the answer is {answer}, not {expected}")


def measure_recall(ways: dict[tuple[str, str], Way]) -> float:
    """Return the share of the exact answers that the sign bits find."""
    exact, near = (ways["all", f"cache, by {name}"].answers for name in ("image_id", "sign bits"))
    return float(np.mean([len({*a} & {*b}) / len(a) for a, b in zip(exact, near, strict=True)]))


def format_times(case: Case, ways: list[Way], before: Times, numpy: "NumPy") -> str:
    """Return the table of all times."""
    (read,) = (way.best for way in ways if way.name == MEMORY)
    bandwidth, rows = numpy.matrix.nbytes / read, []
    for question, window in WINDOWS.items():
        size = numpy.count_passing(window) * DEFAULT_BACKBONE.feature_length * 4
        floor = size / bandwidth
        text = f"floor: {size / 1e6:,.0f} MB at {bandwidth / 1e9:.0f} GB/s"
        figures = [f"{1000 * floor:.1f}", "absent", f"{floor / ways[0].best:.3f}"]
        rows.append([question, text, *figures, "absent", "absent"])
        rows += [format_way(way, ways[0].best, before) for way in ways if way.question == question]
    header = ["passing", "way", "ms", "p95 ms", "×", "bar", "growth"]
    return console.table(f"{case.rows:,} rows × {DEFAULT_BACKBONE.feature_length}", header, rows)


def format_way(way: Way, unit: float, before: Times) -> list[str]:
    """Return the table cells of a way; `unit` is the seconds of 1 ×."""
    p95 = 1000 * float(np.quantile(way.seconds, 0.95))
    figures = [f"{1000 * way.best:.1f}", f"{p95:.1f}", f"{way.best / unit:.3f}"]
    bar = f"{BARS[way.key]:g}" if way.key in BARS else "absent"
    growth = f"{way.best / before[way.key]:.1f}" if way.key in before else "absent"
    return [way.question, way.name, *figures, bar, growth]


def format_build(case: Case, built: Built) -> str:
    """Return the table of building the index, the cache and the files of the peers."""
    bare = built["bare"]["s"]
    rows = [
        [STEPS[name], f"{x['s']:.1f}", f"{x['s'] / bare:.1f}", *(f"{x[n]:,.0f}" for n in SIZES)]
        for name, x in built.items()
    ]
    return console.table(f"building {case.rows:,} rows", ["step", "s", "×", *SIZES], rows)


def measure_row_groups(questions: "Questions") -> dict[str, float]:
    """Return the share of the row groups of class car that the 13 % window touches."""
    from benchmarks.query.peers import Parquet, Segrec

    works = {
        "Parquet of the index": Segrec(questions, False).measure_work(0, WIDE),
        "unsorted Parquet": Parquet(questions).measure_work(0, WIDE),
    }
    for name, work in works.items():
        log.info(f"13 % of σ, {name}: {work}")
    return {name: work.row_groups / work.all_row_groups for name, work in works.items()}


def measure(case: Case, built: Built, before: Times, without: list[str]) -> tuple[Times, list[str]]:
    """Measure one index and print the tables; return best times, and the bars that are exceeded."""
    from benchmarks.query.peers import NumPy, Questions

    log_progress(case, "making the matrix")
    questions = Questions(case, QUERIES)
    numpy = NumPy(questions)
    ways = list_ways(questions, numpy, without)
    log_progress(case, f"running {len(ways)} ways")
    run_all(ways)
    log_progress(case, "comparing the answers")
    check_answers(ways, questions, numpy)
    console.show(format_build(case, built))
    console.show(format_times(case, ways, before, numpy))
    times = {way.key: way.best for way in ways}
    ratios = {" ".join(key): (times[key] / ways[0].best, bar) for key, bar in BARS.items()}
    recall = measure_recall({way.key: way for way in ways})
    touched = measure_row_groups(questions)
    planning = times["none", "cache, by vector"] / times["1 %", "cache, by vector"]
    lines = [[f"{recall:.3f}", "recall@10 of sign bits"]]
    lines += [[f"{share:.3f}", f"row groups for 13 %, {name}"] for name, share in touched.items()]
    lines += [[f"{planning:.3f}", "empty window / 1 %, over the cache: share of planning"]]
    console.show(console.table("shares", ["share", ""], lines))
    ratios["row groups"] = touched["Parquet of the index"], ROW_GROUPS
    ratios["sign bits that miss"] = 1 - recall, 1 - RECALL
    return times, [f"{n}: {x:.3f}, not {bar:.3g}" for n, (x, bar) in ratios.items() if x > bar]


def log_progress(case: Case, text: str) -> None:
    """Log a message with the load of the machine."""
    log.info(f"{case.rows:,} rows, load {os.getloadavg()[0]:.1f}: {text}")


def main(a: argparse.Namespace) -> None:
    """Run the benchmark. Raises SegrecError if a bar is exceeded."""
    absent = [n for n in PACKAGES if n not in a.without and not importlib.util.find_spec(n)]
    if absent:
        names = ",".join(absent)
        raise InputError(
            f"{names} not installed: pip install -e '.[bench]', or say --without {names}"
        )
    with ExitStack() as stack:
        if not a.keep:
            Path(a.workdir).mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix="segrec-query-", dir=a.workdir)
            a.workdir = stack.enter_context(folder)
        cases = [Case(rows, a.workdir) for rows in sorted(a.rows)]
        built = [build(case, [n for n in PACKAGES if n not in a.without]) for case in cases]
        times: Times = {}
        bars: list[str] = []
        for case, figures in zip(cases, built, strict=True):
            times, bars = measure(case, figures, times, a.without)
    if bars:
        raise SegrecError(f"bars exceeded: {'; '.join(bars)}")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    counts = [100_000, 1_000_000]
    add("--rows", type=int, nargs="+", default=counts, metavar="N", help="numbers of images")
    add("--workdir", default=tempfile.gettempdir(), metavar="DIR", help="15 GB a million images")
    add("--keep", action="store_true", help="keep built files, and use those of earlier runs")
    add("--without", type=lambda names: names.split(","), default=[], metavar="faiss,lancedb")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
