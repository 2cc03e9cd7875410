"""Tests of untrusted feedback sessions and reports."""

import io
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segrec_batch.common.errors import InputError, SegrecError
from segrec_batch.evaluation.compare.reports import Settings, read_reports
from segrec_batch.evaluation.report import read_counts, read_metrics
from segrec_batch.search.feedback.refine import Weights
from segrec_batch.search.feedback.session import KEY, ROUNDS, Session, ShownImage, read, write
from segrec_batch.search.filters import Filters
from segrec_batch.search.recommend import QueryImage
from segrec_batch.sheets.card import Card
from tests.support.mutations import changed_bytes, mutated
from tests.support.reports import REPORT

SEEN = {"query": [0.5, -1], "coverages": [1, 0], "masks": {"car": [1, -1]}, "category": None}
NEW = QueryImage(Card("new.jpg", None, b"png", {"car": 1.0}, None), None, SEEN)
ROWS = [
    ShownImage(0, "query", 1, "a" * 32, "/images/a.jpg", 0.5, 1.0),
    ShownImage(1, "svm", 1, "b" * 32, "/images/b.jpg", None, None),
]


def _session(query: str | QueryImage) -> Session:
    return Session("/index", 3, "0" * 16, query, Filters("car"), Weights(), False, ROWS)


def _file(about: bytes, rows: pa.Table | None = None) -> bytes:
    table = pa.Table.from_pylist([vars(r) for r in ROWS], ROUNDS) if rows is None else rows
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({KEY: about}), out)
    return out.getvalue()


@pytest.fixture
def about(tmp_path: Path) -> dict[str, Any]:
    write(_session(NEW), str(tmp_path / "session"))
    metadata = pq.read_schema(tmp_path / "session").metadata[KEY]
    result: dict[str, Any] = json.loads(metadata)
    return result


@pytest.mark.parametrize("query", ["a" * 32, NEW])
def test_session_round_trip(query: str | QueryImage, tmp_path: Path) -> None:
    write(_session(query), str(tmp_path / "session"))
    assert read(str(tmp_path / "session")) == _session(query)


FORGED: dict[str, dict[str, Any]] = {
    "an argument of SQL": {
        "query": {"arguments": {"x := 1), (FROM read_text('/etc/passwd')) --": 1}}
    },
    "a class that is SQL": {"filters": {"cls": "'; --"}},
    "a method that is SQL": {"filters": {"method": "pca'; --"}},
    "a metric that is SQL": {"filters": {"method": "pca-'; --"}},
    "a scope": {"filters": {"scope": "everything"}},
    "an order": {"filters": {"rerank": "random()"}},
    "a count of 0": {"filters": {"k": 0}},
    "a count with a fraction": {"filters": {"k": 1.0}},
    "a window of three": {"filters": {"coverage": [0, 1, 1]}},
    "a weight below 0": {"weights": {"alpha": -1}},
    "another field": {"weights": {"delta": 1}},
    "an index of the web": {"index": "http://127.0.0.1:1/index"},
    "an index behind a chain": {"index": "simplecache::s3://bucket/index"},
    "no index": {"index": ""},
    "a version below 0": {"version": -1},
    "a model that is a path": {"model_id": "../../x"},
    "a mask that is none": {"query": {"mask": "*"}},
    "a share above 1": {"query": {"coverage": {"car": 1.5}}},
    "a mask of a class that is SQL": {"query": {"arguments": {"masks": {"'": [1]}}}},
    "a mask of words": {"query": {"arguments": {"masks": {"car": ["x"]}}}},
}


def merged(value: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    result = dict(value)
    for key, new in change.items():
        old = result.get(key)
        result[key] = merged(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return result


@pytest.mark.parametrize("what", FORGED)
def test_session_forged_is_refused(what: str, about: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "forged"
    path.write_bytes(_file(json.dumps(about).encode()))
    assert read(str(path)).version == 3
    path.write_bytes(_file(json.dumps(merged(about, FORGED[what])).encode()))
    with pytest.raises(InputError, match="is no session") as caught:
        read(str(path))
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"round": 2}, {"round": -1}, {"by": "random()"}, {"rank": 0}, {"mark": 0.3},
        {"mark": float("nan")}, {"score": float("inf")},
    ],
)  # fmt: skip
def test_session_impossible_rounds_are_refused(
    change: dict[str, Any], about: dict[str, Any], tmp_path: Path
) -> None:
    rows = [vars(ROWS[0]), vars(replace(ROWS[1], **change))]
    path = tmp_path / "forged"
    path.write_bytes(_file(json.dumps(about).encode(), pa.Table.from_pylist(rows, ROUNDS)))
    with pytest.raises(InputError, match="is no session"):
        read(str(path))


def test_session_without_rounds_is_refused(about: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "forged"
    for rows in (ROUNDS.empty_table(), pa.table({"round": [0]})):
        path.write_bytes(_file(json.dumps(about).encode(), rows))
        with pytest.raises(InputError, match="is no session"):
            read(str(path))


@given(data=st.data())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_session_any_bytes_are_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any session"
    if data.draw(st.booleans()):
        write(_session(NEW), str(path))
        about = pq.read_schema(path).metadata[KEY]
        path.write_bytes(_file(data.draw(mutated(about))))
    else:
        path.write_bytes(data.draw(changed_bytes(_file(b"{}"))))
    try:
        session = read(str(path))
    except SegrecError:
        return
    if isinstance(session.query, QueryImage):
        assert set(session.query.arguments) == set(SEEN)


def test_the_report_of_these_tests_is_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(REPORT))
    assert read_metrics(str(tmp_path)) == REPORT


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": NaN}', '{"format": 1e999}', "\x00"])
def test_figures_that_are_no_data_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.json: not the metrics"):
        read_metrics(str(tmp_path))


@given(data=st.data())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_any_figures_are_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data.draw(mutated(json.dumps(REPORT).encode())))
    with suppress(SegrecError):
        read_metrics(str(path))


def _judge(counts: pa.Table) -> list[Any]:
    from segrec_batch.evaluation.retrieval.measures import evaluate

    return evaluate(counts)


@pytest.mark.parametrize(
    "counts",
    [pa.table({"a": [1]}), pa.table({"split": [None], "method": [1]}), ROUNDS.empty_table()],
)
def test_counts_of_another_kind_are_refused(counts: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(REPORT))
    pq.write_table(counts, tmp_path / "counts.parquet")
    assert read_counts(str(tmp_path)) is not None
    with pytest.raises(InputError, match=r"counts\.parquet: not the counts of a"):
        read_reports(Settings([str(tmp_path)] * 2), {"retrieval": _judge})


def test_session_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "session")
    with pytest.raises(InputError, match="not a regular file"):
        read(str(tmp_path / "session"))
    with pytest.raises(InputError, match="not a regular file"):
        read("/dev/zero")
