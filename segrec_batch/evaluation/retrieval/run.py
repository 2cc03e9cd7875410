"""A run of a retrieval evaluation: images, ground truth, counts of all queries on Ray."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from segrec_batch.common.console import ProgressMeter
from segrec_batch.distributed import cluster
from segrec_batch.distributed.tasks import SharedValue, run_tasks
from segrec_batch.evaluation.report import Provenance
from segrec_batch.evaluation.retrieval.collection import FEATURE, Collection, Ints, load
from segrec_batch.evaluation.retrieval.latency import Latency, measure_latencies
from segrec_batch.evaluation.retrieval.masks import Masks
from segrec_batch.evaluation.retrieval.methods import parse_method, resolve_methods
from segrec_batch.evaluation.retrieval.ranking import count_block
from segrec_batch.evaluation.retrieval.settings import (
    EPSILONS,
    PLAIN,
    WINDOWS,
    Setting,
    Window,
    feedback_settings,
    filter_settings,
)
from segrec_batch.evaluation.retrieval.truth import Folders, GroundTruth, Pairs
from segrec_batch.search.database import open_index

log = logging.getLogger(__name__)

Grid = tuple[tuple[str, ...], tuple[Setting, ...]]
"""Methods and settings; each method is evaluated in each setting."""

SWEPT_METHOD = "pca-cosine"
"""Method that is evaluated for several numbers of components: the first d values of its vectors are
the projection on d components."""
FULL_METRICS = ("cosine", "pearson")
"""Metrics of the full vector that components are compared with."""

_TIES = "of equal scores the lower image_id, of equal mask IoU the order before"
_PAIRS = 2**21  # pairs of a query and an image in a block: some 60 bytes each
_BLOCK_QUERIES = 64  # at most, so that each core has several blocks


@dataclass(frozen=True)
class RetrievalOptions:
    """Options of a retrieval evaluation.

    Attributes:
        index: URI of an index or of a query cache.
        truth: source of the ground truth.
        methods: names of `methods`; `all` stands for those of the index.
        windows, epsilons: filters, see `Setting`.
        queries: maximum number of queries, drawn with `seed`.
        version: of the index, None for the newest.
        feedback_rounds: number of rounds in which simulated users mark images.
        images_roots: see `choose_roots`.
    """

    index: str
    truth: Folders | Pairs | Masks
    methods: tuple[str, ...] = ("all",)
    windows: tuple[Window, ...] = WINDOWS
    epsilons: tuple[float, ...] = EPSILONS
    queries: int = 1000
    seed: int = 0
    version: int | None = None
    feedback_rounds: int = 3
    images_roots: tuple[str, ...] = ()


@dataclass(frozen=True)
class RetrievalRun:
    """The results of a run.

    Attributes:
        options: with the names of all methods.
        counts: COUNTS, by method and setting in the order of the options, then by query; those of
            `dimension_grid` at the end.
        notice: warning about the model.
    """

    options: RetrievalOptions
    provenance: Provenance
    counts: pa.Table
    images: Collection
    truth: GroundTruth
    latencies: Sequence[Latency] = ()
    notice: str | None = None


def run_retrieval(options: RetrievalOptions) -> RetrievalRun:
    """Rank all images for each query by each method in each setting, and count relevant results.

    The images are in memory twice, here and where the tasks read them. Counts take 4 bytes for each
    query, method, setting and image that is relevant to the query. Raises SegrecError.
    """
    settings = (
        *filter_settings(options.windows, options.epsilons),
        *feedback_settings(options.feedback_rounds),
    )
    database = open_index(options.index, options.version)
    with database.connection:
        spec = database.spec
        methods = resolve_methods(options.methods, [d.name for d in spec.descriptors])
        parsed = [parse_method(name) for name in methods]
        parts = {part for method in parsed for part in method.parts}
        if SWEPT_METHOD in methods:
            parts.add(FEATURE)  # neighbours are by the full vector
        images = load(database, parts, {m.descriptor for m in parsed if m.descriptor})
        truth = options.truth.read(images)
        rows = truth.queries(options.queries, options.seed)
        log.info(f"{len(rows):,} queries among {len(images):,} images, {images.copies:,} copies")
        latencies = measure_latencies(database, images, methods, rows, options.seed)
    grids = [(methods, settings)]
    grids += [dimension_grid(images)] if SWEPT_METHOD in methods else []
    block = min(max(_PAIRS // len(images), 1), _BLOCK_QUERIES)
    provenance = Provenance(
        kind="retrieval",
        data=f"{truth.fingerprint}, {len(rows):,} queries among {len(images):,} images",
        ties=_TIES,
        seed=options.seed,
        model_id=database.model_id,
        weights=spec.weights,
        index=database.index,
        version=database.version,
    )
    return RetrievalRun(
        replace(options, methods=methods),
        provenance,
        count_queries(rows, images, truth, grids, block),
        images,
        truth,
        latencies,
        spec.notice,
    )


def dimension_grid(images: Collection) -> Grid:
    """Return the methods for 2, 4, 8, … components up to all, and their settings (Krupa 2022)."""
    length = images.vectors[parse_method(SWEPT_METHOD).descriptor].shape[1]
    numbers = [2**i for i in range(1, length.bit_length()) if 2**i < length]
    methods = tuple(f"{SWEPT_METHOD}@{d}" for d in (*numbers, length))
    return methods, (PLAIN, *(Setting(neighbours=metric) for metric in FULL_METRICS))


def count_queries(
    rows: Ints, images: Collection, truth: GroundTruth, grids: Sequence[Grid], size: int
) -> pa.Table:
    """Return the COUNTS of queries, ranked on the cluster in blocks of `size` queries.

    The counts do not depend on the size.
    """
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    tables: dict[int, pa.Table] = {}
    with cluster.join(), ProgressMeter("queries ranked", len(rows)) as meter:
        shared = SharedValue((images, truth, grids))
        tasks = ((block, shared) for block in blocks)
        for (block, _), table in run_tasks(_count, tasks, cpus=1):
            tables[int(block[0])] = table
            meter.advance(len(block))
    parts = [tables[int(block[0])] for block in blocks]
    return pa.concat_tables(
        part.slice(i * len(block), len(block))
        for i in range(parts[0].num_rows // len(blocks[0]))
        for part, block in zip(parts, blocks, strict=True)
    )


def _count(
    task: tuple[Ints, SharedValue[tuple[Collection, GroundTruth, Sequence[Grid]]]],
) -> pa.Table:
    """Return the COUNTS of a block of queries in all grids."""
    rows, shared = task
    images, truth, grids = shared.get()
    return pa.concat_tables(count_block(rows, images, truth, *grid) for grid in grids)
