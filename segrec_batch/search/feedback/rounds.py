"""Rounds of a session: the first answer, what follows from marks, and all of it once more.

A round is ranked by `recommend` with the refined vector in the place of the query's, behind the
filters of the session. The refined vector comes from the query and all marks so far, so that a mark
weighs the same in whichever round it was given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.search.database import open_index
from segrec_batch.search.feedback.refine import STANDARD, SVM, WAYS, Floats, Weights, refined
from segrec_batch.search.feedback.session import Session, Shown
from segrec_batch.search.feedback.vectors import linear, prepared, vectors
from segrec_batch.search.filters import LOCALISED, Filters, Method
from segrec_batch.search.recommend import QueryImage, Recommendation, Recommender
from segrec_batch.search.sql.connection import query

BY_QUERY = "query"
"""How round 0 is ranked."""


@dataclass(frozen=True)
class Replayed:
    """A round that was ranked again. shown: images. differ: ranks with another image than then."""

    round: int
    by: str
    shown: int
    differ: int


def start(
    recommender: Recommender,
    asked: QueryImage,
    filters: Filters,
    weights: Weights = STANDARD,
    *,
    index: str = "",
    keep_marked: bool = False,
) -> Session:
    """Round 0 of a new session: what `recommend` answers. Raises InputError if that is nothing.

    index: what the session says that it asks, if not the index itself: a query cache.
    """
    weights.check()
    database = recommender.database
    session = Session(
        index=index or database.index,
        version=database.version,
        model_id=database.model_id,
        query=asked.image_id or asked,
        filters=filters,
        weights=weights,
        keep_marked=keep_marked,
    )
    return _with(session, 0, BY_QUERY, recommender.recommend(asked, filters))


def resume(session: Session, index: str | None = None) -> Recommender:
    """What answers the next rounds: the snapshot of the session, of where the index lies now.

    Raises IndexStateError if that is of another model or gone, InputError.
    """
    database = open_index(index or session.index, session.version)
    if database.model_id != session.model_id:
        raise IndexStateError(
            f"{database.index} is of model {database.model_id}, the session of {session.model_id}"
        )
    session.filters.check(database.spec)
    ids = {"ids": [row.image_id for row in session.shown]}
    known = query(database.connection, _KNOWN, ids).num_rows
    if known < len(set(ids["ids"])):
        raise InputError(f"the session shows images that {database.index} does not have")
    return Recommender(database)


_KNOWN = "SELECT image_id FROM images WHERE image_id IN (SELECT unnest($ids::VARCHAR[]))"


def mark(
    recommender: Recommender,
    session: Session,
    marks: Mapping[int, float],
    by: str = WAYS[0],
    number: int | None = None,
) -> Session:
    """The session with marks, by rank, on its newest round (or another: then what came after it is
    dropped), and with one round more. Raises InputError.
    """
    number = session.last if number is None else number
    session = session.marked(number, marks)
    return _with(session, number + 1, by, next_round(recommender, session, by))


def replay(recommender: Recommender, session: Session) -> list[Replayed]:
    """Rank all rounds of a session again, from its marks. Raises InputError."""
    return [_again(recommender, session.before(n), rows) for n, rows in session.rounds()]


def _again(recommender: Recommender, session: Session, rows: Sequence[Shown]) -> Replayed:
    first = rows[0]
    if first.by == BY_QUERY:
        found = recommender.recommend(asked_with(recommender, session), session.filters)
    else:
        found = next_round(recommender, session, first.by)
    then, now = [row.image_id for row in rows], [r.image_id for r in found]
    differ = sum(a != b for a, b in zip(then, now, strict=False)) + abs(len(then) - len(now))
    return Replayed(first.round, first.by, len(rows), differ)


def asked_with(recommender: Recommender, session: Session) -> QueryImage:
    """The query of a session. Raises InputError if it is no longer in the index."""
    if isinstance(session.query, QueryImage):
        return session.query
    return recommender.indexed_image("image_id", session.query)


def next_round(recommender: Recommender, session: Session, by: str) -> list[Recommendation]:
    """What to show because of all marks of a session, best first; the query's own image is left
    out and, unless the session keeps them, so are marked ones, with their copies. InputError.
    """
    asked = asked_with(recommender, session)
    method = Method.of(session.filters.method)
    vector = _refined(recommender, session, asked, method, by)
    hidden = [] if session.keep_marked else list(session.marks())
    if asked.image_id:
        hidden.append(asked.image_id)
    wanted = replace(
        session.filters,
        k=session.filters.k + len(hidden),
        method=linear(session.filters.method) if by == SVM else session.filters.method,
    )
    seen = {**_seen(recommender, asked, wanted), "query": vector.tolist()}
    found = recommender.recommend(QueryImage(asked.card, None, seen), wanted)
    left = _without(recommender, found, hidden, wanted.distinct_content)
    return [replace(r, rank=i) for i, r in enumerate(left[: session.filters.k], start=1)]


def _refined(
    recommender: Recommender, session: Session, asked: QueryImage, method: Method, by: str
) -> Floats:
    """The vector of the next round: (C,). Marks on images without a vector have no part in it."""
    cls = session.filters.cls if session.filters.is_regional else None
    marks = session.marks()
    ids = [*([asked.image_id] if asked.image_id else []), *marks]
    raw = vectors(recommender.database, method, cls, ids)
    if not asked.image_id:
        if not raw.shape[1]:  # none of the marked images has a vector
            raw = np.full((len(raw), len(asked.seen["query"])), np.nan, np.float32)
        raw = np.vstack([np.array([asked.seen["query"]], np.float32), raw])
    ready = prepared(raw, method.metric)
    known = np.asarray(np.isfinite(ready).all(axis=1))
    if not known[0]:
        raise InputError(f"{asked.card.name}: {method} is not defined for it, so nothing to refine")
    values = np.array(list(marks.values()))[known[1:]]
    return refined(by, ready[0], ready[1:][known[1:]], values, session.weights)


def _seen(recommender: Recommender, asked: QueryImage, filters: Filters) -> dict[str, Any]:
    """What filters and the second ranking need of the query, which marks do not change."""
    if not asked.image_id:
        return dict(asked.seen)
    database, one = recommender.database, {"id": asked.image_id}
    found: dict[str, Any] = {"coverages": list(asked.card.coverage.values())}
    if filters.second_ranking:
        sql = "SELECT class, mask_bits FROM regions WHERE image_id = $id"
        rows = query(database.connection, sql, one).to_pylist()
        only = filters.mask_classes(database.spec.classes)
        found["masks"] = {row["class"]: row["mask_bits"] for row in rows if row["class"] in only}
    if filters.method == LOCALISED:
        sql = "SELECT category FROM descriptors WHERE image_id = $id AND descriptor = $name"
        rows = query(database.connection, sql, {**one, "name": LOCALISED}).to_pylist()
        found["category"] = rows[0]["category"]
    return found


def _without(
    recommender: Recommender, found: list[Recommendation], hidden: Sequence[str], copies: bool
) -> list[Recommendation]:
    """The answer without some images and, if `copies`, without those of the same bytes."""
    if not copies or not hidden:
        return [r for r in found if r.image_id not in hidden]
    sql = "SELECT image_id, content_hash FROM images WHERE list_contains($ids, image_id)"
    ids = {"ids": [*hidden, *(r.image_id for r in found)]}
    rows = query(recommender.database.connection, sql, ids).to_pylist()
    content = {row["image_id"]: row["content_hash"] for row in rows}
    gone = {content[name] for name in hidden}
    return [r for r in found if content[r.image_id] not in gone]


def _with(session: Session, number: int, by: str, found: Sequence[Recommendation]) -> Session:
    if not found:
        raise InputError(f"nothing to show in round {number}: no image is left behind the filters")
    rows = [Shown(number, by, r.rank, r.image_id, r.uri, r.score) for r in found]
    return replace(session, shown=[*session.shown, *rows])
