"""Rankings of a block of queries and what is counted in them."""

from collections.abc import Iterator, Sequence, Set

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.evaluation.retrieval import feedback
from segrec_batch.evaluation.retrieval.collection import Collection, Ints
from segrec_batch.evaluation.retrieval.conditions import NEIGHBOURS, Setting
from segrec_batch.evaluation.retrieval.counts import COUNTS, FIRST
from segrec_batch.evaluation.retrieval.methods import DEPTH, Scores, scores
from segrec_batch.evaluation.retrieval.settings import allowed
from segrec_batch.evaluation.retrieval.truth import Truth

Bools = NDArray[np.bool_]


def count_block(
    rows: Ints, images: Collection, truth: Truth, methods: Sequence[str], of: Sequence[Setting]
) -> pa.Table:
    """COUNTS of a block of queries (q,): by method, setting, query, in the order given. Settings
    with feedback come last, and only of methods that have it.

    Takes some 60 bytes for each of q · n pairs, at most.
    """
    conditions = list(allowed(rows, images, [setting for setting in of if not setting.feedback]))
    block = _Block(rows, images, truth, {s.neighbours for s in of if s.neighbours})
    parts = []
    for name in methods:
        found = scores(name, rows, images)
        after = feedback.rankings(name, found.values, rows, images, truth, of)
        parts += [block.counts(name, *ranked) for ranked in _rankings(found, conditions)]
        parts += [block.counts(name, *ranked) for ranked in after]
    return pa.concat_tables(parts)


def neighbours(rows: Ints, images: Collection, metric: str) -> Bools:
    """Which others are nearest to some images by a metric on the feature, each to itself as well:
    (q, n).
    """
    found = np.zeros((len(rows), len(images)), bool)
    found[np.arange(len(rows)), rows] = True
    given = scores(metric, rows, images)
    order, left = listed(given, in_order(given), ~found)
    first = left & (left.cumsum(axis=1) <= NEIGHBOURS)
    found[np.nonzero(first)[0], order[first]] = True
    return found


def _rankings(
    given: Scores, conditions: Sequence[tuple[Setting, Bools]]
) -> Iterator[tuple[Setting, Ints, Bools]]:
    """For each setting all images, best first (q, n), and which of them are listed."""
    order = in_order(given)
    for setting, found in conditions:
        yield setting, *listed(given, order, found)


def in_order(scores: Scores) -> Ints:
    """All images of each query by descending score (q, n), equal ones by image_id, NaN last."""
    return np.argsort(-scores.values, axis=1, kind="stable")


def listed(scores: Scores, order: Ints, found: Bools) -> tuple[Ints, Bools]:
    """The order with its first DEPTH ranked again, and which of it is listed: those that are
    `found` (q, n) and have a score.
    """
    left = np.take_along_axis(found & ~np.isnan(scores.values), order, axis=1)
    if scores.again is None:
        return order, left
    first = left & (left.cumsum(axis=1) <= DEPTH)
    queries = np.nonzero(first)[0]
    again = scores.again[queries, order[first]]
    turn = np.lexsort((np.nan_to_num(-again, nan=np.inf), queries))  # stable; by query, then score
    order = order.copy()
    order[first] = order[first][turn]
    return order, left


class _Block:
    """What all rankings of some queries have in common."""

    def __init__(self, rows: Ints, images: Collection, truth: Truth, metrics: Set[str]) -> None:
        self.rows = rows
        self.candidates = len(images) - 1
        self.relevant = {"": truth.relevant(rows)}
        self.relevant |= {metric: neighbours(rows, images, metric) for metric in metrics}
        self.gains = truth.gains(rows)
        self.named = [
            images.ids.take(pa.array(rows)),
            images.uris.take(pa.array(rows)),
            pa.array([truth.name(int(row)) for row in rows], pa.string()),
        ]
        self.ideal = {kept: self._ideal(kept) for kept in (False, True)}

    def _ideal(self, kept: bool) -> pa.Array:
        if self.gains is None:
            return pa.nulls(len(self.rows), COUNTS.field("ideal").type)
        gains = self.gains.copy()
        if not kept:
            gains[np.arange(len(gains)), self.rows] = -1  # below all others
        count = min(FIRST, self.candidates + kept)
        best = -np.partition(-gains, max(count - 1, 0), axis=1)[:, :count]
        best = -np.sort(-best, axis=1)
        return _lists(np.full(len(best), count), best.ravel(), "ideal")

    def counts(self, method: str, setting: Setting, order: Ints, listed: Bools) -> pa.Table:
        """The rows of one method and setting."""
        q = len(self.rows)
        places = listed.cumsum(axis=1, dtype=np.int32)
        found = self.relevant[setting.neighbours]
        hits = np.take_along_axis(found, order, axis=1) & listed
        relevant = found.sum(axis=1) - int(not setting.kept)  # all are so to themselves
        columns = [
            *self.named,
            pa.array([method] * q),
            pa.array([setting.name] * q),
            pa.array(np.full(q, self.candidates + setting.kept, np.int32)),
            pa.array(places[:, -1]),
            pa.array(relevant.astype(np.int32)),
            _lists(hits.sum(axis=1), places[hits], "ranks"),
            self._gains(order, listed & (places <= FIRST)),
            self.ideal[setting.kept],
        ]
        return pa.table(columns, schema=COUNTS)

    def _gains(self, order: Ints, first: Bools) -> pa.Array:
        if self.gains is None:
            return pa.nulls(len(self.rows), COUNTS.field("gains").type)
        queries = np.nonzero(first)[0]
        return _lists(first.sum(axis=1), self.gains[queries, order[first]], "gains")


def _lists(lengths: Ints, values: NDArray[np.generic], column: str) -> pa.Array:
    """Lists of some lengths, one after the other in `values`, as a column of COUNTS."""
    kind = COUNTS.field(column).type
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, kind.value_type), type=kind)
