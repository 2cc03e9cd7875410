"""From a query and marked images to the vector that asks for the next round.

All vectors are *prepared* for a metric, see `vectors`. The refined one is compared in place of the
query's, so a round is a query like any other, with all its filters.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError

Floats = NDArray[np.float64]

RELEVANT, SOMEWHAT, NOT_RELEVANT = MARKS = 1.0, 0.5, 0.0
"""What a user says of an image."""

ROCCHIO, SVM = WAYS = "rocchio", "svm"
"""How marks become the next ranking."""


@dataclass(frozen=True)
class Weights:
    """alpha, beta, gamma: of the query, the relevant and the not relevant ones, by Rocchio (the
    defaults are those of Manning, Raghavan and Schütze 2008, §9.1.1). c: of the SVM, its losses
    against its margin.
    """

    alpha: float = 1.0
    beta: float = 0.75
    gamma: float = 0.15
    c: float = 1.0

    def check(self) -> None:
        """Raises InputError for numbers that weigh nothing."""
        if not (self.alpha >= 0 and self.beta >= 0 and self.gamma >= 0 and self.c > 0):
            raise InputError("alpha, beta and gamma are 0 or more, C is above 0")


STANDARD = Weights()


def refined(way: str, query: Floats, marked: Floats, marks: Floats, weights: Weights) -> Floats:
    """`rocchio` or `svm`, by its name."""
    return (svm if way == SVM else rocchio)(query, marked, marks, weights)


def rocchio(query: Floats, marked: Floats, marks: Floats, weights: Weights) -> Floats:
    """q' = (α q + β/|R| Σ_R m x − γ/|N| Σ_N x) / (sum of all coefficients) (Rocchio 1971).

    query: (C,). marked: (m, C). marks: (m,); R are those above 0, N those that are 0, so an image
    that is somewhat relevant pulls half as much as a relevant one. Divided by the sum, q' lies
    among the vectors, as a distance needs it; no other ranking changes by that. Raises InputError
    if the sum is not above 0.
    """
    good = marks > 0
    pull = np.where(
        good,
        weights.beta * marks / max(good.sum(), 1),
        -weights.gamma / max((~good).sum(), 1),
    )
    total = weights.alpha + pull.sum()
    if not total > 0:
        raise InputError("what is not relevant weighs as much as all else: give a smaller gamma")
    found: Floats = (weights.alpha * query + pull @ marked) / total
    return found


def svm(query: Floats, marked: Floats, marks: Floats, weights: Weights) -> Floats:
    """The direction in which a linear SVM finds images more relevant, in the manner of Tong and
    Chang 2001: its w, as long as the vectors are (root mean square).

    The query counts as relevant; an image that is somewhat relevant weighs half. Vectors are
    divided by that length first, so that `c` means the same for all. Raises InputError unless
    there are images of both kinds that can be told apart.
    """
    from segrec_batch.training.svm import (
        fit_marked_svm,  # imports scikit-learn, which takes a second
    )

    good = marks > 0
    if not good.any() or good.all():
        raise InputError("the SVM needs a relevant image and one that is not: mark both kinds")
    vectors = np.vstack([query, marked])
    length = np.sqrt(np.square(vectors).sum(axis=1).mean())
    wanted, weigh = np.append(True, good), np.append(1.0, np.where(good, marks, 1.0))
    w = query  # of length 0, where all are
    if length:
        w, _ = fit_marked_svm(vectors / length, wanted, weigh, weights.c)
    norm = np.linalg.norm(w)
    if not norm > 0:
        raise InputError("the SVM cannot tell the marked images apart: they have equal vectors")
    return np.asarray(w * (length / norm))
