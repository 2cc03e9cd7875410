"""Tests of `segrec recommend` against SQL and brute force."""

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

import segrec_batch
from segrec_batch.common.errors import DeviceError, InputError
from segrec_batch.index.column_values import image_id
from segrec_batch.index.snapshot import open_snapshot
from segrec_batch.search.batch.choice import RECOMMENDATIONS, Choice
from segrec_batch.search.batch.job import Execution, recommend_all
from segrec_batch.search.batch.selection import Request
from segrec_batch.search.filters import Filters
from segrec_batch.sources import storage
from tests.support.commands import exit_code
from tests.support.feature_index import add_images, names, write_index
from tests.support.job_server import JobServer
from tests.support.s3 import new_bucket

ROOT = Path(__file__).parents[2]
CPU = Execution("cpu", 2**17)  # so little that there are several blocks of candidates
COUNT = 300
Answers = dict[str, list[tuple[str, float]]]

pytestmark = pytest.mark.usefixtures("ray_cluster")


def features() -> NDArray[np.float32]:
    """Clusters, equal and nearly equal vectors, constant ones."""
    rng = np.random.default_rng(3)
    result = rng.gamma(0.5, size=(6, 48))[rng.integers(0, 6, COUNT)] + 0.4 * rng.random((COUNT, 48))
    result[20:90] = result[20]
    result[90:100] = result[21] + 1e-7 * rng.random((10, 48))
    result[[7, 8]] = 0.3
    return result.astype(np.float32)


def contents() -> list[str]:
    """Copies: one image 50 times, of one vector; pairs whose vectors differ."""
    result = [f"{i:032x}" for i in range(COUNT)]
    result[20:70] = [result[20]] * 50
    for i in range(100, 120):
        result[i] = result[i + 100]
    return result


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of such features; a seventh of the images has no car."""
    index = str(tmp_path_factory.mktemp("special") / "it's an index")
    coverage = np.random.default_rng(4).random(COUNT).astype(np.float32)
    coverage[::7] = 0
    write_index(index, features(), coverage, contents())
    return index


def run(
    index: str, output: Path, request: Request, choice: Choice, **options: Any
) -> dict[str, Any]:
    options = {"part_size": 64, "execution": CPU, **options}
    return recommend_all(index, request, choice, str(output), **options)


def read(output: Path) -> Answers:
    """The answers by query, in order."""
    sql = f"FROM read_parquet('{output}/*/*.parquet', hive_partitioning = true) ORDER BY ALL"
    result: Answers = {}
    for row in duckdb.sql(sql).to_arrow_table().to_pylist():
        assert row["rank"] == len(result.setdefault(row["query_id"], [])) + 1
        assert image_id(row["uri"]) == row["image_id"]
        assert image_id(row["query_uri"]) == row["query_id"]
        result[row["query_id"]].append((row["image_id"], row["pearson"]))
    return result


def by_sql(index: str, filters: Filters) -> Answers:
    """Return the results of `recommend` for each image, without those that have no Pearson."""
    connection = segrec_batch.connect(index)
    result = {}
    for (query,) in connection.sql("SELECT image_id FROM images").fetchall():
        sql = (
            "SELECT image_id, pearson FROM recommend(?, k := ?, class := ?, min_coverage := ?, "
            "max_coverage := ?, distinct_content := ?) WHERE pearson IS NOT NULL ORDER BY rank"
        )
        how = [filters.k, filters.cls, *filters.coverage, filters.distinct_content]
        if filters.expand:
            sql, how = sql.replace("k := ?", "expand := ?, k := ?"), [filters.expand, *how]
        rows = connection.execute(sql, [query, *how])
        if answer := rows.fetchall():
            result[query] = answer
    return result


SCOPES = [
    Filters(k=7), Filters("car", k=7), Filters("car", (0.3, 0.7), k=3), Filters(k=400),
]  # fmt: skip


ALL_COPIES = [replace(scope, distinct_content=False) for scope in (SCOPES[0], SCOPES[3])]


@pytest.mark.parametrize(
    "filters",
    [SCOPES[0], *(pytest.param(c, marks=pytest.mark.slow) for c in (*SCOPES[1:3], *ALL_COPIES))],
    ids=lambda c: f"{c}, {'each content once' if c.distinct_content else 'all'}",
)
def test_recommend_equals_sql_exactly(special: str, tmp_path: Path, filters: Filters) -> None:
    choice = Choice(filters.k, distinct=filters.distinct_content)
    counts = run(special, tmp_path, Request(filters), choice)
    expected = by_sql(special, filters)
    assert read(tmp_path) == expected
    assert counts["answered"] == len(expected)
    assert counts["recommendations"] == sum(map(len, expected.values()))


@pytest.mark.parametrize("filters", [Filters("tree", (0.05, 0.9), k=5), Filters(k=30)], ids=str)
def test_recommend_of_images_equals_sql(index: str, tmp_path: Path, filters: Filters) -> None:
    run(index, tmp_path, Request(filters), Choice(filters.k), part_size=5)
    assert read(tmp_path) == by_sql(index, filters)


@pytest.mark.parametrize(
    "filters",
    [
        Filters(k=30, expand=4),
        pytest.param(Filters("tree", (0.05, 0.9), k=5, expand=3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_expanded_recommendations_equal_sql(index: str, tmp_path: Path, filters: Filters) -> None:
    run(index, tmp_path, Request(filters), Choice(filters.k), part_size=5)
    actual, expected = read(tmp_path), by_sql(index, filters)
    assert actual.keys() == expected.keys()
    for query, rows in expected.items():
        assert [name for name, _ in actual[query]] == [name for name, _ in rows]
        scores = [score for _, score in rows]
        assert [score for _, score in actual[query]] == pytest.approx(scores, abs=1e-7)
    assert actual != by_sql(index, replace(filters, expand=None))


def test_expand_refuses_near_duplicates(index: str, tmp_path: Path) -> None:
    request = Request(Filters(k=3, expand=4))
    with pytest.raises(InputError, match="--near-duplicates compares with the query"):
        run(index, tmp_path, request, Choice(3, near_duplicates=0.9))
    with pytest.raises(InputError, match="expand is 0; add at least 1 result"):
        run(index, tmp_path, Request(Filters(k=3, expand=0)), Choice(3))


def distinct(index: str, ranked: Answers) -> Answers:
    rows = segrec_batch.connect(index).sql("SELECT image_id, content_hash FROM images").fetchall()
    content = dict(rows)
    kept: Answers = {}
    for query, answer in ranked.items():
        seen = {content[query]}
        for name, r in answer:
            if content[name] not in seen:
                seen.add(content[name])
                kept.setdefault(query, []).append((name, r))
    return kept


@pytest.mark.slow
def test_recommend_near_duplicates_and_diversity(special: str, tmp_path: Path) -> None:
    filters, limit, weight, pool = Filters(k=4), 0.9, 0.6, 9
    choice = Choice(4, near_duplicates=limit, diversity=weight, pool=pool)
    run(special, tmp_path, Request(filters), choice)
    ranked = by_sql(special, Filters(k=COUNT, distinct_content=False))
    r = {query: dict(answer) for query, answer in ranked.items()}
    expected: Answers = {}
    for query, answer in distinct(special, ranked).items():
        kept: list[str] = []
        for name, score in answer:
            if score < limit and all(r[name][other] < limit for other in kept):
                kept.append(name)
        left, chosen = kept[:pool], []
        while left and len(chosen) < 4:
            worst = [max((r[c][s] for s in chosen), default=0) for c in left]
            gain = [
                weight * r[query][c] - (1 - weight) * w for c, w in zip(left, worst, strict=True)
            ]
            chosen.append(left.pop(int(np.argmax(gain))))
        expected[query] = [(name, r[query][name]) for name in chosen]
    assert read(tmp_path) == expected


def unanswered(output: Path) -> dict[str, str]:
    rows = pq.read_table(output / "unanswered.parquet").to_pylist()
    return {row["query_id"]: row["reason"] for row in rows}


def test_recommend_counts_every_query(special: str, tmp_path: Path) -> None:
    uris = names(COUNT)
    queries = [image_id(uri) for uri in (*uris[:20], *uris[5:9], "/nowhere.jpg")]
    pq.write_table(
        pa.table({"x": range(26), "image_id": [*queries, None]}), tmp_path / "ids.parquet"
    )
    request = Request(Filters("car", k=3), str(tmp_path / "ids.parquet"))
    counts = run(special, tmp_path / "out", request, Choice(3))
    assert counts["queries"] == 21, "each image once"
    constant = "Pearson is undefined (a constant vector)"
    reasons = {
        image_id("/nowhere.jpg"): "not in the index",
        **{image_id(uris[i]): "no region of the class" for i in (0, 7, 14)},
        image_id(uris[8]): constant,
    }
    assert unanswered(tmp_path / "out") == reasons
    assert counts["unanswered"] == {"not in the index": 1, "no region of the class": 3, constant: 1}
    assert read(tmp_path / "out").keys() == set(queries) - set(reasons)


def test_recommend_empty_window_is_a_reason(special: str, tmp_path: Path) -> None:
    sql = f"SELECT '{image_id(names(2)[1])}' AS image_id;"
    request = Request(Filters("car", (0.5, 0.5)), sql)
    counts = run(special, tmp_path, request, Choice(3))
    assert counts["unanswered"] == {"no candidate is left": 1}
    assert list(unanswered(tmp_path).values()) == ["no candidate is left"]
    assert read(tmp_path) == {}


def test_recommend_schema(special: str, tmp_path: Path) -> None:
    run(special, tmp_path, Request(Filters("car", k=1), "FROM images LIMIT 70"), Choice(1))
    parts = sorted((tmp_path / "class=car").iterdir())
    assert [p.name for p in parts] == ["part-000000.parquet"]
    assert pq.read_schema(parts[0]).equals(RECOMMENDATIONS)
    assert pq.read_table(parts[0], partitioning=None)["coverage"].null_count == 0
    other = tmp_path / "images"
    run(special, other, Request(Filters(k=1), "FROM images LIMIT 70"), Choice(1))
    sql = f"FROM read_parquet('{other}/*/*.parquet', hive_partitioning = true)"
    assert duckdb.sql(f"SELECT DISTINCT class, coverage {sql}").fetchall() == [(None, None)]


def state(output: Path) -> dict[str, tuple[bytes, int]]:
    files = (p for p in output.rglob("*") if p.is_file() and p.suffix != ".tmp")
    return {str(p.relative_to(output)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def contents_of(output: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in state(output).items()}


def test_recommend_resumes(
    special: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request, choice = Request(Filters(k=2)), Choice(2)
    counts = run(special, tmp_path, request, choice)
    complete = state(tmp_path)
    assert run(special, tmp_path, request, choice) == counts
    assert "is complete" in capsys.readouterr().err
    assert state(tmp_path) == complete
    folder = next(tmp_path.glob("class=*"))
    for name in ("_SUCCESS", f"{folder.name}/part-000001.parquet", "unanswered.parquet"):
        (tmp_path / name).unlink()
    assert run(special, tmp_path, request, choice, execution=Execution("cpu")) == counts
    after = state(tmp_path)
    assert {n: c for n, (c, _) in after.items()} == {n: c for n, (c, _) in complete.items()}
    old = {n for n in after if after[n][1] == complete[n][1]}
    assert old == {"request.json", *(f"{folder.name}/part-00000{i}.parquet" for i in (0, 2, 3, 4))}


def test_recommend_output_has_one_request(special: str, tmp_path: Path) -> None:
    request, choice = Request(Filters(k=2), "FROM images LIMIT 5"), Choice(2)
    run(special, tmp_path, request, choice)
    with pytest.raises(InputError, match=r"complete .*k 2, not 3.*--overwrite"):
        run(special, tmp_path, request, Choice(3))
    run(special, tmp_path, request, Choice(3), overwrite=True)
    assert {len(answer) for answer in read(tmp_path).values()} == {3}
    stranger = tmp_path / "other" / "mine.txt"
    stranger.parent.mkdir()
    stranger.write_text("keep me")
    with pytest.raises(InputError, match=r"mine\.txt"):
        run(special, stranger.parent, request, choice, overwrite=True)
    assert stranger.read_text() == "keep me"


def test_recommend_output_has_one_snapshot(tmp_path: Path) -> None:
    index, output = str(tmp_path / "index"), tmp_path / "out"
    old = write_index(index, features())
    request, choice = Request(Filters(k=2), "FROM images"), Choice(2)
    run(index, output, request, choice)
    before = contents_of(output)
    (output / "_SUCCESS").unlink()
    add_images(open_snapshot(index), features()[:10])
    with pytest.raises(InputError, match=rf"unfinished .*--version {old.version}"):
        run(index, output, request, choice)
    run(index, output, request, choice, version=old.version)
    assert contents_of(output) == before
    assert run(index, output, request, choice, overwrite=True)["queries"] == COUNT + 10


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("SELECT uri FROM images", "image_id"),
        ("SELEC", "SQL"),
        ("FROM images WHERE false", "nothing to do"),
        ("/nowhere.parquet", "nowhere"),
        ("BROKEN.parquet", "not a Parquet file"),
    ],
)
def test_recommend_refuses_bad_queries(
    special: str, tmp_path: Path, queries: str, message: str
) -> None:
    (tmp_path / "BROKEN.parquet").write_bytes(b"no table")
    queries = queries.replace("BROKEN", str(tmp_path / "BROKEN"))
    with pytest.raises(InputError, match=message):
        run(special, tmp_path / "out", Request(Filters(), queries), Choice())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("filters", "choice", "message"),
    [
        (Filters("boat"), Choice(), "no class"),
        (Filters(), Choice(near_duplicates=1.5), "near-duplicates"),
        (Filters(), Choice(diversity=0), "diversity"),
        (Filters(), Choice(pool=20), "--diversity"),
        (Filters(), Choice(10, diversity=0.5, pool=9), "less than k"),
    ],
)
def test_recommend_refuses_options_out_of_range(
    special: str, tmp_path: Path, filters: Filters, choice: Choice, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(special, tmp_path, Request(filters), choice)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_recommend_without_gpu_is_an_error(special: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no GPU"):
        run(special, tmp_path, Request(Filters()), Choice(), execution=Execution("cuda"))


def command(index: str, output: object) -> list[str]:
    return [
        sys.executable, "jobs/recommend.py", "--index", index, "--output", str(output), "-k", "3",
        "--class", "car", "--part-size", "10", "--device", "cpu", "--memory", "0.01",
    ]  # fmt: skip


@pytest.mark.slow
def test_recommend_prints_summary(
    special: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *arguments = map(str, command(special, tmp_path))
    assert exit_code(*arguments) == 0
    assert "no region of the class" in capsys.readouterr().out
    assert json.loads((tmp_path / "_SUCCESS").read_text())["queries"] == COUNT
    assert exit_code(*arguments, "--version", "99") == 1
    assert capsys.readouterr().err.startswith("error:")


@pytest.mark.slow
def test_recommend_to_bucket_equals_folder(
    s3: dict[str, str], special: str, tmp_path: Path
) -> None:
    output = f"{new_bucket()}/out"

    def job(output: object, *options: str) -> None:
        _, *arguments = command(special, output)
        done = jobs.run(*arguments, *options)
        assert done.code == 0, done.err

    with JobServer(**s3) as jobs:  # workers of another Ray know nothing of this S3
        job(tmp_path)
        job(output)
        assert in_bucket(output) == contents_of(tmp_path)
        storage.delete([f"{output}/class=car/part-000001.parquet", f"{output}/_SUCCESS"])
        job(output)
        assert in_bucket(output) == contents_of(tmp_path)
        job(output, "--keep-copies", "--overwrite")
    assert in_bucket(output).keys() == contents_of(tmp_path).keys()
    assert in_bucket(output) != contents_of(tmp_path)


def in_bucket(output: str) -> dict[str, bytes]:
    files = [uri for uri, *_ in storage.find_files(output)]
    return {uri.removeprefix(f"{output}/"): storage.read_bytes(uri) for uri in files}


@pytest.fixture(scope="module")
def whole(special: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of an undisturbed job."""
    output = tmp_path_factory.mktemp("whole")
    subprocess.run(command(special, output), cwd=ROOT, capture_output=True, timeout=300, check=True)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_recommend_recovers(special: str, whole: Path, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311
    output = tmp_path / "out"
    parts = len(list((whole / "class=car").iterdir()))
    for _ in range(2):
        job = subprocess.Popen(command(special, output), cwd=ROOT, stderr=subprocess.DEVNULL)
        enough = dice.randrange(-1, parts)
        while job.poll() is None and len(list(output.glob("*/part*"))) < enough:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.1) if enough > 0 else dice.uniform(0, 5))
        job.kill()
        job.wait()
        time.sleep(2)  # a worker may finish what it was about
        before = {p: p.stat().st_mtime_ns for p in output.glob("*/part*")}
        assert len(before) <= parts
    subprocess.run(command(special, output), cwd=ROOT, capture_output=True, timeout=300, check=True)
    assert contents_of(output) == contents_of(whole)
    assert all(p.stat().st_mtime_ns == time for p, time in before.items()), "not done again"
