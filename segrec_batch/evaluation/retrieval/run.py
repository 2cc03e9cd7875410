"""One run: read the images, find the ground truth, rank and count blocks of queries on Ray."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from segrec_batch.common.console import ProgressMeter
from segrec_batch.distributed import cluster
from segrec_batch.distributed.tasks import Shared, each
from segrec_batch.evaluation.retrieval import feedback
from segrec_batch.evaluation.retrieval.collection import FEATURE, Collection, Ints, load
from segrec_batch.evaluation.retrieval.conditions import PLAIN, Setting, Window
from segrec_batch.evaluation.retrieval.dimensions import SWEPT, sweep
from segrec_batch.evaluation.retrieval.latency import Latency, latencies
from segrec_batch.evaluation.retrieval.masks import Masks
from segrec_batch.evaluation.retrieval.methods import chosen, method, scores
from segrec_batch.evaluation.retrieval.pairs import Pairs
from segrec_batch.evaluation.retrieval.ranking import count_block, in_order, listed
from segrec_batch.evaluation.retrieval.settings import EPSILONS, WINDOWS, allowed, settings
from segrec_batch.evaluation.retrieval.truth import Folders, Truth
from segrec_batch.search.database import open_index

log = logging.getLogger(__name__)

Grid = tuple[tuple[str, ...], tuple[Setting, ...]]
"""Methods, and settings in each of which each of them is judged."""
_PAIRS = 2**21  # of queries and images in a block: some 60 bytes each
_BLOCKS = 64  # queries of a block, at most: several blocks a core


@dataclass(frozen=True)
class Retrieval:
    """What to judge. index: or a query cache. truth: what is relevant to what. methods: see
    `methods`; `all` stands for those of the index. windows, epsilons: filters, see `Setting`.
    queries: at most so many, drawn with `seed`. feedback_rounds: how often simulated users mark
    images, 0 for not at all. images_roots: see `choose_roots`.
    """

    index: str
    truth: Folders | Pairs | Masks
    methods: tuple[str, ...] = ("all",)
    windows: tuple[Window, ...] = WINDOWS
    epsilons: tuple[float, ...] = EPSILONS
    queries: int = 1000
    seed: int = 0
    version: int | None = None
    feedback_rounds: int = feedback.ROUNDS
    images_roots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """What came of it. asked: with the names of all methods. counts: COUNTS, by method and setting
    in the order asked for, then by query; behind them those of `dimensions`. queries: how many were
    asked. index, version, model_id, weights, notice: what was judged.
    """

    asked: Retrieval
    counts: pa.Table
    images: Collection
    truth: Truth
    latencies: Sequence[Latency]
    queries: int
    index: str
    version: int
    model_id: str
    weights: str
    notice: str | None


@dataclass(frozen=True)
class Hit:
    """One image of a ranking."""

    image_id: str
    uri: str
    relevant: bool
    score: float


@dataclass(frozen=True)
class _Task:
    """A block of queries, and what all blocks share."""

    rows: Ints
    images: Shared[Collection]
    truth: Shared[Truth]
    grids: Sequence[Grid]


def retrieve(asked: Retrieval) -> Run:
    """Rank all images for each query by each method in each setting, and count.

    The images are in memory twice, here and where the tasks read them. Counts take 4 bytes for each
    query, method, setting and image that is relevant to the query. Raises SegrecError.
    """
    of = (*settings(asked.windows, asked.epsilons), *feedback.settings(asked.feedback_rounds))
    database = open_index(asked.index, asked.version)
    with database.connection:
        spec = database.spec
        methods = chosen(asked.methods, [descriptor.name for descriptor in spec.descriptors])
        images = load(database, *_needed(methods))
        truth = asked.truth.find(images)
        rows = truth.queries(asked.queries, asked.seed)
        log.info(
            f"{len(rows):,} queries among {len(images):,} images, {images.copies:,} of them copies"
        )
        took = latencies(database, images, methods, rows, asked.seed)
    grids = [(methods, of), *([sweep(images)] if SWEPT in methods else [])]
    return Run(
        asked=replace(asked, methods=methods),
        counts=count(rows, images, truth, grids, block_size(len(images))),
        images=images,
        truth=truth,
        latencies=took,
        queries=len(rows),
        index=database.index,
        version=database.version,
        model_id=database.model_id,
        weights=spec.weights,
        notice=spec.notice,
    )


def _needed(methods: Sequence[str]) -> tuple[set[str], set[str]]:
    """The parts of a collection, and the descriptors, that methods read."""
    read = [method(name) for name in methods]
    parts = {part for m in read for part in m.parts}
    swept = {FEATURE} if SWEPT in methods else set()  # neighbours are by the full vector
    return parts | swept, {m.descriptor for m in read if m.descriptor}


def block_size(images: int) -> int:
    """Queries that are ranked at once."""
    return min(max(_PAIRS // images, 1), _BLOCKS)


def count(
    rows: Ints,
    images: Collection,
    truth: Truth,
    grids: Sequence[Grid],
    size: int,
) -> pa.Table:
    """COUNTS of queries, ranked on the cluster in blocks of `size`, which they do not depend on."""
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    found: dict[int, pa.Table] = {}
    with cluster.joined(), ProgressMeter("queries ranked", len(rows)) as meter:
        shared = Shared(images), Shared(truth)
        tasks = (_Task(block, *shared, grids) for block in blocks)
        for task, table in each(_count, tasks, cpus=1):
            found[int(task.rows[0])] = table
            meter.advance(len(task.rows))
    parts = [found[int(block[0])] for block in blocks]
    return pa.concat_tables(
        part.slice(i * len(block), len(block))
        for i in range(parts[0].num_rows // len(blocks[0]))
        for part, block in zip(parts, blocks, strict=True)
    )


def _count(task: _Task) -> pa.Table:
    images, truth = task.images.get(), task.truth.get()
    return pa.concat_tables(
        count_block(task.rows, images, truth, methods, of) for methods, of in task.grids
    )


def first(
    run: Run, method: str, queries: Sequence[str], k: int, setting: Setting = PLAIN
) -> Mapping[str, list[Hit]]:
    """The k first of the rankings of some queries, by image_id, as they were counted."""
    rows = run.images.rows(pa.array(queries, pa.string()))
    ((_, found),) = allowed(rows, run.images, [setting])
    given = scores(method, rows, run.images)
    order, left = listed(given, in_order(given), found)
    relevant = run.truth.relevant(rows)
    hits = {}
    for i, query in enumerate(queries):
        best = order[i][left[i]][:k]
        hits[query] = [
            Hit(
                run.images.ids[int(j)].as_py(),
                run.images.uris[int(j)].as_py(),
                bool(relevant[i, j]),
                float(given.values[i, j]),
            )
            for j in best
        ]
    return hits
