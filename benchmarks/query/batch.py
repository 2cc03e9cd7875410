"""Cost of exactness: a part of the recommendation job against the bare blocked product.

Clustered vectors, the same for queries and candidates. One process and the same number of threads:

    bare    for each block of candidates: float32 matrix product, top k; top k of these
    search  what a task of the job does with a part of its queries: unit vectors, products, the
            running shortlist, exact scores in float64, the proof, and a sweep where it fails
    rows    search, and RECOMMENDATIONS of it

Both read raw blocks from memory; bare is given unit vectors. Best of some rounds, in which the
steps take turns. Then each runs once in a process of its own: memory is its peak less that of the
process before, without the blocks; the formula is --memory and the blocks of one step.
If search takes more than 1.7 times as long as bare, or more memory than that, the exit code is 1.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks.common.peak_memory import measure
from segrec_batch.common import console, logs
from segrec_batch.common.errors import SegrecError
from segrec_batch.search.batch.choice import Choice, as_table, choose
from segrec_batch.search.batch.scores import Pairs, unit_vectors
from segrec_batch.search.batch.search import Block, Candidates, Search, block_sizes

EXAMPLES = """\
examples:
  python -m benchmarks.query.batch
  python -m benchmarks.query.batch --count 1000000 --queries 1024 --rounds 2
  python -m benchmarks.query.batch --device cuda --count 1000000
"""
BAR = 1.7
GIB = 2**30
CHUNK = 4096  # vectors that are made at once


@dataclass
class Case:
    """So many candidates and queries, and how they are compared."""

    count: int
    queries: int
    width: int
    k: int
    memory: int
    device: str
    folder: str

    def __post_init__(self) -> None:
        self.block_sizes = block_sizes(self.memory, self.queries, self.width, self.k)

    @property
    def formula(self) -> int:
        """Bytes that a search may take beside its blocks."""
        return self.memory + 4 * self.width * (2 * self.queries + self.block_sizes.block)


def make(case: Case) -> tuple[Candidates, Block]:
    """Candidates in blocks as the job makes them, and queries that are among them."""
    rng = np.random.default_rng(0)
    centres = rng.gamma(0.5, size=(max(case.count // 100, 1), case.width)).astype(np.float32)
    step = case.block_sizes.block
    blocks = [
        block(clustered(rng, centres, min(step, case.count - first)), first)
        for first in range(0, case.count, step)
    ]
    which = np.arange(min(case.queries, len(blocks[0])))
    queries = Block(
        blocks[0].features[which], blocks[0].totals[which], blocks[0].norms[which],
        blocks[0].places[which], blocks[0].contents[which], blocks[0].rows.take(which),
    )  # fmt: skip
    return Candidates([lambda b=b: b for b in blocks], [len(b) for b in blocks]), queries  # type: ignore[misc]


def clustered(
    rng: np.random.Generator, centres: NDArray[np.float32], count: int
) -> NDArray[np.float32]:
    """Non-negative vectors, 100 about each centre on average."""
    found = centres[rng.integers(0, len(centres), count)]
    for start in range(0, count, CHUNK):
        part = found[start : start + CHUNK]
        part += 0.5 * rng.random(part.shape, np.float32)
    return found


def block(features: NDArray[np.float32], first: int) -> Block:
    """Vectors with their sums and norms, and rows that tell of them."""
    totals, norms = np.empty((2, len(features)))
    for start in range(0, len(features), CHUNK):
        chunk = slice(start, start + CHUNK)
        x = features[chunk].astype(np.float64)
        totals[chunk] = x.sum(axis=1)
        norms[chunk] = np.sqrt(x.shape[1] * (x * x).sum(axis=1) - totals[chunk] ** 2)
    places = np.arange(first, first + len(features))
    names = [f"{place:032x}" for place in places]
    told = {"image_id": names, "uri": names, "coverage": pa.nulls(len(names), pa.float32())}
    return Block(features, totals, norms, places, places, pa.table(told))


def bare(case: Case, units: list[torch.Tensor], query: torch.Tensor) -> torch.Tensor:
    """Return the indices of the k best float32 scores of each query."""
    values, indices, first = [], [], 0
    memory = torch.empty(len(query) * case.block_sizes.block, device=case.device)
    for unit in units:
        scores = memory[: len(query) * len(unit)].view(len(query), -1)
        torch.mm(query, unit.T, out=scores)
        top = scores.topk(min(case.k, len(unit)), dim=1)
        values.append(top.values)
        indices.append(top.indices + first)
        first += len(unit)
    order = torch.cat(values, 1).topk(case.k, dim=1).indices
    return torch.cat(indices, 1).gather(1, order).cpu()


def search(case: Case, candidates: Candidates, queries: Block) -> tuple[Search, Pairs]:
    """Search as a task of the job does."""
    choice = Choice(case.k)
    found = Search(queries, candidates, choice.exclusions, case.block_sizes, case.device)
    return found, choose(found, choice)


def times(case: Case, rounds: int) -> tuple[dict[str, float], int]:
    """Best seconds of each step; how many queries were swept."""
    candidates, queries = make(case)
    units = [unit_vectors(fetch(), slice(None), case.device) for fetch in candidates.blocks]
    query = unit_vectors(queries, slice(None), case.device)
    run: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(case, units, query),
        "search": lambda: search(case, candidates, queries),
        "rows": lambda: as_table(*search(case, candidates, queries)),
    }
    best = dict.fromkeys(run, float("inf"))
    for _ in range(rounds):
        for name, step in run.items():
            clock = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - clock)
    return best, search(case, candidates, queries)[0].swept


def peak(case: Case) -> int:
    """Bytes that a search takes at its peak, beside what there was before."""
    candidates, queries = make(case)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # what PyTorch takes for itself
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far
    before = resident("VmRSS")
    search(case, candidates, queries)
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Read a value of this process's memory, in bytes."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if name in x)
    return int(line.split()[1]) * 1024


def main(a: argparse.Namespace) -> None:
    """Run the benchmark. Raises SegrecError if a bar is violated."""
    with tempfile.TemporaryDirectory(prefix="segrec-neighbours-") as folder:
        memory = int(a.memory * GIB)
        case = Case(a.count, a.queries, a.width, a.k, memory, a.device, folder)
        best, swept = times(case, a.rounds)
        took = measure(peak, case).result
    products = 2 * case.count * case.queries * case.width
    rows = [
        [name, f"{s:.2f}", f"{products / s / 1e9:,.0f}", f"{s / best['bare']:.2f}"]
        for name, s in best.items()
    ]
    title = f"{case.queries:,} × {case.count:,}, k {case.k}"
    print(console.table(title, ["step", "s", "GFLOP/s", "× bare"], rows), end="")
    print(f"{swept:,} queries swept; memory {took / 1e6:,.0f} of {case.formula / 1e6:,.0f} MB")
    if best["search"] > BAR * best["bare"]:
        raise SegrecError(f"search takes more than {BAR} × bare")
    if took > case.formula:
        raise SegrecError("search takes more memory than its formula says")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--count", type=int, default=100_000, metavar="N", help="candidates (default: 100,000)")
    add("--queries", type=int, default=4096, metavar="N", help="of one part (default: 4096)")
    add("--width", type=int, default=512, metavar="C", help="values of a vector (default: 512)")
    add("-k", type=int, default=20, metavar="K", help="(default: 20)")
    add("--memory", type=float, default=1, metavar="GIB", help="of the search (default: 1)")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--rounds", type=int, default=3, metavar="N", help="the best counts (default: 3)")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
