"""The methods that are compared: each gives a block of queries scores of all images.

A method takes the rows (q,) of the queries and the collection of n images. Scores are higher for
what is more alike, and NaN where a method is not defined: such images are not retrieved. Equal
vectors have equal scores (see `kernels`); all are rounded to 12 decimal places, so that scores that
are equal in mathematics only are so here, unless they lie where two rounded values meet.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from segrec_batch.errors import InputError
from segrec_batch.evaluate.retrieval import kernels
from segrec_batch.evaluate.retrieval.collection import (
    FEATURE,
    MASKS,
    REGIONS,
    SIGN_BITS,
    Collection,
    Ints,
)
from segrec_batch.evaluate.retrieval.kernels import Features, Floats

DEPTH = 100
"""How many of the first are ranked again, as by `recommend(…, rerank := 'mask_iou')`."""


@dataclass(frozen=True)
class Scores:
    """values: (q, n). again: (q, n), by which the first DEPTH are then put in order, NaN last."""

    values: Floats
    again: Floats | None = None


def pearson(rows: Ints, images: Collection) -> Scores:
    """Pearson correlation of the features of whole images, Σ(x−x̄)(y−ȳ) / ‖x−x̄‖‖y−ȳ‖ (Abdullah
    2026, eq. 6); not defined for constant vectors.
    """
    return Scores(_products(images.features[rows], images.features, kernels.standardised))


def cosine(rows: Ints, images: Collection) -> Scores:
    """x·y / ‖x‖‖y‖ of the features of whole images; not defined for zero vectors."""
    return Scores(_products(images.features[rows], images.features, kernels.normalised))


def euclidean(rows: Ints, images: Collection) -> Scores:
    """−‖x−y‖ of the features of whole images."""
    scale = _scale(images.features)

    def prepare(features: Features) -> Floats:
        return features.astype(np.float64) / scale

    squares = kernels.squares(images.features, prepare)
    products = kernels.dots(images.features[rows], images.features, prepare)
    gaps = _round(squares[rows][:, None] + squares - 2 * products)
    return Scores(-scale * np.sqrt(np.maximum(gaps, 0)))


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
            queries = regions.features[place[rows[asked]]]
            found = _products(queries, regions.features, kernels.standardised)
            values[np.ix_(asked, regions.rows)] = found
    return Scores(values)


def sign_bits(rows: Ints, images: Collection) -> Scores:
    """−(bits in which the sign bits differ), signs of rotated features."""
    distances = kernels.hamming_distances(images.sign_bits[rows], images.sign_bits)
    return Scores(-distances.astype(np.float64))


def histogram(rows: Ints, images: Collection) -> Scores:
    """−Σ_k |σ_k(query) − σ_k(image)|, the semantic distance (Ouni 2020, eq. 1)."""
    distances = kernels.semantic_distances(images.coverages[rows], images.coverages)
    return Scores(-_round(distances))


def pearson_iou(rows: Ints, images: Collection) -> Scores:
    """Pearson of whole images; the first 100 then by the overlap of the masks of all foreground
    classes, Σ_k cells in both / Σ_k cells in either (Waqas 2023), the others after them.
    """
    return Scores(pearson(rows, images).values, kernels.overlaps(images.masks[rows], images.masks))


def random(rows: Ints, images: Collection) -> Scores:
    """What chance gives: for each query an order drawn with its image_id as the seed."""
    seeds = (hashlib.blake2b(images.ids[int(i)].as_py().encode()).digest() for i in rows)
    drawn = [np.random.default_rng(list(seed)).random(len(images)) for seed in seeds]
    return Scores(np.stack(drawn))


METHODS: Mapping[str, Callable[[Ints, Collection], Scores]] = {
    "pearson": pearson,
    "cosine": cosine,
    "euclidean": euclidean,
    "region": region,
    "sign-bits": sign_bits,
    "histogram": histogram,
    "pearson+iou": pearson_iou,
    "random": random,
}
READS: Mapping[str, tuple[str, ...]] = {
    "pearson": (FEATURE,),
    "cosine": (FEATURE,),
    "euclidean": (FEATURE,),
    "region": (REGIONS,),
    "sign-bits": (SIGN_BITS,),
    "histogram": (),
    "pearson+iou": (FEATURE, MASKS),
    "random": (),
}
"""Which parts of a collection a method needs."""


def chosen(names: str) -> tuple[str, ...]:
    """The methods that `all` or a list with commas names, each once. Raises InputError."""
    if names == "all":
        return tuple(METHODS)
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    unknown = [name for name in found if name not in METHODS]
    if unknown:
        known = ", ".join(METHODS)
        raise InputError(f"no method {unknown[0]!r}; there are {known}, and all")
    return found


def _products(asked: Features, features: Features, prepare: kernels.Prepare) -> Floats:
    return _round(kernels.dots(asked, features, prepare))


def _round(values: Floats) -> Floats:
    return np.asarray(np.round(values, 12))


def _scale(features: Features) -> float:
    """A power of two that no vector is longer than."""
    largest = max(float(features.max()), -float(features.min()))
    return float(2.0 ** np.ceil(np.log2(largest * np.sqrt(features.shape[1])))) if largest else 1.0
