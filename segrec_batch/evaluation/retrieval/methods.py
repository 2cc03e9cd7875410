"""Retrieval methods: each one gives all images scores for a block of queries.

A method takes the rows (q,) of the queries and the collection of n images. Scores are higher for
more similar images. They are NaN where a method is undefined; such images are not retrieved.

    pearson, cosine, euclidean, dot   a metric of the feature of the whole image
    region, sign-bits, histogram, pearson+iou, random
    NAME                              a descriptor of the index: Euclidean distance of its vectors
    NAME-METRIC                       a descriptor with another metric
    NAME-METRIC@D                     the same for the first D values: D principal components
    METHOD+expandN                    a method by Pearson or cosine after query expansion
    localised                         the whole search of Waqas 2023
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import (
    FEATURE,
    FOREGROUND,
    MASKS,
    REGIONS,
    SIGN_BITS,
    Collection,
    Features,
    Ints,
)
from segrec_batch.search import filters
from segrec_batch.search.filters import LOCALISED, VECTOR_METRICS
from segrec_batch.search.similarity import (
    METRICS,
    Floats,
    hamming_distances,
    mask_overlaps,
    round_half_away,
    semantic_distances,
)

RERANKED = 100
"""Number of first results that are re-ranked, as by `recommend(…, rerank := 'mask_iou')`."""


@dataclass(frozen=True)
class Scores:
    """Scores of images. values: (q, n). rerank: (q, n), re-ranks the first RERANKED, NaN last."""

    values: Floats
    rerank: Floats | None = None


@dataclass(frozen=True)
class RankingMethod:
    """A way to score images: a metric of features or vectors, or a function.

    Attributes:
        parts: parts of a collection that it reads.
        descriptor: descriptor that it reads, "" for none.
        metric: metric of features or vectors, "" with a function.
        length: number of values of a vector that the metric compares, 0 for all.
        function: scores of queries (q,) among the images of a collection.
        expand: number of first results that are added to the query, 0 for none.
    """

    parts: tuple[str, ...] = ()
    descriptor: str = ""
    metric: str = ""
    length: int = 0
    function: Callable[[Ints, Collection], Scores] | None = None
    expand: int = 0

    def vectors(self, images: Collection) -> Features:
        """Return the vectors that `metric` compares: (n, C)."""
        vectors = images.vectors[self.descriptor] if self.descriptor else images.features
        return vectors[:, : self.length or None]


def _region(rows: Ints, images: Collection) -> Scores:
    """Score by Pearson of regions of the query's dominant foreground class, by the index.

    Source: Abdullah 2026, eq. 6, class-isolated. Undefined for images without such a region.
    """
    values = np.full((len(rows), len(images)), np.nan)
    for k, regions in images.regions.items():
        place = np.full(len(images), -1)
        place[regions.rows] = np.arange(len(regions.rows))
        queries = np.flatnonzero((images.dominant[rows] == k) & (place[rows] >= 0))
        if len(queries):
            scores = METRICS["pearson"].scores(place[rows[queries]], regions.features)
            values[np.ix_(queries, regions.rows)] = scores
    return Scores(values)


def _sign_bits(rows: Ints, images: Collection) -> Scores:
    """Score by the sign bits of rotated features: −(number of bits that differ)."""
    distances = hamming_distances(images.sign_bits[rows], images.sign_bits)
    return Scores(-distances.astype(np.float64))


def _histogram(rows: Ints, images: Collection) -> Scores:
    """Score by the semantic distance: −Σ_k |σ_k(query) − σ_k(image)| (Ouni 2020, eq. 1)."""
    return Scores(-round_half_away(semantic_distances(images.coverages[rows], images.coverages)))


def _pearson_iou(rows: Ints, images: Collection) -> Scores:
    """Score by Pearson of whole images, then re-rank by the IoU of masks (Waqas 2023)."""
    values = METRICS["pearson"].scores(rows, images.features)
    return Scores(values, mask_overlaps(images.masks[rows], images.masks))


def _localised(rows: Ints, images: Collection) -> Scores:
    """Score by the distance of `localised` vectors, then re-rank by the IoU of the foregrounds.

    Source: Waqas 2023, section 4 and eq. 2. Undefined for images without the query's category.
    """
    categories = images.categories[LOCALISED]
    values = METRICS["euclidean"].scores(rows, images.vectors[LOCALISED])
    own = categories[rows][:, None]
    values[(own != categories) | (own < 0)] = np.nan
    return Scores(values, mask_overlaps(images.foreground[rows], images.foreground))


def _random(rows: Ints, images: Collection) -> Scores:
    """Score at random, with the image_id of each query as the seed."""
    seeds = (hashlib.blake2b(images.ids[int(i)].as_py().encode()).digest() for i in rows)
    return Scores(np.stack([np.random.default_rng(list(s)).random(len(images)) for s in seeds]))


BASE_METHODS = (
    "pearson",
    "cosine",
    "euclidean",
    "region",
    "sign-bits",
    "histogram",
    "pearson+iou",
    "random",
)
"""The methods that every index has."""
_NAMED: Mapping[str, RankingMethod] = {
    "region": RankingMethod((REGIONS,), function=_region),
    "sign-bits": RankingMethod((SIGN_BITS,), function=_sign_bits),
    "histogram": RankingMethod(function=_histogram),
    "pearson+iou": RankingMethod((FEATURE, MASKS), function=_pearson_iou),
    "random": RankingMethod(function=_random),
    LOCALISED: RankingMethod((FOREGROUND,), LOCALISED, function=_localised),
}
_OF_PAPERS = {
    "pca": ("pca-cosine",),
    "root-pca": ("root-pca-cosine",),
    LOCALISED: (LOCALISED, f"{LOCALISED}-euclidean"),
}
_EXPANDED = re.compile(r"(.+)\+expand([1-9]\d*)", re.ASCII)


def parse_method(name: str) -> RankingMethod:
    """Return the method of a name that `resolve_methods` accepts, or of NAME-METRIC@D."""
    if name in _NAMED:
        return _NAMED[name]
    if expanded := _EXPANDED.fullmatch(name):
        return replace(parse_method(expanded[1]), expand=int(expanded[2]))
    whole, _, length = name.partition("@")
    method = filters.Method.of(whole)
    parts = () if method.descriptor else (FEATURE,)
    return RankingMethod(parts, method.descriptor or "", method.metric, int(length or 0))


def score(name: str, rows: Ints, images: Collection) -> Scores:
    """Return the scores of a method for some queries (q,)."""
    method = parse_method(name)
    if method.function:
        return method.function(rows, images)
    return Scores(METRICS[method.metric].scores(rows, method.vectors(images)))


def resolve_methods(names: Sequence[str], descriptors: Sequence[str]) -> tuple[str, ...]:
    """Return the named methods, `all` for those of an index with these descriptors, each once.

    Raises:
        InputError: for a method that the index does not have.
    """
    *others, chance = BASE_METHODS
    of_papers = [name for d in descriptors for name in _OF_PAPERS.get(d, (d,))]
    known = (*others, *of_papers, chance)
    for name in names or ("",):
        expanded = _EXPANDED.fullmatch(name)
        method = filters.Method.of(expanded[1] if expanded else name)
        is_of_vectors = method.descriptor in descriptors and method.metric in VECTOR_METRICS
        if name not in ("all", *known) and not (method.descriptor is None or is_of_vectors):
            raise InputError(_unknown(name, known, descriptors))
        if expanded and not METRICS[method.metric].is_angle:
            raise InputError(f"no method {name!r}: +expandN follows a method by pearson or cosine")
    return tuple(dict.fromkeys(m for name in names for m in (known if name == "all" else [name])))


def _unknown(name: str, known: Sequence[str], descriptors: Sequence[str]) -> str:
    text = f"no method {name!r}; there are {', '.join(known)}, and all; "
    if not descriptors:
        return f"{text}the index has no descriptors, segrec describe adds them"
    has = f"the index has the descriptors {', '.join(descriptors)}, segrec describe adds others"
    return f"{text}NAME and NAME-METRIC of a descriptor, METRIC {', '.join(VECTOR_METRICS)}: {has}"
