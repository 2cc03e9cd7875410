"""Tests of relevance feedback: the refined query, sessions, SQL, the command."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.svm import SVC

from segrec_batch.cli import main as cli
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.search.database import open_index
from segrec_batch.search.feedback.refine import (
    NOT_RELEVANT,
    RELEVANT,
    ROCCHIO,
    SOMEWHAT,
    SVM,
    WAYS,
    Weights,
    load_vectors,
    rocchio,
    svm,
)
from segrec_batch.search.feedback.rounds import mark, replay, resume, start
from segrec_batch.search.feedback.session import Session, read, write
from segrec_batch.search.filters import METRICS, Filters, Method
from segrec_batch.search.recommend import QueryImage, Recommender
from segrec_batch.sheets.card import Card
from segrec_batch.sources import storage
from tests.support.builders import quick
from tests.support.feature_index import add_images, write_index

Floats = NDArray[np.float64]
N, WIDTH = 60, 16
numbers = st.floats(-100, 100, allow_subnormal=False)
marks_of = st.lists(st.sampled_from([RELEVANT, SOMEWHAT, NOT_RELEVANT]), max_size=6)


def features(seed: int = 0) -> NDArray[np.float32]:
    """Four kinds of images, (N, WIDTH)."""
    rng = np.random.default_rng(seed)
    kinds = rng.random((4, WIDTH))
    return (kinds[rng.integers(4, size=N)] + 0.6 * rng.random((N, WIDTH))).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images 2i and 2i + 1 have the same bytes, the last is constant; then all come once more."""
    index = str(tmp_path_factory.mktemp("feedback") / "index")
    vectors = features()
    vectors[-1] = 0.5
    share = np.random.default_rng(1).random(N).astype(np.float32)
    base = write_index(index, vectors, share, [f"{i // 2:032x}" for i in range(N)])
    add_images(base, features())
    return index


@pytest.fixture
def recommender(place: str) -> Iterator[Recommender]:
    database = open_index(place, 1)
    with database.connection:
        yield Recommender(database)


def named(recommender: Recommender) -> list[str]:
    """All image_ids, by URI."""
    sql = "SELECT image_id FROM images ORDER BY uri"
    return [name for (name,) in recommender.database.connection.sql(sql).fetchall()]


# --- the refined query -------------------------------------------------------------------------


def literal_rocchio(q: Floats, marked: Floats, marks: list[float], w: Weights) -> list[float]:
    """Rocchio 1971, a term at a time."""
    good = [(m, x) for m, x in zip(marks, marked.tolist(), strict=True) if m > 0]
    bad = [x for m, x in zip(marks, marked.tolist(), strict=True) if m == 0]
    share = w.alpha + sum(w.beta * m / len(good) for m, _ in good) - (w.gamma if bad else 0)
    result = []
    for i, value in enumerate(q.tolist()):
        terms = [w.alpha * value, *(w.beta / len(good) * m * x[i] for m, x in good)]
        terms += [-w.gamma / len(bad) * x[i] for x in bad]
        result.append(math.fsum(terms) / share)
    return result


@quick
@given(st.integers(0, 10**6), marks_of)
def test_rocchio_equals_formula(seed: int, marks: list[float]) -> None:
    rng = np.random.default_rng(seed)
    q, marked = rng.normal(size=5), rng.normal(size=(len(marks), 5))
    weights = Weights(*rng.uniform((0.5, 0, 0), (2, 2, 0.4)))
    result = rocchio(q, marked, np.array(marks), weights)
    assert result.tolist() == pytest.approx(literal_rocchio(q, marked, marks, weights))


@quick
@given(arrays(np.float64, 7, elements=numbers))
def test_rocchio_without_marks_is_query(q: Floats) -> None:
    result = rocchio(q, np.empty((0, 7)), np.empty(0), Weights())
    assert np.array_equal(result, q)


@quick
@given(st.integers(0, 10**6), st.sampled_from([RELEVANT, SOMEWHAT]), st.booleans())
def test_rocchio_of_one_image_pulls_towards_it(seed: int, value: float, twice: bool) -> None:
    """The refined query stays on the line from the query to the image, nearer than the query."""
    q, x = np.random.default_rng(seed).normal(size=(2, 6))
    marked = np.stack([x] * (1 + twice))
    result = rocchio(q, marked, np.full(1 + twice, value), Weights())
    pull = 0.75 * value / (1 + 0.75 * value)
    assert result == pytest.approx(q + pull * (x - q))
    away = rocchio(q, marked, np.zeros(1 + twice), Weights())
    assert away == pytest.approx(q - 0.15 / 0.85 * (x - q))


def test_svm_equals_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    q, marked = rng.normal(size=4), 3 * rng.normal(size=(9, 4))
    marks = np.array([1, 0.5, 0, 0, 1, 0, 0.5, 0, 0])
    result = svm(q, marked, marks, Weights(c=2.0))
    rows = np.vstack([q, marked])
    length = np.sqrt((rows**2).sum(axis=1).mean())
    fitted = SVC(kernel="linear", C=2.0)
    fitted.fit(
        rows / length,
        [1, 1, 1, -1, -1, 1, -1, 1, -1, -1],
        sample_weight=[1, 1, 0.5, 1, 1, 1, 1, 0.5, 1, 1],
    )
    others = rng.normal(size=(50, 4))
    order = np.argsort(others @ result)
    assert order.tolist() == np.argsort(fitted.decision_function(others / length)).tolist()
    assert np.linalg.norm(result) == pytest.approx(length)


def test_refined_errors() -> None:
    q, marked = np.ones(2), np.array([[1.0, 1.0], [1.0, 1.0]])
    for marks in ([1, 0.5], [0, 0]):
        with pytest.raises(InputError, match="needs a relevant image and one that is not"):
            svm(q, marked, np.array(marks), Weights())
    with pytest.raises(InputError, match="cannot tell the marked images apart"):
        svm(q, marked, np.array([1, 0]), Weights())
    with pytest.raises(InputError, match="give a smaller gamma"):
        rocchio(q, marked, np.zeros(2), Weights(gamma=1))
    for wrong in (Weights(alpha=-1), Weights(c=0), Weights(gamma=math.nan)):
        with pytest.raises(InputError, match="0 or more"):
            wrong.check()


# --- vectors of a method -----------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_prepare_score_of_mean_is_mean_of_scores(metric: str) -> None:
    """Up to a factor and a constant, so that both rank alike."""
    x, one, other = (METRICS[metric].prepare(features(seed)) for seed in (0, 1, 2))

    def scores(y: Floats) -> Floats:
        if metric == "euclidean":
            return np.asarray(-np.square(x - y).sum(axis=1))
        return np.asarray(x @ y)

    mean = (scores(one[0]) + scores(other[0])) / 2
    assert np.argsort(scores((one[0] + other[0]) / 2)).tolist() == np.argsort(mean).tolist()


def test_prepare_undefined_vectors_are_nan() -> None:
    rows = np.array([[1, 1, 1], [0, 0, 0], [1, 2, 4], [1, np.nan, 2]], np.float32)
    undefined = {m: np.isnan(METRICS[m].prepare(rows)).all(axis=1).tolist() for m in METRICS}
    assert undefined == {
        "pearson": [True, True, False, True],
        "cosine": [False, True, False, True],
        "euclidean": [False, False, False, True],
        "dot": [False, False, False, True],
    }


def test_vectors_of_each_method(recommender: Recommender) -> None:
    ids = [named(recommender)[i] for i in (7, 3)]
    result = load_vectors(recommender.database, Method.of("pearson"), None, [*ids, "nobody"])
    assert np.array_equal(result[:2], features()[[7, 3]])
    assert np.isnan(result[2]).all()
    cars = load_vectors(recommender.database, Method.of("pearson"), "car", ids)
    assert np.array_equal(cars, features()[[7, 3], ::-1])


# --- sessions ----------------------------------------------------------------------------------


def begun(recommender: Recommender, filters: Filters, **options: Any) -> Session:
    query = recommender.find_image("image_id", named(recommender)[4])
    return start(recommender, query, filters, **options)


MARKS = {1: RELEVANT, 2: NOT_RELEVANT, 4: SOMEWHAT}
CRITERIA = [
    Filters(k=6),
    Filters(k=6, cls="car", coverage=(0.1, 0.9)),
    Filters(k=6, cls="car", scope="image", distinct_content=False),
    Filters(k=6, epsilon=0.6, penalise=True, rerank="mask_iou", depth=9),
]


def literal_next(filters: Filters, session: Session, ids: list[str], way: str) -> list[int]:
    """Images in the order of the next round, from raw features; for whole images or all regions."""
    raw = features()[:, ::-1] if filters.is_regional else features()
    with np.errstate(invalid="ignore"):
        unit = raw.astype(np.float64) - raw.mean(axis=1, dtype=np.float64, keepdims=True)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    marks = session.marks()
    marked = [ids.index(name) for name in marks]
    refine = svm if way == SVM else rocchio
    q = refine(unit[4], unit[marked], np.array(list(marks.values())), session.weights)
    hidden = {i // 2 for i in (4, *marked)} if filters.distinct_content else {4, *marked}
    order, seen = [], set()
    for i in sorted(range(N - 1), key=lambda i: (-round(unit[i] @ q, 12), ids[i])):
        content = i // 2 if filters.distinct_content else i
        if content not in hidden and content not in seen:
            seen.add(content)
            order.append(i)
    return order


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("filters", [CRITERIA[0], replace(CRITERIA[2], coverage=(0, 1))])
def test_next_round_ranks_by_refined_query(
    recommender: Recommender, filters: Filters, way: str
) -> None:
    ids = named(recommender)
    session = begun(recommender, filters)
    for number in (1, 2):
        session = mark(recommender, session, MARKS, way)
        expected = literal_next(filters, session.before(number), ids, way)[:6]
        assert [ids.index(row.image_id) for row in session.round(number)] == expected
    assert not {r.image_id for r in session.round(2)} & set(session.before(2).marks())


def test_keep_marked_shows_marked_images(recommender: Recommender) -> None:
    session = begun(recommender, CRITERIA[0], keep_marked=True)
    best = session.round(0)[0].image_id
    session = mark(recommender, session, {1: RELEVANT})
    assert session.round(1)[0].image_id == best
    again = mark(recommender, session, {1: NOT_RELEVANT, 2: RELEVANT}, SVM)
    assert again.marks()[best] == NOT_RELEVANT


@pytest.mark.parametrize("filters", CRITERIA[1::2], ids=str)
def test_session_resumes_and_replays(
    place: str, recommender: Recommender, filters: Filters, tmp_path: Path
) -> None:
    uri = str(tmp_path / "session.parquet")
    session = begun(recommender, filters, weights=Weights(beta=1))
    for way in WAYS:
        session = mark(recommender, session, MARKS, way)
    write(session, uri)
    again = read(uri)
    assert again == session
    with (fresh := resume(again)).database.connection:
        assert fresh.database.version == 1
        assert [(r.round, r.by, r.differ) for r in replay(fresh, again)] == [
            (0, "query", 0),
            (1, ROCCHIO, 0),
            (2, SVM, 0),
        ]
        assert mark(fresh, again, {2: RELEVANT}) == mark(recommender, session, {2: RELEVANT})
    rows = duckdb.sql(f"SELECT round, mark FROM '{uri}' WHERE mark IS NOT NULL").fetchall()
    assert rows == [(n, value) for n in (0, 1) for value in MARKS.values()]
    newer = open_index(place)
    with newer.connection:
        assert any(r.differ for r in replay(Recommender(newer), again))


def test_session_write_crash_leaves_old_rounds(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "session.parquet")
    session = begun(recommender, CRITERIA[0])
    write(session, uri)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            write(mark(recommender, session, MARKS), uri)
    assert read(uri) == session
    assert [path.name for path in tmp_path.iterdir()] == ["session.parquet"]


def test_mark_goes_back_to_round(recommender: Recommender) -> None:
    session = begun(recommender, CRITERIA[0])
    long = mark(recommender, mark(recommender, session, MARKS), {1: RELEVANT})
    back = mark(recommender, long, {3: RELEVANT}, number=0)
    assert back == mark(recommender, session, {3: RELEVANT})


def test_session_of_new_image(recommender: Recommender, tmp_path: Path) -> None:
    seen = {"query": features()[4].tolist(), "coverages": [0.0, 1.0, 0.0], "masks": {}}
    query = QueryImage(Card("/no\udcffwhere.jpg", None, b"\x00png", {"car": 1.0}, None), None, seen)
    session = mark(recommender, start(recommender, query, Filters(k=4)), {2: RELEVANT})
    assert session.round(0)[0].image_id == named(recommender)[4]
    uri = str(tmp_path / "session.parquet")
    write(session, uri)
    assert read(uri) == session
    assert not any(r.differ for r in replay(recommender, read(uri)))


def test_mark_without_vector_only_hides(recommender: Recommender) -> None:
    session = begun(recommender, Filters(k=N, distinct_content=False))
    last = session.round(0)[-1]
    assert (last.image_id, last.score) == (named(recommender)[-1], None)
    plain = mark(recommender, session, {1: RELEVANT}).round(1)
    both = mark(recommender, session, {1: RELEVANT, last.rank: NOT_RELEVANT}).round(1)
    assert [r.image_id for r in both] == [r.image_id for r in plain][:-1]


def test_mark_errors(recommender: Recommender, tmp_path: Path) -> None:
    session = begun(recommender, Filters(k=3))
    for marks, number, message in (
        ({4: RELEVANT}, None, "no rank 4 in round 0: there are 1 to 3"),
        ({}, None, "mark at least one"),
        ({1: RELEVANT}, 2, "no round 2: there are 0 to 0"),
    ):
        with pytest.raises(InputError, match=message):
            mark(recommender, session, marks, number=number)
    constant = recommender.find_image("image_id", named(recommender)[-1])
    with pytest.raises(InputError, match="Pearson correlation is not defined for it"):
        mark(recommender, start(recommender, constant, Filters(k=3)), {1: RELEVANT})
    everybody = begun(recommender, Filters(k=N))
    with pytest.raises(InputError, match="nothing to show in round 1"):
        mark(recommender, everybody, {row.rank: RELEVANT for row in everybody.shown})
    with pytest.raises(IndexStateError, match=r"of model 0+1, the session of other"):
        resume(replace(session, model_id="other"))
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(InputError, match="is no session"):
        read(str(tmp_path / "page.html"))


# --- SQL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filters",
    [*CRITERIA, Filters(k=6, method="cosine"), Filters(k=6, method="euclidean")],
    ids=str,
)
def test_recommend_again_equals_mark(recommender: Recommender, filters: Filters) -> None:
    session = mark(recommender, begun(recommender, filters), MARKS)
    by_mark = {v: [n for n, m in session.marks().items() if m == v] for v in MARKS.values()}
    low, high = filters.coverage
    values = {
        "query": session.query,
        "relevant": by_mark[RELEVANT],
        "somewhat": by_mark[SOMEWHAT],
        "not_relevant": by_mark[NOT_RELEVANT],
        "k": 6,
        "class": filters.cls,
        "min_coverage": low,
        "max_coverage": high,
        **{name: getattr(filters, name) for name in ("epsilon", "penalise", "rerank", "depth")},
        "scope": filters.scope,
        "distinct_content": filters.distinct_content,
        "method": filters.method,
    }
    named = ", ".join(f"{name} := ${name}" for name in values if name != "query")
    sql = f"SELECT rank, image_id, score FROM recommend_again($query, {named}) ORDER BY rank"
    rows = recommender.database.connection.execute(sql, values).fetchall()
    expected = [(r.rank, r.image_id) for r in session.round(1)]
    assert [row[:2] for row in rows] == expected
    assert [row[2] for row in rows] == pytest.approx([r.score for r in session.round(1)], abs=1e-6)


def test_sql_rocchio_equals_python(recommender: Recommender) -> None:
    rng = np.random.default_rng(2)
    q, marked = rng.normal(size=3), rng.normal(size=(5, 3))
    connection = recommender.database.connection
    for ends in ((2, 3), (0, 5), (5, 5), (0, 1), (1, 1), (0, 0)):
        good, fair, bad = (part.tolist() for part in np.split(marked, ends))
        marks = np.repeat([RELEVANT, SOMEWHAT, NOT_RELEVANT], [len(good), len(fair), len(bad)])
        sql = "SELECT rocchio($q, $good, $fair, $bad, alpha := 2, gamma := 0.3)"
        given = {"q": q.tolist(), "good": good, "fair": fair, "bad": bad}
        ((result,),) = connection.execute(sql, given).fetchall()
        assert result == pytest.approx(rocchio(q, marked, marks, Weights(alpha=2, gamma=0.3)))
    with pytest.raises(duckdb.Error, match="give a smaller gamma"):
        connection.execute("SELECT rocchio([1], [], [], [[2]], gamma := 1)").fetchall()


# --- the command -------------------------------------------------------------------------------


def test_feedback_command(index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a new image, which is one of the index, so that round 0 finds it first."""
    database = open_index(index)
    ((uri,),) = database.connection.sql("SELECT min(uri) FROM images").fetchall()
    database.connection.close()
    kept = ["--session", str(tmp_path / "session.parquet")]

    def run(*arguments: str, code: int = 0) -> str:
        assert cli.main(["feedback", arguments[0], *kept, *arguments[1:]]) == code
        out = capsys.readouterr()
        return out.out if code == 0 else out.err

    begin = ("start", "--index", index, "--image", uri, "-k", "4")
    assert "round 0: whole images" in run(*begin)
    assert "exists: continue it with mark" in run(*begin, code=1)
    assert "needs a relevant image" in run("mark", "--relevant", "1", "--by", "svm", code=1)
    assert "a rank is named twice" in run("mark", "--relevant", "1", "--not", "1", code=1)
    table = run("mark", "--relevant", "1", "2", "--somewhat", "3", "--not", "4")
    assert "round 1, by rocchio from 4 marks: whole images" in table
    assert "by svm from 6 marks" in run("mark", "--relevant", "2", "--not", "1", "--by", "svm")
    first = json.loads(run("show", "--round", "0", "--format", "json"))
    assert [row["mark"] for row in first] == [1, 1, 0.5, 0]
    assert storage.name(first[0]["uri"]) == storage.name(uri)
    assert "round 2, by svm" in run("show")
    page = tmp_path / "sheet.html"
    run("show", "--format", "html", "--output", str(page))
    assert page.read_text().count("data:image/jpeg") == 5
    assert " 0\n" in run("replay")
    session = read(kept[1])
    other = [replace(row, rank=5 - row.rank) for row in session.round(2)]
    write(replace(session, shown=[*session.before(2).shown, *other[::-1]]), kept[1])
    assert "round 2 is not what it was" in run("replay", code=1)
    assert "round 0" in run(*begin, "--overwrite")
    Path(kept[1]).write_bytes(b"someone's file")
    run(*begin, "--overwrite", code=1)
    assert Path(kept[1]).read_bytes() == b"someone's file"
