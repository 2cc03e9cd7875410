"""Rounds of a feedback session: first results, results after marks, and their replay.

`recommend` ranks a round, with the refined vector as query and the filters of the session. The
refined vector depends on the query and all marks so far, so a mark weighs the same in any round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.search.database import open_index
from segrec_batch.search.feedback.refine import (
    STANDARD,
    SVM,
    WAYS,
    Weights,
    load_vectors,
    refine,
    to_linear_method,
)
from segrec_batch.search.feedback.session import Session, ShownImage
from segrec_batch.search.filters import LOCALISED, Filters, Method
from segrec_batch.search.recommend import QueryImage, Recommendation, Recommender, Results
from segrec_batch.search.similarity import METRICS, Floats
from segrec_batch.search.sql.connection import query as run_query

BY_QUERY = "query"
"""Ranking of round 0."""


@dataclass(frozen=True)
class ReplayedRound:
    """Comparison of a stored round with its replay.

    shown: stored images. differ: ranks whose image is another now.
    """

    round: int
    by: str
    shown: int
    differ: int


def start(
    recommender: Recommender,
    image: QueryImage,
    filters: Filters,
    weights: Weights = STANDARD,
    *,
    index: str = "",
    keep_marked: bool = False,
) -> Session:
    """Return a new session with round 0, the results of `recommend`.

    Args:
        recommender: of an open index.
        image: the query image.
        filters: filters and method of all rounds.
        weights: of Rocchio and the SVM.
        index: URI that the session keeps, such as that of a query cache; by default the index.
        keep_marked: marked images are shown again.

    Raises:
        InputError: there are no results.
    """
    weights.check()
    if filters.expand is not None:
        raise InputError("marks move the query of a session, not its first results: omit expand")
    database = recommender.database
    session = Session(
        index=index or database.index,
        version=database.version,
        model_id=database.model_id,
        query=image.image_id or image,
        filters=filters,
        weights=weights,
        keep_marked=keep_marked,
    )
    return _with_round(session, 0, BY_QUERY, recommender.rank(image, filters))


def resume(session: Session, index: str | None = None) -> Recommender:
    """Open the snapshot of a session, at `index` if it was moved.

    Raises IndexStateError if the snapshot is gone or of another model, and InputError.
    """
    database = open_index(index or session.index, session.version)
    if database.model_id != session.model_id:
        raise IndexStateError(
            f"{database.index} is of model {database.model_id}, the session of {session.model_id}"
        )
    session.filters.check(database.spec)
    ids = {row.image_id for row in session.shown}
    sql = "SELECT image_id FROM images WHERE image_id IN (SELECT unnest($ids::VARCHAR[]))"
    if run_query(database.connection, sql, {"ids": list(ids)}).num_rows < len(ids):
        raise InputError(f"the session shows images that {database.index} does not have")
    return Recommender(database)


def mark(
    recommender: Recommender,
    session: Session,
    marks: Mapping[int, float],
    by: str = WAYS[0],
    number: int | None = None,
) -> Session:
    """Return the session with marks, by rank, on its newest round, and with a new round.

    With `number`, the marks are on that round, and later rounds are deleted. Raises InputError.
    """
    number = session.last if number is None else number
    session = session.with_marks(number, marks)
    return _with_round(session, number + 1, by, next_round(recommender, session, by))


def replay(recommender: Recommender, session: Session) -> list[ReplayedRound]:
    """Rank all rounds of a session again, from its marks. Raises InputError."""
    return [_rank_again(recommender, session.before(n), rows) for n, rows in session.rounds()]


def _rank_again(
    recommender: Recommender, session: Session, rows: Sequence[ShownImage]
) -> ReplayedRound:
    first = rows[0]
    if first.by == BY_QUERY:
        results = recommender.rank(query_image(recommender, session), session.filters)
    else:
        results = next_round(recommender, session, first.by)
    old, new = [row.image_id for row in rows], [r.image_id for r in results]
    differ = sum(a != b for a, b in zip(old, new, strict=False)) + abs(len(old) - len(new))
    return ReplayedRound(first.round, first.by, len(rows), differ)


def query_image(recommender: Recommender, session: Session) -> QueryImage:
    """Return the query image of a session. Raises InputError if it was removed."""
    if isinstance(session.query, QueryImage):
        return session.query
    return recommender.find_image("image_id", session.query)


def round_results(recommender: Recommender, session: Session, number: int) -> Results:
    """Return a stored round as results, for a contact sheet."""
    rows = session.round(number)
    filters = session.filters
    if rows[0].by == SVM:
        filters = replace(filters, method=to_linear_method(filters.method))
    results = recommender.load_recommendations({row.image_id: row.score for row in rows})
    return Results(query_image(recommender, session), filters, results)


def next_round(recommender: Recommender, session: Session, by: str) -> list[Recommendation]:
    """Return the images ranked by all marks of a session, best first.

    The query image is excluded and, unless `keep_marked` is set, so are marked images, with their
    copies. Raises InputError.
    """
    image, filters = query_image(recommender, session), session.filters
    vector = _refined_vector(recommender, session, image, by)
    excluded = [] if session.keep_marked else list(session.marks())
    if image.image_id:
        excluded.append(image.image_id)
    method = to_linear_method(filters.method) if by == SVM else filters.method
    wide_filters = replace(filters, k=filters.k + len(excluded), method=method)
    arguments = {**_arguments(recommender, image, wide_filters), "query": vector.tolist()}
    results = recommender.rank(QueryImage(image.card, None, arguments), wide_filters)
    results = _exclude(recommender, results, excluded, filters.distinct_content)
    return [replace(r, rank=i) for i, r in enumerate(results[: filters.k], start=1)]


def _refined_vector(
    recommender: Recommender, session: Session, image: QueryImage, by: str
) -> Floats:
    """Return the vector of the next round, (C,). Marks on images without a vector do not count."""
    method = Method.of(session.filters.method)
    cls = session.filters.cls if session.filters.is_regional else None
    marks = session.marks()
    ids = [*([image.image_id] if image.image_id else []), *marks]
    raw = load_vectors(recommender.database, method, cls, ids)
    if not image.image_id:
        if not raw.shape[1]:  # none of the marked images has a vector
            raw = np.full((len(raw), len(image.arguments["query"])), np.nan, np.float32)
        raw = np.vstack([np.array([image.arguments["query"]], np.float32), raw])
    prepared = METRICS[method.metric].prepare(raw)
    usable = np.asarray(np.isfinite(prepared).all(axis=1))
    if not usable[0]:
        raise InputError(
            f"{image.card.name}: {method} is not defined for it, so marks cannot refine it"
        )
    values = np.array(list(marks.values()))[usable[1:]]
    return refine(by, prepared[0], prepared[1:][usable[1:]], values, session.weights)


def _arguments(recommender: Recommender, image: QueryImage, filters: Filters) -> dict[str, Any]:
    """Return coverages, masks and category of the query for SQL; marks do not change them."""
    if not image.image_id:
        return dict(image.arguments)
    database, values = recommender.database, {"id": image.image_id}
    arguments: dict[str, Any] = {"coverages": list(image.card.coverage.values())}
    if filters.reranking:
        sql = "SELECT class, mask_bits FROM regions WHERE image_id = $id"
        rows = run_query(database.connection, sql, values).to_pylist()
        classes = filters.mask_classes(database.spec.classes)
        masks = {row["class"]: row["mask_bits"] for row in rows if row["class"] in classes}
        arguments["masks"] = masks
    if filters.method == LOCALISED:
        sql = "SELECT category FROM descriptors WHERE image_id = $id AND descriptor = $name"
        rows = run_query(database.connection, sql, {**values, "name": LOCALISED}).to_pylist()
        arguments["category"] = rows[0]["category"]
    return arguments


def _exclude(
    recommender: Recommender, results: list[Recommendation], excluded: Sequence[str], copies: bool
) -> list[Recommendation]:
    """Return results without `excluded` images and, with `copies`, without copies of these."""
    if not copies or not excluded:
        return [r for r in results if r.image_id not in excluded]
    sql = "SELECT image_id, content_hash FROM images WHERE list_contains($ids, image_id)"
    ids = {"ids": [*excluded, *(r.image_id for r in results)]}
    rows = run_query(recommender.database.connection, sql, ids).to_pylist()
    content = {row["image_id"]: row["content_hash"] for row in rows}
    contents = {content[name] for name in excluded}
    return [r for r in results if content[r.image_id] not in contents]


def _with_round(
    session: Session, number: int, by: str, results: Sequence[Recommendation]
) -> Session:
    if not results:
        raise InputError(f"nothing to show in round {number}: no further image passes the filters")
    rows = [ShownImage(number, by, r.rank, r.image_id, r.uri, r.score) for r in results]
    return replace(session, shown=[*session.shown, *rows])
