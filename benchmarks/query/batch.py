"""Cost of exactness: one part of the recommendation job compared with a plain blocked product.

Clustered vectors, the same for queries and candidates. One process and the same number of threads:

    bare    for each block of candidates: float32 matrix product, top k; top k of these
    search  what a task of the job does with a part of its queries: unit vectors, products, the
            running shortlist, exact scores in float64, the proof, and a sweep where it fails
    rows    search, and RECOMMENDATIONS of it

Both read raw blocks from memory; bare gets unit vectors. The steps take turns, and the best round
counts. Then a search runs in a new process: memory is its peak minus the memory before, without the
blocks; the formula is --memory plus the blocks of one step. The exit code is 1 if search takes more
than 1.7 times as long as bare, or more memory than the formula.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks.common.peak_memory import measure, read_memory, reset_peak
from segrec_batch.common import console, logs
from segrec_batch.common.errors import SegrecError
from segrec_batch.search.batch.choice import Choice, choose, to_table
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
CHUNK = 4096  # vectors that are drawn at a time


@dataclass
class Case:
    """Numbers of candidates and queries, and parameters of the search."""

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
        """Maximum bytes of a search without its blocks."""
        return self.memory + 4 * self.width * (2 * self.queries + self.block_sizes.block)


def make(case: Case) -> tuple[Candidates, Block]:
    """Return candidates in blocks as in the job, and queries that are among them."""
    rng = np.random.default_rng(0)
    centres = rng.gamma(0.5, size=(max(case.count // 100, 1), case.width)).astype(np.float32)
    step = case.block_sizes.block
    blocks = [
        make_block(draw_clustered(rng, centres, min(step, case.count - first)), first)
        for first in range(0, case.count, step)
    ]
    which = np.arange(min(case.queries, len(blocks[0])))
    queries = Block(
        blocks[0].features[which], blocks[0].totals[which], blocks[0].norms[which],
        blocks[0].places[which], blocks[0].contents[which], blocks[0].rows.take(which),
    )  # fmt: skip
    return Candidates([lambda b=b: b for b in blocks], [len(b) for b in blocks]), queries  # type: ignore[misc]


def draw_clustered(
    rng: np.random.Generator, centres: NDArray[np.float32], count: int
) -> NDArray[np.float32]:
    """Return non-negative vectors, about 100 around each centre."""
    vectors = centres[rng.integers(0, len(centres), count)]
    for start in range(0, count, CHUNK):
        part = vectors[start : start + CHUNK]
        part += 0.5 * rng.random(part.shape, np.float32)
    return vectors


def make_block(features: NDArray[np.float32], first: int) -> Block:
    """Return a block of vectors with their sums, norms and rows."""
    totals, norms = np.empty((2, len(features)))
    for start in range(0, len(features), CHUNK):
        chunk = slice(start, start + CHUNK)
        x = features[chunk].astype(np.float64)
        totals[chunk] = x.sum(axis=1)
        norms[chunk] = np.sqrt(x.shape[1] * (x * x).sum(axis=1) - totals[chunk] ** 2)
    places = np.arange(first, first + len(features))
    names = [f"{place:032x}" for place in places]
    columns = {"image_id": names, "uri": names, "coverage": pa.nulls(len(names), pa.float32())}
    return Block(features, totals, norms, places, places, pa.table(columns))


def search_bare(case: Case, units: list[torch.Tensor], query: torch.Tensor) -> torch.Tensor:
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


def search_exactly(case: Case, candidates: Candidates, queries: Block) -> tuple[Search, Pairs]:
    """Return a search, and its recommendations, as a task of the job computes them."""
    choice = Choice(case.k)
    search = Search(queries, candidates, choice.exclusions, case.block_sizes, case.device)
    return search, choose(search, choice)


def measure_times(case: Case, rounds: int) -> tuple[dict[str, float], int]:
    """Return the best seconds of each step, and the number of swept queries."""
    candidates, queries = make(case)
    units = [unit_vectors(fetch(), slice(None), case.device) for fetch in candidates.blocks]
    query = unit_vectors(queries, slice(None), case.device)
    run: dict[str, Callable[[], object]] = {
        "bare": lambda: search_bare(case, units, query),
        "search": lambda: search_exactly(case, candidates, queries),
        "rows": lambda: to_table(*search_exactly(case, candidates, queries)),
    }
    best = dict.fromkeys(run, float("inf"))
    for _ in range(rounds):
        for name, step in run.items():
            clock = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - clock)
    return best, search_exactly(case, candidates, queries)[0].swept


def measure_memory(case: Case) -> int:
    """Return the peak of the memory that a search adds, in bytes."""
    candidates, queries = make(case)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # allocate PyTorch's own memory first
    reset_peak()
    before = read_memory("VmRSS")
    search_exactly(case, candidates, queries)
    return read_memory("VmHWM") - before


def main(a: argparse.Namespace) -> None:
    """Run the benchmark. Raises SegrecError if a bar is violated."""
    with tempfile.TemporaryDirectory(prefix="segrec-neighbours-") as folder:
        memory = int(a.memory * GIB)
        case = Case(a.count, a.queries, a.width, a.k, memory, a.device, folder)
        best, swept = measure_times(case, a.rounds)
        memory_used = measure(measure_memory, case).result
    products = 2 * case.count * case.queries * case.width
    rows = [
        [name, f"{s:.2f}", f"{products / s / 1e9:,.0f}", f"{s / best['bare']:.2f}"]
        for name, s in best.items()
    ]
    title = f"{case.queries:,} × {case.count:,}, k {case.k}"
    print(console.table(title, ["step", "s", "GFLOP/s", "× bare"], rows), end="")
    print(
        f"{swept:,} queries swept; memory {memory_used / 1e6:,.0f} of {case.formula / 1e6:,.0f} MB"
    )
    if best["search"] > BAR * best["bare"]:
        raise SegrecError(f"search takes more than {BAR} × bare")
    if memory_used > case.formula:
        raise SegrecError("search takes more memory than the formula gives")


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
