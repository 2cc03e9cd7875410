"""Feedback sessions: query, results and marks, round by round, in one Parquet file.

The file is written atomically, so it always holds complete rounds. DuckDB can read it. Query,
filters and weights are JSON in its metadata.
"""

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segrec_batch.common.errors import InputError
from segrec_batch.index.parquet import read_parquet
from segrec_batch.search.feedback.refine import MARKS, RELEVANT, STANDARD, WAYS, Weights
from segrec_batch.search.feedback.session_schema import check_metadata
from segrec_batch.search.filters import Filters
from segrec_batch.search.recommend import QueryImage
from segrec_batch.sheets.card import Card
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import parse_json, shorten

FORMAT = 2
KEY = b"segrec_batch.search.feedback"
_BYTES = 2**28  # maximum size of a file
_SCHEMES = ("file", "s3", "s3a")  # of the index of a session

ROUNDS = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("by", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("mark", pa.float32()),
    ]
)
"""One row per image shown in a round. round: from 0, the results without feedback. by: query,
rocchio or svm, which ranked the round. mark: 1 relevant, 0.5 somewhat, 0 not, NULL not marked."""


@dataclass(frozen=True)
class ShownImage:
    """One image of a round; see ROUNDS."""

    round: int
    by: str
    rank: int
    image_id: str
    uri: str
    score: float | None
    mark: float | None = None


@dataclass(frozen=True)
class Session:
    """Query, filters and rounds of relevance feedback.

    Attributes:
        index: URI of an index or a query cache.
        version: of the snapshot that ranks all rounds.
        model_id: of that snapshot.
        query: image_id of an indexed image, or a new image.
        filters: filters and method.
        weights: of Rocchio and the SVM.
        keep_marked: marked images are shown again.
        shown: images of all rounds, in order.
    """

    index: str
    version: int
    model_id: str
    query: str | QueryImage
    filters: Filters
    weights: Weights = STANDARD
    keep_marked: bool = False
    shown: Sequence[ShownImage] = ()

    @property
    def last(self) -> int:
        """The number of the newest round."""
        return max(row.round for row in self.shown)

    def rounds(self) -> Iterator[tuple[int, list[ShownImage]]]:
        """Yield the number and the rows of each round."""
        for number in range(self.last + 1):
            yield number, self.round(number)

    def round(self, number: int) -> list[ShownImage]:
        """Return the rows of a round. Raises InputError if there is none."""
        rows = [row for row in self.shown if row.round == number]
        if not rows:
            raise InputError(f"no round {number}: there are 0 to {self.last}")
        return rows

    def before(self, number: int) -> "Session":
        """Return the session with only the rounds before `number`."""
        return replace(self, shown=[row for row in self.shown if row.round < number])

    def caption(self, number: int) -> str:
        """Return a description of a round."""
        rows = self.round(number)
        if not number:
            return f"round 0: {self.filters}"
        marks = len(self.before(number).marks())
        count = f"{marks} mark{'' if marks == 1 else 's'}"
        return f"round {number}, by {rows[0].by} from {count}: {self.filters}"

    def marks(self) -> dict[str, float]:
        """Return the newest mark of each image, by image_id, in the order of marking."""
        return {row.image_id: row.mark for row in self.shown if row.mark is not None}

    def with_marks(self, number: int, marks: Mapping[int, float]) -> "Session":
        """Return the session with marks on a round, by rank, and without later rounds.

        They replace the marks of the round.

        Raises InputError for a rank that the round lacks, and if no image is marked.
        """
        rows = self.round(number)
        unknown = sorted(set(marks) - {row.rank for row in rows})
        if unknown:
            raise InputError(f"no rank {unknown[0]} in round {number}: there are 1 to {len(rows)}")
        if not marks:
            raise InputError("mark at least one image")
        new = [replace(row, mark=marks.get(row.rank)) for row in rows]
        return replace(self, shown=[*self.before(number).shown, *new])


def write(session: Session, uri: str) -> None:
    """Write a session to a file, local or s3://; replaces one there. Raises StorageError."""
    rows = pa.Table.from_pylist([asdict(row) for row in session.shown], ROUNDS)
    metadata = {KEY: json.dumps(_to_metadata(session)).encode()}
    out = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(metadata), out, compression="zstd")
    storage.write_bytes(uri, out.getvalue())


def read(uri: str) -> Session:
    """Read a session from its file. Raises InputError."""
    try:
        table = read_parquet(storage.read_bytes(uri, _BYTES))
        metadata = parse_json((table.schema.metadata or {})[KEY], _BYTES)
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise InputError(f"{uri} is of another version of segrec_batch")
        check_metadata(metadata)
        return _to_session(metadata, _parse_rounds(table))
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{uri} is no session of `segrec feedback`: {error}") from error


def _parse_rounds(table: pa.Table) -> list[ShownImage]:
    """Return the rows of an untrusted session. Raises ValueError."""
    if not table.schema.equals(ROUNDS):
        raise ValueError("it has other columns")
    rows = [ShownImage(**row) for row in table.to_pylist()]
    if not rows or {row.round for row in rows} != set(range(max(r.round for r in rows) + 1)):
        raise ValueError("its rounds are not numbered from 0")
    for row in rows:
        if row.by not in ("query", *WAYS) or row.rank < 1:
            raise ValueError(f"round {row.round} is ranked by {shorten(row.by)}")
        if row.mark not in (None, *MARKS) or not math.isfinite(row.score or 0):
            raise ValueError(f"mark {row.mark} or score {row.score} of round {row.round}")
    return rows


def _to_metadata(session: Session) -> dict[str, Any]:
    query = session.query
    return {
        "format": FORMAT,
        "index": session.index,
        "version": session.version,
        "model_id": session.model_id,
        "query": {"image_id": query} if isinstance(query, str) else _describe_new_image(query),
        "filters": {k: v for k, v in asdict(session.filters).items() if k != "expand"},
        "weights": asdict(session.weights),
        "keep_marked": session.keep_marked,
    }


def _describe_new_image(image: QueryImage) -> dict[str, Any]:
    """Return name, class map and arguments of a new image, not the image itself."""
    card = image.card
    return {
        "uri": card.uri,
        "mask": base64.b64encode(card.mask).decode(),
        "coverage": dict(card.coverage),
        "arguments": dict(image.arguments),
    }


def _to_session(metadata: Mapping[str, Any], rows: Sequence[ShownImage]) -> Session:
    query = metadata["query"]
    index = metadata["index"]
    scheme, separator, _ = index.partition("://")
    if separator and "/" not in scheme and scheme not in _SCHEMES:
        raise ValueError(f"index {shorten(index)} is neither a folder nor in s3://")
    if "image_id" in query:
        image: str | QueryImage = query["image_id"]
    else:
        mask = base64.b64decode(query["mask"], validate=True)
        if "query" not in query["arguments"]:
            raise ValueError("query.arguments: there is no vector")
        card = Card(query["uri"], None, mask, query["coverage"], None)
        image = QueryImage(card, None, query["arguments"])
    filters = {**metadata["filters"], "coverage": tuple(metadata["filters"]["coverage"])}
    return Session(
        index=index,
        version=metadata["version"],
        model_id=metadata["model_id"],
        query=image,
        filters=Filters(**filters),
        weights=Weights(**metadata["weights"]),
        keep_marked=metadata["keep_marked"],
        shown=rows,
    )


def mark_text(mark: float | None) -> str:
    """Return a mark in words.

    >>> [mark_text(mark) for mark in (1.0, 0.5, 0.0, None)]
    ['relevant', 'somewhat', 'not', '']
    """
    if mark is None:
        return ""
    return "relevant" if mark == RELEVANT else "somewhat" if mark else "not"
