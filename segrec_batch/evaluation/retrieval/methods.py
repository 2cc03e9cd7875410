"""The methods that are compared: each gives a block of queries scores of all images.

A method takes the rows (q,) of the queries and the collection of n images. Scores are higher for
what is more alike, and NaN where a method is not defined: such images are not retrieved. Equal
vectors have equal scores (see `metrics`).

    pearson, cosine, euclidean, dot   a metric on the feature of the whole image
    region, sign-bits, histogram, pearson+iou, random
    NAME                              a descriptor of the index: Euclidean distance of its vectors
    NAME-METRIC                       the same by another metric
    NAME-METRIC@D                     the same of the first D values, for the section on dimensions
    localised                         the whole search of Waqas 2023
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval import kernels
from segrec_batch.evaluation.retrieval.collection import (
    FEATURE,
    FOREGROUND,
    MASKS,
    REGIONS,
    SIGN_BITS,
    Collection,
    Ints,
)
from segrec_batch.evaluation.retrieval.kernels import Features, Floats
from segrec_batch.evaluation.retrieval.metrics import METRICS, rounded
from segrec_batch.search.methods import LOCALISED, OF_VECTORS

DEPTH = 100
"""How many of the first are ranked again, as by `recommend(…, rerank := 'mask_iou')`."""


@dataclass(frozen=True)
class Scores:
    """values: (q, n). again: (q, n), by which the first DEPTH are then put in order, NaN last."""

    values: Floats
    again: Floats | None = None


@dataclass(frozen=True)
class Method:
    """scores: of queries (q,) and images. parts: of a collection, that it needs. descriptor: whose
    vectors it needs, "" for none. metric: where it is no more than that, of features or vectors.
    """

    scores: Callable[[Ints, Collection], Scores]
    parts: tuple[str, ...] = ()
    descriptor: str = ""
    metric: str = ""

    def vectors(self, images: Collection) -> Features:
        """What is compared by `metric`: (n, C)."""
        return images.vectors[self.descriptor] if self.descriptor else images.features


def region(rows: Ints, images: Collection) -> Scores:
    """Pearson of the regions of the query's dominant foreground class, by the index (Abdullah 2026,
    eq. 6, class-isolated); not defined for images without such a region.
    """
    values = np.full((len(rows), len(images)), np.nan)
    for k, regions in images.regions.items():
        place = np.full(len(images), -1)
        place[regions.rows] = np.arange(len(regions.rows))
        asked = np.flatnonzero((images.dominant[rows] == k) & (place[rows] >= 0))
        if len(asked):
            found = METRICS["pearson"](place[rows[asked]], regions.features)
            values[np.ix_(asked, regions.rows)] = found
    return Scores(values)


def sign_bits(rows: Ints, images: Collection) -> Scores:
    """−(bits in which the sign bits differ), signs of rotated features."""
    distances = kernels.hamming_distances(images.sign_bits[rows], images.sign_bits)
    return Scores(-distances.astype(np.float64))


def histogram(rows: Ints, images: Collection) -> Scores:
    """−Σ_k |σ_k(query) − σ_k(image)|, the semantic distance (Ouni 2020, eq. 1)."""
    distances = kernels.semantic_distances(images.coverages[rows], images.coverages)
    return Scores(-rounded(distances))


def pearson_iou(rows: Ints, images: Collection) -> Scores:
    """Pearson of whole images; the first 100 then by the overlap of the masks of all foreground
    classes, Σ_k cells in both / Σ_k cells in either (Waqas 2023), the others after them.
    """
    values = METRICS["pearson"](rows, images.features)
    return Scores(values, kernels.overlaps(images.masks[rows], images.masks))


def localised(rows: Ints, images: Collection) -> Scores:
    """−‖x−y‖ of the vectors of the descriptor `localised`; the first 100 then by the overlap of the
    foregrounds, cells in both / cells in either, whatever their classes (Waqas 2023, section 4 and
    eq. 2). Not defined for images of another category than the query, or of none.
    """
    categories = images.categories[LOCALISED]
    values = METRICS["euclidean"](rows, images.vectors[LOCALISED])
    asked = categories[rows][:, None]
    values[(asked != categories) | (asked < 0)] = np.nan
    return Scores(values, kernels.overlaps(images.foreground[rows], images.foreground))


def random(rows: Ints, images: Collection) -> Scores:
    """What chance gives: for each query an order drawn with its image_id as the seed."""
    seeds = (hashlib.blake2b(images.ids[int(i)].as_py().encode()).digest() for i in rows)
    drawn = [np.random.default_rng(list(seed)).random(len(images)) for seed in seeds]
    return Scores(np.stack(drawn))


ALWAYS = (
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
_WHOLE: Mapping[str, Method] = {  # names that are not made of parts
    "region": Method(region, (REGIONS,)),
    "sign-bits": Method(sign_bits, (SIGN_BITS,)),
    "histogram": Method(histogram),
    "pearson+iou": Method(pearson_iou, (FEATURE, MASKS)),
    "random": Method(random),
    LOCALISED: Method(localised, (FOREGROUND,), LOCALISED),
}
_NATURAL = {"pca": ("pca-cosine",), LOCALISED: (LOCALISED, f"{LOCALISED}-euclidean")}
_NAME = re.compile(rf"(\w+?)(?:-({'|'.join(OF_VECTORS)}))?(?:@([1-9]\d*))?", re.ASCII)


def method(name: str) -> Method:
    """What a name means. Raises InputError if that is nothing."""
    if name in _WHOLE:
        return _WHOLE[name]
    if name in METRICS:
        of_features = METRICS[name]
        return Method(
            lambda rows, images: Scores(of_features(rows, images.features)), (FEATURE,), metric=name
        )
    if not (parts := _NAME.fullmatch(name)):
        raise InputError(f"no method {name!r}")
    descriptor, metric, first = parts[1], parts[2] or "euclidean", int(parts[3] or 0)

    def of_vectors(rows: Ints, images: Collection) -> Scores:
        return Scores(METRICS[metric](rows, images.vectors[descriptor][:, : first or None]))

    return Method(of_vectors, descriptor=descriptor, metric="" if first else metric)


def scores(name: str, rows: Ints, images: Collection) -> Scores:
    """What a method gives all images for some queries (q,)."""
    return method(name).scores(rows, images)


def every(descriptors: Iterable[str]) -> tuple[str, ...]:
    """The methods of an index that has these descriptors, of each those of its paper."""
    *others, chance = ALWAYS
    natural = [name for d in descriptors for name in _NATURAL.get(d, (d,))]
    return (*others, *natural, chance)


def chosen(names: Sequence[str], descriptors: Sequence[str]) -> tuple[str, ...]:
    """The methods that are named, `all` for `every`, each once. Raises InputError for what an index
    that has these descriptors does not have.
    """
    known = every(descriptors)
    found = tuple(dict.fromkeys(m for name in names for m in (known if name == "all" else [name])))
    for name in found or ("",):
        parts = _NAME.fullmatch(name)
        of_one = parts is not None and parts[1] in descriptors and not parts[3]
        if not (of_one or name in known or name in METRICS):
            raise InputError(_unknown(name, known, descriptors))
    return found


def _unknown(name: str, known: Sequence[str], descriptors: Sequence[str]) -> str:
    text = f"no method {name!r}; there are {', '.join(known)}, and all; "
    if not descriptors:
        return f"{text}the index has no descriptors, jobs/describe.py adds them"
    has = f"the index has the descriptors {', '.join(descriptors)}, jobs/describe.py adds others"
    return f"{text}NAME and NAME-METRIC of a descriptor, METRIC {', '.join(OF_VECTORS)}: {has}"
