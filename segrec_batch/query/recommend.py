"""Ask an index for images like one that is in it, or like a new picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from segrec_batch import storage
from segrec_batch.decode import decode, mask_shape
from segrec_batch.errors import InputError, PictureError
from segrec_batch.query.card import EVERYTHING, Card
from segrec_batch.query.database import Database, query
from segrec_batch.store import encode
from segrec_batch.store.schema import coverage_column


@dataclass(frozen=True)
class Criteria:
    """What to rank by: regions of a class with their coverage σ in a window, or whole images.

    The other fields are as the arguments of the SQL macro `recommend`.
    """

    cls: str | None = None
    coverage: tuple[float, float] = EVERYTHING
    k: int = 10
    scope: str = "region"
    epsilon: float | None = None
    penalise: bool = False
    rerank: str | None = None
    depth: int = 100
    distinct_content: bool = True
    method: str = "pearson"

    def check(self, classes: Sequence[str]) -> None:
        """Raises InputError for a class that the index does not know or a window that is empty."""
        if self.cls is not None and self.cls not in classes:
            raise InputError(f"no class {self.cls!r} in this index; it has {', '.join(classes)}")
        low, high = self.coverage
        if not 0 <= low <= high <= 1:
            raise InputError(f"coverage {low:g} {high:g}: give 0 <= LOW <= HIGH <= 1")
        if self.cls is None and self.coverage != EVERYTHING:
            raise InputError("a coverage window needs a class")
        if self.epsilon is not None and not 0 <= self.epsilon <= 2:
            raise InputError(f"epsilon is {self.epsilon:g}; a semantic distance is 0 to 2")
        for name, number in (("k", self.k), ("depth", self.depth)):
            if number < 1:
                raise InputError(f"{name} is {number}; ask for at least 1")

    @property
    def regional(self) -> bool:
        """Whether regions are compared, not whole images."""
        return self.cls is not None and self.scope == "region"

    def __str__(self) -> str:
        low, high = self.coverage
        what = f"regions of class {self.cls}" if self.regional else "whole images"
        window = f"{'' if self.regional else f' with {self.cls}'}, σ {low:g} to {high:g}"
        window = window if self.cls else ""
        order = "Pearson correlation"
        if self.rerank:
            order += f", the first {self.depth} by mask IoU"
        beyond = "last" if self.penalise else "left out"
        distance = "" if self.epsilon is None else f", beyond distance {self.epsilon:g} {beyond}"
        return f"{what}{window}, ranked by {order}{distance}"

    def arguments(self) -> dict[str, Any]:
        """The arguments of the SQL macro, by name."""
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        low, high = found.pop("coverage")
        del found["method"]
        return {"class": found.pop("cls"), "min_coverage": low, "max_coverage": high, **found}


@dataclass(frozen=True)
class QueryImage:
    """What is asked with: an indexed image (`image_id`), or what was seen in a new picture."""

    card: Card
    image_id: str | None
    seen: Mapping[str, Any] = field(default_factory=dict)
    """Of a new picture: the arguments query, coverages and masks of the SQL macro."""


@dataclass(frozen=True)
class Recommendation:
    """One row of an answer; `coverage` of every class, `pearson` None where it is undefined."""

    rank: int
    image_id: str
    uri: str
    pearson: float | None
    mask_iou: float | None
    coverage: Mapping[str, float]
    mask: bytes

    @property
    def score(self) -> float | None:
        """By which it is ranked, higher is more alike; None where that is undefined."""
        return self.pearson


class Recommender:
    """Answers queries about one snapshot of an index."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def indexed_image(self, column: str, value: str) -> QueryImage:
        """The image of the index whose `image_id` or `uri` has a value. Raises InputError."""
        shown = f"image_id, uri, mask, {', '.join(self._coverages)}"
        rows = self._rows(shown, "images", {column: value})
        if not rows:
            failed = self._rows("stage, reason", "failures", {column: value})
            why = f"; it failed: {failed[0]['stage']}, {failed[0]['reason']}" if failed else ""
            raise InputError(f"{value} is not in the index{why}")
        row = rows[0]
        card = Card(row["uri"], None, row["mask"], self._coverage(row), None)
        return QueryImage(card, row["image_id"])

    def new_picture(
        self, name: str, content: bytes, criteria: Criteria, device: str = "cpu"
    ) -> QueryImage:
        """Segment a picture with the index's own model. InputError for what is no picture."""
        from segrec_batch.model.bundle import load_model  # imports torch, which takes seconds
        from segrec_batch.model.segmenter import Segmenter

        spec = self.database.spec
        criteria.check(spec.all_classes)
        try:
            picture = decode(content, spec.shapes)
        except PictureError as error:
            raise InputError(f"{name}: {error.reason}") from error
        found = Segmenter(load_model(self.database.model_uri), device)(picture.pixels[None])
        counts, feature = found.counts[0], found.feature[0]
        if criteria.cls is not None and criteria.regional:
            k = spec.all_classes.index(criteria.cls)
            if counts[k] == 0:
                raise InputError(f"{name}: the model sees no {criteria.cls} in it")
            feature = found.region_features[0, k]
        shares = dict(zip(spec.all_classes, (counts / counts.sum()).tolist(), strict=True))
        mask = found.mask(0, mask_shape(picture.height, picture.width))
        png = encode.mask_png(mask, list(spec.colours.values()))
        bitmaps = {
            label: encode.bitmap_words((found.common[0] == i).ravel()).tolist()
            for i, label in enumerate(spec.all_classes)
            if counts[i] and label in ([criteria.cls] if criteria.cls else spec.classes)
        }
        seen = {"query": feature.tolist(), "coverages": list(shares.values()), "masks": bitmaps}
        return QueryImage(Card(name, content, png, shares, None), None, seen)

    def recommend(self, asked: QueryImage, criteria: Criteria) -> list[Recommendation]:
        """The most similar images, best first. InputError if the query has no such region."""
        criteria.check(self.database.spec.all_classes)
        if asked.image_id and criteria.cls and criteria.regional:
            region = {"image_id": asked.image_id, "class": criteria.cls}
            if not self._rows("uri", "regions", region):
                raise InputError(f"{asked.card.uri}: the index has no {criteria.cls} in it")
        values = {**criteria.arguments(), **(asked.seen or {"query": asked.image_id})}
        kinds = _KINDS if asked.seen else {}
        named = [f"{n} := ${n}{kinds.get(n, '')}" for n in values if n != "query"]
        kind = "FLOAT[]" if asked.seen else "VARCHAR"
        rows = query(
            self.database.connection,
            f"SELECT r.*, i.mask, {', '.join(self._coverages)} "  # noqa: S608
            f"FROM recommend($query::{kind}, {', '.join(named)}) AS r "
            "JOIN images AS i USING (image_id) ORDER BY r.rank",
            values,
        )
        return [
            Recommendation(
                rank=row["rank"],
                image_id=row["image_id"],
                uri=row["uri"],
                pearson=row["pearson"],
                mask_iou=row["mask_iou"],
                coverage=self._coverage(row),
                mask=row["mask"],
            )
            for row in rows.to_pylist()
        ]

    def _rows(self, columns: str, table: str, where: Mapping[str, str]) -> list[dict[str, Any]]:
        conditions = " AND ".join(f"{column} = ?" for column in where)
        sql = f"SELECT {columns} FROM {table} WHERE {conditions}"  # noqa: S608
        connection = self.database.connection
        rows: list[dict[str, Any]] = query(connection, sql, list(where.values())).to_pylist()
        return rows

    @property
    def _coverages(self) -> list[str]:
        return [coverage_column(name) for name in self.database.spec.all_classes]

    def _coverage(self, row: Mapping[str, Any]) -> dict[str, float]:
        shares = (row[column] for column in self._coverages)
        return dict(zip(self.database.spec.all_classes, shares, strict=True))


_KINDS = {"coverages": "::FLOAT[]", "masks": "::MAP(VARCHAR, BIGINT[])"}


def cards(asked: QueryImage, found: Sequence[Recommendation]) -> list[Card]:
    """The query, then the recommendations, as they stand on a contact sheet, with their pictures.

    A picture that cannot be read (any more) is None.
    """
    answer = [Card(r.uri, None, r.mask, r.coverage, r.pearson, r.mask_iou) for r in found]
    bare = [card for card in (asked.card, *answer) if card.picture is None]
    contents = storage.read_many([card.uri for card in bare])
    pictures = [None if isinstance(content, Exception) else content for content in contents]
    full = [replace(card, picture=found) for card, found in zip(bare, pictures, strict=True)]
    return full if asked.card.picture is None else [asked.card, *full]
