"""Ask an index for images like one that is in it, or like a new picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch import storage
from segrec_batch.decode import decode, mask_shape
from segrec_batch.errors import InputError, PictureError
from segrec_batch.model.bundle import load_model
from segrec_batch.model.segmenter import Segmenter
from segrec_batch.query.database import connect_snapshot, query
from segrec_batch.query.sheet import Card
from segrec_batch.store import encode
from segrec_batch.store.index import Snapshot
from segrec_batch.store.schema import coverage_column


@dataclass(frozen=True)
class Criteria:
    """What to rank by: regions of a class with their coverage σ in a window, or whole images."""

    cls: str | None = None
    coverage: tuple[float, float] = (0.0, 1.0)
    k: int = 10

    def check(self, classes: Sequence[str]) -> None:
        """Raises InputError for a class that the index does not know or a window that is empty."""
        if self.cls is not None and self.cls not in classes:
            raise InputError(f"no class {self.cls!r} in this index; it has {', '.join(classes)}")
        low, high = self.coverage
        if not 0 <= low <= high <= 1:
            raise InputError(f"coverage {low:g} {high:g}: give 0 <= LOW <= HIGH <= 1")
        if self.cls is None and self.coverage != (0.0, 1.0):
            raise InputError("a coverage window needs a class")
        if self.k < 1:
            raise InputError(f"k is {self.k}; ask for at least 1")

    def __str__(self) -> str:
        if self.cls is None:
            return "whole images, ranked by Pearson correlation"
        low, high = self.coverage
        return f"regions of class {self.cls}, σ {low:g} to {high:g}, ranked by Pearson correlation"


@dataclass(frozen=True)
class QueryImage:
    """What is asked with: an indexed image (`image_id`) or the features of a new picture."""

    card: Card
    image_id: str | None
    feature: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Recommendation:
    """One row of an answer; `coverage` of every class, `pearson` None where it is undefined."""

    rank: int
    image_id: str
    uri: str
    pearson: float | None
    coverage: Mapping[str, float]
    mask: bytes

    def card(self) -> Card:
        """This row on a contact sheet, with its picture."""
        return Card(self.uri, read_picture(self.uri), self.mask, self.coverage, self.pearson)


class Recommender:
    """Answers queries about one snapshot of an index."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.connection = connect_snapshot(snapshot)

    def indexed_image(self, column: str, value: str) -> QueryImage:
        """The image of the index whose `image_id` or `uri` has a value. Raises InputError."""
        rows = self._rows("images", {column: value})
        if not rows:
            failed = self._rows("failures", {column: value})
            why = f"; it failed: {failed[0]['stage']}, {failed[0]['reason']}" if failed else ""
            raise InputError(f"{value} is not in the index{why}")
        row = rows[0]
        picture = read_picture(row["uri"])
        card = Card(row["uri"], picture, row["mask"], self._coverage(row), None)
        return QueryImage(card, row["image_id"])

    def new_picture(
        self, name: str, content: bytes, criteria: Criteria, device: str = "cpu"
    ) -> QueryImage:
        """Segment a picture with the index's own model. InputError for what is no picture."""
        spec = self.snapshot.spec
        criteria.check(spec.all_classes)
        try:
            picture = decode(content, spec.shapes)
        except PictureError as error:
            raise InputError(f"{name}: {error.reason}") from error
        found = Segmenter(load_model(self.snapshot.model_uri), device)(picture.pixels[None])
        counts, feature = found.counts[0], found.feature[0]
        if criteria.cls is not None:
            k = spec.all_classes.index(criteria.cls)
            if counts[k] == 0:
                raise InputError(f"{name}: the model sees no {criteria.cls} in it")
            feature = found.region_features[0, k]
        shares = dict(zip(spec.all_classes, (counts / counts.sum()).tolist(), strict=True))
        mask = found.mask(0, mask_shape(picture.height, picture.width))
        png = encode.mask_png(mask, list(spec.colours.values()))
        return QueryImage(Card(name, content, png, shares, None), None, feature)

    def recommend(self, asked: QueryImage, criteria: Criteria) -> list[Recommendation]:
        """The most similar images, best first. InputError if the query has no such region."""
        criteria.check(self.snapshot.spec.all_classes)
        if asked.image_id and criteria.cls:
            region = {"image_id": asked.image_id, "class": criteria.cls}
            if not self._rows("regions", region):
                raise InputError(f"{asked.card.uri}: the index has no {criteria.cls} in it")
        kind, subject = "VARCHAR", asked.image_id or ""
        if asked.feature is not None:
            kind, subject = "FLOAT[]", asked.feature.tolist()
        rows = query(
            self.connection,
            f"SELECT r.rank, r.pearson, i.* FROM recommend(?::{kind}, k := ?, class := ?, "  # noqa: S608
            "min_coverage := ?, max_coverage := ?) AS r "
            "JOIN images AS i USING (image_id) ORDER BY r.rank",
            [subject, criteria.k, criteria.cls, *criteria.coverage],
        )
        return [
            Recommendation(
                rank=row["rank"],
                image_id=row["image_id"],
                uri=row["uri"],
                pearson=row["pearson"],
                coverage=self._coverage(row),
                mask=row["mask"],
            )
            for row in rows.to_pylist()
        ]

    def _rows(self, table: str, where: Mapping[str, str]) -> list[dict[str, Any]]:
        conditions = " AND ".join(f"{column} = ?" for column in where)
        sql = f"SELECT * FROM {table} WHERE {conditions}"  # noqa: S608
        rows: list[dict[str, Any]] = query(self.connection, sql, list(where.values())).to_pylist()
        return rows

    def _coverage(self, row: Mapping[str, Any]) -> dict[str, float]:
        return {name: row[coverage_column(name)] for name in self.snapshot.spec.all_classes}


def read_picture(uri: str) -> bytes | None:
    """The picture behind a URI, None if it cannot be read (any more)."""
    content = storage.read_many([uri])[0]
    return None if isinstance(content, Exception) else content
