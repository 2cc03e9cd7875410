"""Users who mark what they are shown, simulated: rankings after each round of feedback.

In each round the first images that are not marked yet are marked by the ground truth: relevant, or
not; where the truth has label masks, an image that is not relevant but whose mask overlaps that of
the query by half or more (IoU) is somewhat relevant. Marked images then keep the ranks at which
they were shown, and only those behind them are ranked again, so that nothing is gained by moving up
what the user has seen (a residual ranking).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

import numpy as np

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval import kernels, methods
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.conditions import Feedback, Setting
from segrec_batch.evaluation.retrieval.kernels import Features, Floats
from segrec_batch.evaluation.retrieval.truth import Bools, Truth
from segrec_batch.search.feedback.refine import (
    NOT_RELEVANT,
    RELEVANT,
    SOMEWHAT,
    STANDARD,
    SVM,
    WAYS,
    refined,
)
from segrec_batch.search.feedback.vectors import prepared

SHOWN = 10
"""Images that a user marks in a round."""
ROUNDS = 3
ALIKE = 0.5
"""Overlap of the masks from which an image is somewhat relevant."""

_PREPARE: Mapping[str, kernels.Prepare] = {
    "pearson": kernels.standardised,
    "cosine": kernels.normalised,
}
_FROZEN = 1e9  # above all scores


def settings(rounds: int) -> tuple[Setting, ...]:
    """Each way of feedback over 1 to `rounds` rounds. Raises InputError for fewer than none."""
    if rounds < 0:
        raise InputError(f"{rounds} rounds of feedback: give 0 or more")
    return tuple(
        Setting(feedback=Feedback(way, i, SHOWN)) for way in WAYS for i in range(1, rounds + 1)
    )


def rankings(
    method: str, scores: Floats, rows: Ints, images: Collection, truth: Truth, of: Sequence[Setting]
) -> Iterator[tuple[Setting, Ints, Bools]]:
    """For the settings with feedback all images, in order (q, n), and which of them are listed.

    scores: those of the method without feedback, (q, n). Nothing for a method that is more than a
    metric of vectors.
    """
    wanted = {s.feedback: s for s in of if s.feedback}
    what = methods.method(method)
    if not what.metric or not wanted:
        return
    users = _Users(rows, _marks(rows, truth), what, what.vectors(images))
    for way, shown in dict.fromkeys((f.way, f.shown) for f in wanted):
        last = max(f.rounds for f in wanted if (f.way, f.shown) == (way, shown))
        rounds = users.rounds(way, scores, shown)
        for i, (order, listed) in zip(range(1, last + 1), rounds, strict=False):
            setting = wanted.get(Feedback(way, i, shown))
            if setting:
                yield setting, order, listed


def _marks(rows: Ints, truth: Truth) -> Floats:
    """What users with some queries would say of all images: (q, n)."""
    gains = truth.gains(rows)
    somewhat = False if gains is None else gains >= ALIKE
    others = np.where(somewhat, SOMEWHAT, NOT_RELEVANT)
    return np.where(truth.relevant(rows), RELEVANT, others)


@dataclass(frozen=True)
class _Users:
    """Users with q queries, what they would say, and the vectors that a method compares."""

    rows: Ints
    marks: Floats
    method: methods.Method
    features: Features

    def rounds(self, way: str, scores: Floats, shown: int) -> Iterator[tuple[Ints, Bools]]:
        """The rankings after one round, after two, and so on without end."""
        scores = scores.copy()
        scores[np.arange(len(self.rows)), self.rows] = np.nan
        known = ~np.isnan(scores)
        for seen in count(shown, shown):
            first = _order(scores)[:, :seen]
            scores = self._again(way, scores, first, known)
            np.put_along_axis(scores, first, _FROZEN - np.arange(first.shape[1])[None], axis=1)
            scores[~known] = np.nan
            order = _order(scores)
            yield order, np.take_along_axis(known, order, axis=1)

    def _again(self, way: str, scores: Floats, seen: Ints, known: Bools) -> Floats:
        """Scores because of marks on what was seen; as before where the way is not defined: an SVM
        needs images of both kinds, whose vectors differ.
        """
        metric = self.method.metric
        vectors = np.zeros((len(self.rows), self.features.shape[1]), np.float32)
        told = np.zeros(len(self.rows), bool)
        for i, places in enumerate(seen):
            places = places[known[i, places]]
            marks = self.marks[i, places]
            if not len(marks):
                continue
            ready = prepared(self.features[[self.rows[i], *places]], metric)
            with suppress(InputError):
                vectors[i] = refined(way, ready[0], ready[1:], marks, STANDARD)
                told[i] = True
        if way == SVM and metric == "euclidean":
            metric = "dot"  # w ranks as w·x does
        return np.where(told[:, None], _scores(vectors, self.features, metric), scores)


def _order(scores: Floats) -> Ints:
    return np.argsort(-scores, axis=1, kind="stable")


def _scores(asked: Features, features: Features, metric: str) -> Floats:
    """What orders images (n, C) by a metric with vectors (q, C): (q, n), higher is more alike."""
    if metric in _PREPARE:
        return np.asarray(np.round(kernels.dots(asked, features, _PREPARE[metric]), 12))
    longest = kernels.longest(features)
    scale = 2.0 ** np.ceil(np.log2(2 * longest)) if longest else 1.0  # refined ones may be longer

    def prepare(vectors: Features) -> Floats:
        return vectors.astype(np.float64) / scale

    products = kernels.dots(asked, features, prepare)
    if metric == "dot":
        return np.asarray(np.round(products, 12))
    squares = kernels.squares(features, prepare)
    return np.asarray(np.round(2 * products - squares, 12))  # ‖q‖² − ‖q − x‖²
