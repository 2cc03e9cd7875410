"""A session: what was asked, shown and marked, round by round, in one Parquet file.

The file is written whole or not at all, so it always holds complete rounds; whoever opens it can
go on. DuckDB reads it as any Parquet file. What identifies the session is JSON in its metadata.
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
from segrec_batch.search.feedback.about import check_about
from segrec_batch.search.feedback.refine import MARKS, RELEVANT, STANDARD, WAYS, Weights
from segrec_batch.search.filters import Filters
from segrec_batch.search.recommend import QueryImage
from segrec_batch.sheets.card import Card
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import parse_json, shorten

FORMAT = 1
KEY = b"segrec_batch.search.feedback"
_BYTES = 2**28  # of a file
_SCHEMES = ("file", "s3", "s3a")  # of the index that a session names

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
"""One row per image shown in a round. round: from 0, the answer without feedback. by: query,
rocchio or svm, how the round was ranked. mark: 1 relevant, 0.5 somewhat, 0 not, NULL not marked."""


@dataclass(frozen=True)
class Shown:
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
    """index: or a query cache; version, model_id: the snapshot that all rounds ask. query: the
    image_id of an indexed one, or what was seen in a new image. keep_marked: whether marked
    images are shown again. shown: all rounds, in order.
    """

    index: str
    version: int
    model_id: str
    query: str | QueryImage
    filters: Filters
    weights: Weights = STANDARD
    keep_marked: bool = False
    shown: Sequence[Shown] = ()

    @property
    def last(self) -> int:
        """The number of the newest round."""
        return max(row.round for row in self.shown)

    def rounds(self) -> Iterator[tuple[int, list[Shown]]]:
        """All rounds, each with its rows."""
        for number in range(self.last + 1):
            yield number, self.round(number)

    def round(self, number: int) -> list[Shown]:
        """The rows of one round. Raises InputError if there is none."""
        rows = [row for row in self.shown if row.round == number]
        if not rows:
            raise InputError(f"no round {number}: there are 0 to {self.last}")
        return rows

    def before(self, number: int) -> "Session":
        """As it was before a round was shown."""
        return replace(self, shown=[row for row in self.shown if row.round < number])

    def caption(self, number: int) -> str:
        """A round in words."""
        rows = self.round(number)
        if not number:
            return f"round 0: {self.filters}"
        marks = len(self.before(number).marks())
        given = f"{marks} mark{'' if marks == 1 else 's'}"
        return f"round {number}, by {rows[0].by} from {given}: {self.filters}"

    def marks(self) -> dict[str, float]:
        """image_id to mark, in the order of marking; of an image marked twice the newest."""
        return {row.image_id: row.mark for row in self.shown if row.mark is not None}

    def marked(self, number: int, marks: Mapping[int, float]) -> "Session":
        """With marks on a round, by rank, in place of those that it had, and no later rounds.

        Raises InputError for a rank that was not shown, and where nothing is marked.
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
    """Put a session into a file, local or s3://, in place of what is there. Raises StorageError."""
    rows = pa.Table.from_pylist([asdict(row) for row in session.shown], ROUNDS)
    about = {KEY: json.dumps(_about(session)).encode()}
    out = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(about), out, compression="zstd")
    storage.write_bytes(uri, out.getvalue())


def read(uri: str) -> Session:
    """A session from its file. Raises InputError."""
    try:
        table = read_parquet(storage.read_bytes(uri, _BYTES))
        about = parse_json((table.schema.metadata or {})[KEY], _BYTES)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise InputError(f"{uri} is of another version of segrec_batch")
        check_about(about)
        return _session(about, _parse_rounds(table))
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{uri} is no session of `segrec feedback`: {error}") from error


def _parse_rounds(table: pa.Table) -> list[Shown]:
    """The rows of a session that somebody else may have made. Raises ValueError."""
    if not table.schema.equals(ROUNDS):
        raise ValueError("its columns are others")
    rows = [Shown(**row) for row in table.to_pylist()]
    if not rows or {row.round for row in rows} != set(range(max(r.round for r in rows) + 1)):
        raise ValueError("its rounds are not numbered from 0")
    for row in rows:
        if row.by not in ("query", *WAYS) or row.rank < 1:
            raise ValueError(f"round {row.round} is ranked by {shorten(row.by)}")
        if row.mark not in (None, *MARKS) or not math.isfinite(row.score or 0):
            raise ValueError(f"mark {row.mark} or score {row.score} of round {row.round}")
    return rows


def _about(session: Session) -> dict[str, Any]:
    asked = session.query
    return {
        "format": FORMAT,
        "index": session.index,
        "version": session.version,
        "model_id": session.model_id,
        "query": {"image_id": asked} if isinstance(asked, str) else _image(asked),
        "filters": asdict(session.filters),
        "weights": asdict(session.weights),
        "keep_marked": session.keep_marked,
    }


def _image(asked: QueryImage) -> dict[str, Any]:
    """A new image: its name and what the model saw in it, not the image itself."""
    card = asked.card
    return {
        "uri": card.uri,
        "mask": base64.b64encode(card.mask).decode(),
        "coverage": dict(card.coverage),
        "seen": dict(asked.seen),
    }


def _session(about: Mapping[str, Any], rows: Sequence[Shown]) -> Session:
    asked = about["query"]
    index = about["index"]
    scheme, separator, _ = index.partition("://")
    if separator and "/" not in scheme and scheme not in _SCHEMES:
        raise ValueError(f"index {shorten(index)} is neither a folder nor in s3://")
    if "image_id" in asked:
        found: str | QueryImage = asked["image_id"]
    else:
        mask = base64.b64decode(asked["mask"], validate=True)
        if "query" not in asked["seen"]:
            raise ValueError("query.seen: there is no vector")
        card = Card(asked["uri"], None, mask, asked["coverage"], None)
        found = QueryImage(card, None, asked["seen"])
    filters = {**about["filters"], "coverage": tuple(about["filters"]["coverage"])}
    return Session(
        index=index,
        version=about["version"],
        model_id=about["model_id"],
        query=found,
        filters=Filters(**filters),
        weights=Weights(**about["weights"]),
        keep_marked=about["keep_marked"],
        shown=rows,
    )


def said(mark: float | None) -> str:
    """A mark in words.

    >>> [said(mark) for mark in (1.0, 0.5, 0.0, None)]
    ['relevant', 'somewhat', 'not', '']
    """
    if mark is None:
        return ""
    return "relevant" if mark == RELEVANT else "somewhat" if mark else "not"
