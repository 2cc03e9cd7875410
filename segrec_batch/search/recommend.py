"""Ask an index for images like one that is in it, or like a new image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from segrec_batch.common.errors import InputError
from segrec_batch.index.schema import coverage_column
from segrec_batch.model.engine_choice import choose_engine
from segrec_batch.model.engines import EngineChoice
from segrec_batch.search.database import Database
from segrec_batch.search.filters import Filters, Method
from segrec_batch.search.new_image import look
from segrec_batch.search.sql.connection import query
from segrec_batch.search.sql.views import identifier
from segrec_batch.sheets.card import Card
from segrec_batch.sources.roots import ImageRoots, OutsideRootsError, fetch_images


@dataclass(frozen=True)
class QueryImage:
    """What is asked with: an indexed image (`image_id`), or what was seen in a new image."""

    card: Card
    image_id: str | None
    seen: Mapping[str, Any] = field(default_factory=dict)
    """Of a new image: the arguments query, coverages, masks and category of the SQL macro."""


@dataclass(frozen=True)
class Recommendation:
    """One row of an answer; `coverage` of every class.

    score: higher is more alike, None where it is undefined: the correlation, the cosine, the inner
    product, or the distance with a minus. pearson: None with other methods.
    """

    rank: int
    image_id: str
    uri: str
    score: float | None
    pearson: float | None
    mask_iou: float | None
    coverage: Mapping[str, float]
    mask: bytes


class Recommender:
    """Answers queries about one snapshot of an index."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def indexed_image(self, column: str, value: str) -> QueryImage:
        """The image of the index whose `image_id` or `uri` has a value. Raises InputError."""
        shown = f"image_id, uri, mask, {self._shown}"
        rows = self._rows(shown, "images", {column: value})
        if not rows:
            failed = self._rows("stage, reason", "failures", {column: value})
            why = f"; it failed: {failed[0]['stage']}, {failed[0]['reason']}" if failed else ""
            raise InputError(f"{value} is not in the index{why}")
        row = rows[0]
        card = Card(row["uri"], None, row["mask"], self._coverage(row), None)
        return QueryImage(card, row["image_id"])

    def new_image(
        self, name: str, content: bytes, filters: Filters, engine: EngineChoice | None = None
    ) -> QueryImage:
        """Segment an image with the index's own model. InputError for what is no image."""
        engine = engine or choose_engine(backbone=self.database.spec.backbone_spec)
        card, seen = look(self.database, name, content, filters, engine)
        return QueryImage(card, None, seen)

    def recommend(self, asked: QueryImage, filters: Filters) -> list[Recommendation]:
        """The most similar images, best first. InputError if the query has no such region."""
        filters.check(self.database.spec)
        if asked.image_id and filters.cls and filters.is_regional:
            region = {"image_id": asked.image_id, "class": filters.cls}
            if not self._rows("uri", "regions", region):
                raise InputError(f"{asked.card.uri}: the index has no {filters.cls} in it")
        self._check_described(asked, Method.of(filters.method))
        values = {**filters.arguments(), **(asked.seen or {"query": asked.image_id})}
        kinds = _KINDS if asked.seen else {}
        named = [f"{n} := ${n}{kinds.get(n, '')}" for n in values if n != "query"]
        kind = "FLOAT[]" if asked.seen else "VARCHAR"
        rows = query(
            self.database.connection,
            f"SELECT r.*, i.mask, {self._shown} "  # noqa: S608
            f"FROM recommend($query::{kind}, {', '.join(named)}) AS r "
            "JOIN images AS i USING (image_id) ORDER BY r.rank",
            values,
        )
        return [
            Recommendation(
                rank=row["rank"],
                image_id=row["image_id"],
                uri=row["uri"],
                score=row["score"],
                pearson=row["pearson"],
                mask_iou=row["mask_iou"],
                coverage=self._coverage(row),
                mask=row["mask"],
            )
            for row in rows.to_pylist()
        ]

    def _check_described(self, asked: QueryImage, method: Method) -> None:
        if asked.image_id is None or method.descriptor is None:
            return
        where = {"image_id": asked.image_id, "descriptor": method.descriptor}
        rows = self._rows("vector IS NOT NULL AS found, reason", "descriptors", where)
        if not rows or not rows[0]["found"]:
            why = rows[0]["reason"] if rows else "run segrec index with the model that has it"
            raise InputError(f"{asked.card.uri}: it has no vector of {method.descriptor}: {why}")

    def _rows(self, columns: str, table: str, where: Mapping[str, str]) -> list[dict[str, Any]]:
        conditions = " AND ".join(f"{column} = ?" for column in where)
        sql = f"SELECT {columns} FROM {table} WHERE {conditions}"  # noqa: S608
        connection = self.database.connection
        rows: list[dict[str, Any]] = query(connection, sql, list(where.values())).to_pylist()
        return rows

    @property
    def _shown(self) -> str:
        return ", ".join(map(identifier, self._coverages))

    @property
    def _coverages(self) -> list[str]:
        return [coverage_column(name) for name in self.database.spec.all_classes]

    def _coverage(self, row: Mapping[str, Any]) -> dict[str, float]:
        shares = (row[column] for column in self._coverages)
        return dict(zip(self.database.spec.all_classes, shares, strict=True))


_KINDS = {"coverages": "::FLOAT[]", "masks": "::MAP(VARCHAR, BIGINT[])"}


def cards(
    asked: QueryImage, found: Sequence[Recommendation], method: str, roots: ImageRoots
) -> list[Card]:
    """The query, then the recommendations, as they stand on a contact sheet, with their images.

    An image that cannot be read (any more), or does not lie below the roots, is None.
    """
    shown = Method.of(method)
    answer = [
        Card(r.uri, None, r.mask, r.coverage, shown.shown_score(r.score), r.mask_iou, shown.label)
        for r in found
    ]
    bare = [card for card in (asked.card, *answer) if card.image is None]
    contents = fetch_images([card.uri for card in bare], roots)
    full = [
        replace(card, image=content)
        if isinstance(content, bytes)
        else replace(card, is_withheld=isinstance(content, OutsideRootsError))
        for card, content in zip(bare, contents, strict=True)
    ]
    return full if asked.card.image is None else [asked.card, *full]
