"""Query vectors refined by marks, by Rocchio or an SVM.

Vectors are prepared for a metric by `Metric.prepare`. The refined vector replaces that of
the query, so a round is an ordinary query with all filters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segrec_batch.common.errors import InputError
from segrec_batch.search.database import Database
from segrec_batch.search.filters import LOCALISED, Method
from segrec_batch.search.similarity import METRICS, Features, Floats
from segrec_batch.search.sql.connection import query as run_query

RELEVANT, SOMEWHAT, NOT_RELEVANT = MARKS = 1.0, 0.5, 0.0
"""Marks on images."""

ROCCHIO, SVM = WAYS = "rocchio", "svm"
"""Names of the methods that refine a query vector."""


@dataclass(frozen=True)
class Weights:
    """Weights of the query and of marked images.

    Attributes:
        alpha: of the query, by Rocchio. The defaults are those of Manning, Raghavan and Schütze
            2008, §9.1.1.
        beta: of relevant images.
        gamma: of images that are not relevant.
        c: of the losses of the SVM against its margin.
    """

    alpha: float = 1.0
    beta: float = 0.75
    gamma: float = 0.15
    c: float = 1.0

    def check(self) -> None:
        """Raise InputError for negative weights or C = 0."""
        if not (self.alpha >= 0 and self.beta >= 0 and self.gamma >= 0 and self.c > 0):
            raise InputError("alpha, beta and gamma are 0 or more, C is above 0")


STANDARD = Weights()


def refine(way: str, query: Floats, marked: Floats, marks: Floats, weights: Weights) -> Floats:
    """Return the vector that the function named `way` (rocchio or svm) computes."""
    return (svm if way == SVM else rocchio)(query, marked, marks, weights)


def rocchio(query: Floats, marked: Floats, marks: Floats, weights: Weights) -> Floats:
    """Return (α q + β/|R| Σ_R m x − γ/|N| Σ_N x) / (sum of all coefficients) (Rocchio 1971).

    The division keeps the vector in the range of the others, which distances need; it does not
    change rankings by products. A somewhat relevant image (m = ½) weighs half of a relevant one.

    Args:
        query: (C,).
        marked: vectors x, (m, C).
        marks: (m,); R are those above 0, N those that are 0.
        weights: α, β, γ.

    Raises:
        InputError: the sum is not above 0.
    """
    is_relevant = marks > 0
    coefficients = np.where(
        is_relevant,
        weights.beta * marks / max(is_relevant.sum(), 1),
        -weights.gamma / max((~is_relevant).sum(), 1),
    )
    total = weights.alpha + coefficients.sum()
    if not total > 0:
        raise InputError(
            "the images that are not relevant weigh as much as all others: give a smaller gamma"
        )
    return np.asarray((weights.alpha * query + coefficients @ marked) / total)


def svm(query: Floats, marked: Floats, marks: Floats, weights: Weights) -> Floats:
    """Return the direction w of a linear SVM between relevant images and others.

    The method follows Tong and Chang 2001. The query counts as relevant; a somewhat relevant image
    weighs half. Vectors are first divided by their root mean square length, so that `c` means the
    same for all; w has that length.

    Raises:
        InputError: all images are of one kind, or all vectors are equal.
    """
    from segrec_batch.training.svm import fit_marked_svm  # scikit-learn takes a second to import

    is_relevant = marks > 0
    if not is_relevant.any() or is_relevant.all():
        raise InputError("the SVM needs a relevant image and one that is not: mark both kinds")
    vectors = np.vstack([query, marked])
    length = np.sqrt(np.square(vectors).sum(axis=1).mean())
    weight = np.append(1.0, np.where(is_relevant, marks, 1.0))
    w = query  # remains only if all vectors are zero
    if length:
        w, _ = fit_marked_svm(vectors / length, np.append(True, is_relevant), weight, weights.c)
    norm = np.linalg.norm(w)
    if not norm > 0:
        raise InputError("the SVM cannot tell the marked images apart: they have equal vectors")
    return np.asarray(w * (length / norm))


def to_linear_method(name: str) -> str:
    """Return the method that ranks the vectors of method `name` by w·x: a distance becomes `dot`.

    Raises InputError for `localised`, which does more than compare vectors.

    >>> [to_linear_method(name) for name in ("sift", "pca-cosine", "pearson")]
    ['sift-dot', 'pca-cosine', 'pearson']
    """
    if name == LOCALISED:
        raise InputError(f"{name} has no SVM: take rocchio, or start with {name}-dot")
    method = Method.of(name)
    metric = "dot" if METRICS[method.metric].is_distance else method.metric
    return f"{method.descriptor}-{metric}" if method.descriptor else metric


def load_vectors(
    database: Database, method: Method, cls: str | None, ids: Sequence[str]
) -> Features:
    """Return the vectors that a method compares, (m, C); rows of images without one are NaN.

    Args:
        database: an open index.
        method: metric and descriptor.
        cls: class whose regions are compared, None for whole images.
        ids: image_ids, (m,).
    """
    table, column, key = "images", "feature", None
    if method.descriptor:
        table, column, key = "descriptors", "vector", "descriptor"
    elif cls is not None:
        table, key = "regions", "class"
    condition = f" AND {key} = $key" if key else ""
    sql = (
        f"SELECT image_id, {column} AS vector FROM {table} "  # noqa: S608
        f"WHERE {column} IS NOT NULL AND image_id IN (SELECT unnest($ids)){condition}"
    )
    values = {"ids": list(ids)} | ({"key": method.descriptor or cls} if key else {})
    rows = run_query(database.connection, sql, values).to_pylist()
    by_id = {row["image_id"]: row["vector"] for row in rows}
    width = len(next(iter(by_id.values()), ()))
    result = np.full((len(ids), width), np.nan, np.float32)
    for i, name in enumerate(ids):
        result[i] = by_id.get(name, np.nan)
    return result
