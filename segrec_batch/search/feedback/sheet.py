"""A round of a session as the cards of a contact sheet."""

from segrec_batch.index.schema import coverage_column
from segrec_batch.search.feedback.refine import SVM
from segrec_batch.search.feedback.rounds import asked_with
from segrec_batch.search.feedback.session import Session
from segrec_batch.search.feedback.vectors import linear
from segrec_batch.search.recommend import Recommendation, Recommender, cards
from segrec_batch.search.sql.connection import query
from segrec_batch.search.sql.views import identifier
from segrec_batch.sheets.card import Card
from segrec_batch.sources.roots import ImageRoots


def round_cards(
    recommender: Recommender, session: Session, number: int, roots: ImageRoots
) -> list[Card]:
    """The query and the images of a round, with their images where they can be read."""
    rows = session.round(number)
    spec = recommender.database.spec
    columns = [coverage_column(name) for name in spec.all_classes]
    sql = (
        f"SELECT image_id, mask, {', '.join(map(identifier, columns))} FROM images "  # noqa: S608
        "WHERE image_id IN (SELECT unnest($ids))"
    )
    ids = {"ids": [row.image_id for row in rows]}
    kept = {r["image_id"]: r for r in query(recommender.database.connection, sql, ids).to_pylist()}
    found = [
        Recommendation(
            rank=row.rank,
            image_id=row.image_id,
            uri=row.uri,
            score=row.score,
            pearson=None,
            mask_iou=None,
            coverage={
                name: kept[row.image_id][column]
                for name, column in zip(spec.all_classes, columns, strict=True)
            },
            mask=kept[row.image_id]["mask"],
        )
        for row in rows
    ]
    method = session.filters.method
    if rows[0].by == SVM:
        method = linear(method)
    return cards(asked_with(recommender, session), found, method, roots)
