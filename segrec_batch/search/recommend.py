"""Queries for the images of an index that are similar to an image."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from segrec_batch.common.errors import InputError
from segrec_batch.index.schema import coverage_column
from segrec_batch.search.database import Database, open_index
from segrec_batch.search.filters import Filters, Method
from segrec_batch.search.sql.connection import query as run_query
from segrec_batch.search.sql.views import identifier
from segrec_batch.sheets.card import Card
from segrec_batch.sources import storage
from segrec_batch.sources.roots import ImageRoots, OutsideRootsError, fetch_images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """Query of an index: an image, filters and a method.

    The image is the first of `image` (encoded bytes of a new one), `image_id` and `uri` that is
    set. The model of the index segments a new image.

    Attributes:
        filters: filters and method.
        image_id: id of an image of the index.
        uri: URI or path of an image of the index; in messages the name of a new image.
        image: encoded bytes of a new image.
        engine: library that runs the model, or auto.
        precision: arithmetic of the backbone, or auto.
        device: cpu, cuda or auto.
    """

    filters: Filters = field(default_factory=Filters)
    image_id: str | None = None
    uri: str | None = None
    image: bytes | None = None
    engine: str = "auto"
    precision: str = "auto"
    device: str = "cpu"


@dataclass(frozen=True)
class QueryImage:
    """A query image: one of the index (`image_id`) or a new one (`arguments`)."""

    card: Card
    image_id: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments query, coverages, masks and category of the SQL macro, for a new image."""


@dataclass(frozen=True)
class Recommendation:
    """One result: an image of the index with its score.

    coverage: of every class. score: correlation, cosine, inner product or negative distance, higher
    is more similar; None where undefined. pearson: None with other methods.
    """

    rank: int
    image_id: str
    uri: str
    score: float | None
    pearson: float | None
    mask_iou: float | None
    coverage: Mapping[str, float]
    mask: bytes


@dataclass(frozen=True)
class Results(Sequence[Recommendation]):
    """Recommendations for a query, best first."""

    image: QueryImage
    filters: Filters
    rows: Sequence[Recommendation]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        return self.rows[at]

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.rows)

    def cards(self, roots: ImageRoots) -> list[Card]:
        """Return the query and the recommendations as cards of a contact sheet, with their images.

        `Card.image` is None for an image that cannot be read or is outside the roots.
        """
        method = Method.of(self.filters.method)
        results = [
            Card(
                r.uri,
                None,
                r.mask,
                r.coverage,
                method.to_display_score(r.score),
                r.mask_iou,
                method.label,
            )
            for r in self.rows
        ]
        without_image = [card for card in (self.image.card, *results) if card.image is None]
        contents = fetch_images([card.uri for card in without_image], roots)
        with_image = [
            replace(card, image=content)
            if isinstance(content, bytes)
            else replace(card, is_withheld=isinstance(content, OutsideRootsError))
            for card, content in zip(without_image, contents, strict=True)
        ]
        return with_image if self.image.card.image is None else [self.image.card, *with_image]


class Recommender:
    """Ranks images of one snapshot of an index, or of a query cache.

    >>> Recommender("s3://bucket/index").recommend(Query(uri="s3://bucket/1.jpg"))  # doctest: +SKIP
    """

    def __init__(self, index: str | Database, version: int | None = None) -> None:
        self.database = open_index(index, version) if isinstance(index, str) else index

    def recommend(self, query: Query) -> Results:
        """Return the images most similar to the query image, best first.

        Raises InputError if the index lacks the image or class, or the bytes are not an image.
        """
        image = self.resolve(query)
        return Results(image, query.filters, self.rank(image, query.filters))

    def resolve(self, query: Query) -> QueryImage:
        """Look up or segment the image of a query. Raises InputError."""
        if query.image is not None:
            return self._segment(query, query.image)
        if query.image_id is not None:
            return self.find_image("image_id", query.image_id)
        if query.uri is not None:
            return self.find_image("uri", storage.absolute(query.uri))
        raise InputError("a query needs an image: give image_id, uri or image")

    def find_image(self, column: str, value: str) -> QueryImage:
        """Return the indexed image whose `image_id` or `uri` is `value`. Raises InputError.

        URIs are absolute.
        """
        rows = self._rows(
            f"image_id, uri, mask, {self._coverage_columns}", "images", {column: value}
        )
        if not rows:
            failures = self._rows("stage, reason", "failures", {column: value})
            reason = "".join(f"; it failed: {f['stage']}, {f['reason']}" for f in failures[:1])
            raise InputError(f"{value} is not in the index{reason}")
        row = rows[0]
        card = Card(row["uri"], None, row["mask"], self._coverage(row), None)
        return QueryImage(card, row["image_id"])

    def _segment(self, query: Query, content: bytes) -> QueryImage:
        from segrec_batch.model.engine_choice import choose_engine, find_device
        from segrec_batch.search.new_image import segment_query_image

        backbone = self.database.spec.backbone_spec
        device = find_device(query.device)
        engine = choose_engine(query.engine, query.precision, device, backbone=backbone)
        if engine.warning:
            log.warning(engine.warning)
        name = query.uri or "the query image"
        card, arguments = segment_query_image(self.database, name, content, query.filters, engine)
        return QueryImage(card, None, arguments)

    def rank(self, image: QueryImage, filters: Filters) -> list[Recommendation]:
        """Return the most similar images, best first.

        Raises InputError if the image has no region of the class or no vector of the descriptor.
        """
        filters.check(self.database.spec)
        if image.image_id and filters.cls and filters.is_regional:
            region = {"image_id": image.image_id, "class": filters.cls}
            if not self._rows("uri", "regions", region):
                raise InputError(
                    f"{image.card.uri}: the index has no region of class {filters.cls} of it"
                )
        self._check_vector(image, Method.of(filters.method))
        values = {**filters.arguments(), **(image.arguments or {"query": image.image_id})}
        casts = _CASTS if image.arguments else {"query": "::VARCHAR"}
        arguments = [f"{n} := ${n}{casts.get(n, '')}" for n in values if n != "query"]
        rows = run_query(
            self.database.connection,
            f"SELECT r.*, i.mask, {self._coverage_columns} "  # noqa: S608
            f"FROM recommend($query{casts['query']}, {', '.join(arguments)}) AS r "
            "JOIN images AS i USING (image_id) ORDER BY r.rank",
            values,
        )
        return [self._recommendation(row) for row in rows.to_pylist()]

    def load_recommendations(self, scores: Mapping[str, float | None]) -> list[Recommendation]:
        """Return the images whose ids are in `scores` as recommendations, in its order."""
        rows = run_query(
            self.database.connection,
            f"SELECT image_id, uri, mask, {self._coverage_columns} FROM images "  # noqa: S608
            "WHERE image_id IN (SELECT unnest($ids))",
            {"ids": list(scores)},
        )
        by_id = {row["image_id"]: row for row in rows.to_pylist()}
        return [
            self._recommendation({**by_id[name], "rank": rank, "score": score})
            for rank, (name, score) in enumerate(scores.items(), start=1)
        ]

    def _recommendation(self, row: Mapping[str, Any]) -> Recommendation:
        return Recommendation(
            rank=row["rank"],
            image_id=row["image_id"],
            uri=row["uri"],
            score=row["score"],
            pearson=row.get("pearson"),
            mask_iou=row.get("mask_iou"),
            coverage=self._coverage(row),
            mask=row["mask"],
        )

    def _check_vector(self, image: QueryImage, method: Method) -> None:
        if image.image_id is None or method.descriptor is None:
            return
        where = {"image_id": image.image_id, "descriptor": method.descriptor}
        rows = self._rows("vector IS NOT NULL AS has_vector, reason", "descriptors", where)
        if not rows or not rows[0]["has_vector"]:
            reason = rows[0]["reason"] if rows else "run segrec index with the model that has it"
            raise InputError(f"{image.card.uri}: it has no vector of {method.descriptor}: {reason}")

    def _rows(self, columns: str, table: str, where: Mapping[str, str]) -> list[dict[str, Any]]:
        conditions = " AND ".join(f"{column} = ?" for column in where)
        sql = f"SELECT {columns} FROM {table} WHERE {conditions}"  # noqa: S608
        connection = self.database.connection
        rows: list[dict[str, Any]] = run_query(connection, sql, list(where.values())).to_pylist()
        return rows

    @property
    def _coverage_columns(self) -> str:
        return ", ".join(
            identifier(coverage_column(name)) for name in self.database.spec.all_classes
        )

    def _coverage(self, row: Mapping[str, Any]) -> dict[str, float]:
        return {name: row[coverage_column(name)] for name in self.database.spec.all_classes}


_CASTS = {"query": "::FLOAT[]", "coverages": "::FLOAT[]", "masks": "::MAP(VARCHAR, BIGINT[])"}
