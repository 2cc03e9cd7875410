"""Rankings of a block of queries, also after relevance feedback, and their counts.

Users are simulated. In each round the first images without a mark are marked by the ground truth as
relevant or not; with label masks, an image that is not relevant but whose mask overlaps that of the
query by half or more (IoU) is somewhat relevant. Marked images keep their ranks, and only those
after them are ranked again, so that metrics gain from new images only (a residual ranking).
"""

from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count, groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.counts import CONDITION, COUNTS, DEPTH
from segrec_batch.evaluation.retrieval.methods import RERANKED, Scores, parse_method, score
from segrec_batch.evaluation.retrieval.settings import (
    NEIGHBOURS,
    Bools,
    Feedback,
    Setting,
    candidates,
)
from segrec_batch.evaluation.retrieval.truth import GroundTruth
from segrec_batch.search.feedback.refine import (
    NOT_RELEVANT,
    RELEVANT,
    SOMEWHAT,
    STANDARD,
    SVM,
    refine,
)
from segrec_batch.search.similarity import METRICS, Features, Floats, rank_order

SIMILAR = 0.5
"""Least IoU of masks at which an image is somewhat relevant."""

_FROZEN = 1e9  # above all scores


def count_block(
    rows: Ints,
    images: Collection,
    truth: GroundTruth,
    methods: Sequence[str],
    settings: Sequence[Setting],
) -> pa.Table:
    """Return the COUNTS of a block of queries (q,): by method, setting, query, in their order.

    Settings with feedback come last, and only of methods that have it. Takes some 60 bytes for each
    of q · n pairs, at most.
    """
    filters = list(candidates(rows, images, [s for s in settings if not s.feedback]))
    rounds = [s.feedback for s in settings if s.feedback]
    block = _Block(rows, images, truth, {s.neighbours for s in settings if s.neighbours})
    parts = []
    for name in methods:
        scores = score(name, rows, images)
        order = rank_order(scores.values)
        for setting, passes in filters:
            ranking = rank_expanded(name, rows, images, scores, order, passes)
            parts.append(block.counts(name, setting, *ranking))
        after_feedback = feedback_rankings(name, scores.values, rows, images, truth, rounds)
        parts += [block.counts(name, *ranking) for ranking in after_feedback]
    return pa.concat_tables(parts)


def nearest_images(rows: Ints, images: Collection, metric: str) -> Bools:
    """Return the NEIGHBOURS nearest images by a metric of the feature, and each itself: (q, n)."""
    nearest = np.zeros((len(rows), len(images)), bool)
    nearest[np.arange(len(rows)), rows] = True
    scores = score(metric, rows, images)
    order, listed = rank(scores, rank_order(scores.values), ~nearest)
    first = listed & (listed.cumsum(axis=1) <= NEIGHBOURS)
    nearest[np.nonzero(first)[0], order[first]] = True
    return nearest


def rank(scores: Scores, order: Ints, passes: Bools) -> tuple[Ints, Bools]:
    """Return a ranking of each query (q, n), and which of its images are results (q, n).

    Results are the images that pass (q, n) and have a score; the first RERANKED of them are put in
    the order of `scores.rerank`.
    """
    listed = np.take_along_axis(passes & ~np.isnan(scores.values), order, axis=1)
    if scores.rerank is None:
        return order, listed
    first = listed & (listed.cumsum(axis=1) <= RERANKED)
    queries = np.nonzero(first)[0]
    reranked = rank_order(scores.rerank[queries, order[first]], groups=queries)
    order = order.copy()
    order[first] = order[first][reranked]
    return order, listed


def rank_expanded(
    method: str, rows: Ints, images: Collection, scores: Scores, order: Ints, passes: Bools
) -> tuple[Ints, Bools]:
    """Return the rankings of `rank`, after the expansion of the queries if the method has one.

    The results that expand a query pass its filters, and it is none of them itself.
    """
    parsed = parse_method(method)
    if not parsed.expand:
        return rank(scores, order, passes)
    others = passes.copy()
    others[np.arange(len(rows)), rows] = False
    order, listed = rank(scores, order, others)
    metric, vectors = METRICS[parsed.metric], parsed.vectors(images)
    queries = np.empty((len(rows), vectors.shape[1]), np.float32)
    for i, row in enumerate(rows):
        first = order[i, listed[i]][: parsed.expand]
        queries[i] = metric.expanded(vectors[row], vectors[first], scores.values[i, first])
    again = Scores(metric.ranking_scores(queries, vectors))
    return rank(again, rank_order(again.values), passes)


class _Block:
    """Values that all rankings of some queries share."""

    def __init__(
        self, rows: Ints, images: Collection, truth: GroundTruth, metrics: Set[str]
    ) -> None:
        self.rows = rows
        self.candidates = len(images) - 1
        self.relevant = {"": truth.relevant(rows)}
        self.relevant |= {metric: nearest_images(rows, images, metric) for metric in metrics}
        self.gains = truth.gains(rows)
        self.identity = [
            images.ids.take(pa.array(rows)),
            images.uris.take(pa.array(rows)),
            pa.array([truth.class_name(int(row)) for row in rows], pa.string()),
        ]
        self.ideal = {keeps_query: self._ideal(keeps_query) for keeps_query in (False, True)}

    def counts(self, method: str, setting: Setting, order: Ints, listed: Bools) -> pa.Table:
        """Return the rows of one method and setting."""
        q = len(self.rows)
        ranks = listed.cumsum(axis=1, dtype=np.int32)
        matrix = self.relevant[setting.neighbours]
        hits = np.take_along_axis(matrix, order, axis=1) & listed
        relevant = matrix.sum(axis=1) - int(not setting.keeps_query)  # each is so to itself
        columns = [
            *self.identity,
            pa.array([method] * q),
            pa.array([setting.name] * q),
            pa.array([asdict(setting)] * q, CONDITION),
            pa.array(np.full(q, self.candidates + setting.keeps_query, np.int32)),
            pa.array(ranks[:, -1]),
            pa.array(relevant.astype(np.int32)),
            _lists(hits, ranks, "ranks"),
            self._gains(order, listed & (ranks <= DEPTH)),
            self.ideal[setting.keeps_query],
        ]
        return pa.table(columns, schema=COUNTS)

    def _gains(self, order: Ints, first: Bools) -> pa.Array:
        """Return the gains of the first results."""
        if self.gains is None:
            return pa.nulls(len(self.rows), COUNTS.field("gains").type)
        return _lists(first, np.take_along_axis(self.gains, order, axis=1), "gains")

    def _ideal(self, keeps_query: bool) -> pa.Array:
        """Return the greatest gains among all candidates."""
        if self.gains is None:
            return pa.nulls(len(self.rows), COUNTS.field("ideal").type)
        gains = self.gains.copy()
        if not keeps_query:
            gains[np.arange(len(gains)), self.rows] = -1  # below all others
        best = -np.sort(-gains, axis=1)[:, : min(DEPTH, self.candidates + keeps_query)]
        return _lists(np.ones(best.shape, bool), best, "ideal")


def _lists(selected: Bools, values: NDArray[np.generic], column: str) -> pa.Array:
    """Return the selected values of each row (q, n) as a list column of COUNTS."""
    kind = COUNTS.field(column).type
    offsets = np.concatenate([[0], np.cumsum(selected.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values[selected], kind.value_type), type=kind
    )


def feedback_rankings(
    name: str,
    scores: Floats,
    rows: Ints,
    images: Collection,
    truth: GroundTruth,
    rounds: Sequence[Feedback],
) -> Iterator[tuple[Setting, Ints, Bools]]:
    """Yield the setting of each round, its ranking (q, n), and which of its images are results.

    Yields nothing for a method that is more than a metric of vectors.

    Args:
        name: name of a method.
        scores: its scores without feedback, (q, n).
        rows: the queries, (q,).
        images: all images.
        truth: what users mark images by.
        rounds: rounds 1, 2, … of each way, as in `feedback_settings`.
    """
    method = parse_method(name)
    if not method.metric or method.expand or not rounds:
        return
    users = _Users(rows, _marks(rows, truth), method.metric, method.vectors(images))
    for (way, shown), some in groupby(rounds, lambda feedback: (feedback.way, feedback.shown)):
        for feedback, ranking in zip(some, users.rounds(way, scores, shown), strict=False):
            yield Setting(feedback=feedback), *ranking


def _marks(rows: Ints, truth: GroundTruth) -> Floats:
    """Return the marks that the user of each query gives to all images: (q, n)."""
    marks = np.where(truth.relevant(rows), RELEVANT, NOT_RELEVANT)
    gains = truth.gains(rows)
    if gains is not None:
        marks[(marks == NOT_RELEVANT) & (gains >= SIMILAR)] = SOMEWHAT
    return marks


@dataclass(frozen=True)
class _Users:
    """Simulated users, one for each query.

    Attributes:
        rows: the queries, (q,).
        marks: marks that the users give to all images, (q, n).
        metric: metric of the method.
        features: vectors that it compares, (n, C).
    """

    rows: Ints
    marks: Floats
    metric: str
    features: Features

    def rounds(self, way: str, scores: Floats, shown: int) -> Iterator[tuple[Ints, Bools]]:
        """Yield the ranking after round 1, 2, … (endless) and which of its images are results."""
        scores = scores.copy()
        scores[np.arange(len(self.rows)), self.rows] = np.nan
        known = ~np.isnan(scores)
        for marked in count(shown, shown):
            first = rank_order(scores)[:, :marked]
            scores = self._refined_scores(way, scores, first, known)
            np.put_along_axis(scores, first, _FROZEN - np.arange(first.shape[1])[None], axis=1)
            scores[~known] = np.nan
            order = rank_order(scores)
            yield order, np.take_along_axis(known, order, axis=1)

    def _refined_scores(self, way: str, scores: Floats, first: Ints, known: Bools) -> Floats:
        """Return the scores by vectors refined by the marks on the first images (q, m).

        Scores of a query do not change where its refined vector is undefined: an SVM needs images
        of both kinds with different vectors.
        """
        vectors = np.zeros((len(self.rows), self.features.shape[1]), np.float32)
        is_refined = np.zeros(len(self.rows), bool)
        for i, places in enumerate(first):
            places = places[known[i, places]]
            marks = self.marks[i, places]
            if not len(marks):
                continue
            prepared = METRICS[self.metric].prepare(self.features[[self.rows[i], *places]])
            with suppress(InputError):
                vectors[i] = refine(way, prepared[0], prepared[1:], marks, STANDARD)
                is_refined[i] = True
        # the direction of an SVM ranks as its products do
        metric = "dot" if way == SVM and self.metric == "euclidean" else self.metric
        refined_scores = METRICS[metric].ranking_scores(vectors, self.features)
        return np.where(is_refined[:, None], refined_scores, scores)
