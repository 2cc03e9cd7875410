"""Retrieval methods: each one gives all images scores for a block of queries.

A method takes the rows (q,) of the queries and the collection of n images. Scores are higher for
more similar images, and NaN where a method is undefined: such images are not retrieved.

    pearson, cosine, euclidean, dot   a metric of the feature of the whole image
    region, sign-bits, histogram, pearson+iou, random
    NAME                              a descriptor of the index: Euclidean distance of its vectors
    NAME-METRIC                       a descriptor with another metric
    NAME-METRIC@D                     the same for the first D values, for the section on dimensions
    localised                         the whole search of Waqas 2023
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

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
"""Number of first results that are ranked again, as by `recommend(…, rerank := 'mask_iou')`."""


@dataclass(frozen=True)
class Scores:
    """Scores of images. values: (q, n). rerank: (q, n), orders the first RERANKED, NaN last."""

    values: Floats
    rerank: Floats | None = None


@dataclass(frozen=True)
class Method:
    """A way to score images.

    Attributes:
        scores: of queries (q,) among the images of a collection.
        parts: parts of a collection that it reads.
        descriptor: descriptor that it reads, "" for none.
        metric: metric of features or vectors, "" if it is more than a metric.
        length: number of values of a vector that it compares, 0 for all.
    """

    scores: Callable[[Ints, Collection], Scores]
    parts: tuple[str, ...] = ()
    descriptor: str = ""
    metric: str = ""
    length: int = 0

    def vectors(self, images: Collection) -> Features:
        """Return the vectors that `metric` compares: (n, C)."""
        return images.vectors[self.descriptor] if self.descriptor else images.features


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
    """Score by Pearson of whole images, then the first by the overlap of masks (Waqas 2023)."""
    values = METRICS["pearson"].scores(rows, images.features)
    return Scores(values, mask_overlaps(images.masks[rows], images.masks))


def _localised(rows: Ints, images: Collection) -> Scores:
    """Score by the distance of `localised` vectors, then the first by the IoU of the foregrounds.

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
_NAMED: Mapping[str, Method] = {
    "region": Method(_region, (REGIONS,)),
    "sign-bits": Method(_sign_bits, (SIGN_BITS,)),
    "histogram": Method(_histogram),
    "pearson+iou": Method(_pearson_iou, (FEATURE, MASKS)),
    "random": Method(_random),
    LOCALISED: Method(_localised, (FOREGROUND,), LOCALISED),
}
_OF_PAPERS = {"pca": ("pca-cosine",), LOCALISED: (LOCALISED, f"{LOCALISED}-euclidean")}
_NAME = re.compile(rf"(\w+?)(?:-({'|'.join(VECTOR_METRICS)}))?(?:@([1-9]\d*))?", re.ASCII)


def parse_method(name: str) -> Method:
    """Return the method of a name. Raises InputError for an unknown one."""
    if name in _NAMED:
        return _NAMED[name]
    parts = _NAME.fullmatch(name)
    if not parts:
        raise InputError(f"no method {name!r}")
    is_metric = name in METRICS
    descriptor = "" if is_metric else parts[1]
    metric, length = name if is_metric else parts[2] or "euclidean", int(parts[3] or 0)

    def scores(rows: Ints, images: Collection) -> Scores:
        vectors = images.vectors[descriptor] if descriptor else images.features
        return Scores(METRICS[metric].scores(rows, vectors[:, : length or None]))

    parts_read = () if descriptor else (FEATURE,)
    return Method(scores, parts_read, descriptor, "" if length else metric, length)


def score(name: str, rows: Ints, images: Collection) -> Scores:
    """Return the scores of a method for some queries (q,)."""
    return parse_method(name).scores(rows, images)


def resolve_methods(names: Sequence[str], descriptors: Sequence[str]) -> tuple[str, ...]:
    """Return the named methods, `all` for those of an index with these descriptors, each once.

    Raises:
        InputError: for a method that the index does not have.
    """
    known = _all_methods(descriptors)
    methods = tuple(
        dict.fromkeys(m for name in names for m in (known if name == "all" else [name]))
    )
    for name in methods or ("",):
        parts = _NAME.fullmatch(name)
        is_descriptor = parts is not None and parts[1] in descriptors and not parts[3]
        if not (is_descriptor or name in known or name in METRICS):
            raise InputError(_unknown(name, known, descriptors))
    return methods


def _all_methods(descriptors: Iterable[str]) -> tuple[str, ...]:
    *others, chance = BASE_METHODS
    of_papers = [name for d in descriptors for name in _OF_PAPERS.get(d, (d,))]
    return (*others, *of_papers, chance)


def _unknown(name: str, known: Sequence[str], descriptors: Sequence[str]) -> str:
    text = f"no method {name!r}; there are {', '.join(known)}, and all; "
    if not descriptors:
        return f"{text}the index has no descriptors, segrec describe adds them"
    has = f"the index has the descriptors {', '.join(descriptors)}, segrec describe adds others"
    return f"{text}NAME and NAME-METRIC of a descriptor, METRIC {', '.join(VECTOR_METRICS)}: {has}"
