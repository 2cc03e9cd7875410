"""Tests of queries beside jobs that rewrite the index."""

import datetime as dt
import shutil
import threading
from pathlib import Path

import pytest

import segrec_batch
from segrec_batch.index.snapshot import open_snapshot
from segrec_batch.maintenance.compact import compact
from segrec_batch.maintenance.versions import vacuum
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, index_images

LONG = """
    SELECT count(*), sum(round(pearson(a.feature, b.feature), 6)), count(DISTINCT a.run_id)
    FROM images AS a, images AS b, range({0}) AS times
"""


@pytest.fixture
def index(images: Path, model_dir: str, ray_cluster: None, tmp_path: Path) -> str:
    """An index of `images` that one run has made."""
    uri = str(tmp_path / "index")
    index_images(Request(str(images)), model_dir, uri, Execution("cpu"))
    return uri


def rewrite(index: str, images: Path, model_dir: str) -> None:
    """Remove, change and add images; index, compact, vacuum."""
    one, two, *_ = sorted(images.iterdir())
    one.unlink()
    shutil.copy(two, images / f"new{two.suffix}")
    index_images(Request(str(images)), model_dir, index, Execution("cpu"))
    compact(open_snapshot(index))
    vacuum(index, dt.timedelta(hours=1))


@pytest.mark.slow
def test_long_query_keeps_its_snapshot(index: str, images: Path, model_dir: str) -> None:
    expected = segrec_batch.connect(index).sql(LONG.format(1)).fetchall()
    con = segrec_batch.connect(index, settings={"threads": 1})  # the job wants to run, too
    answers: list[object] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set() or not answers:
            answers.append(con.sql(LONG.format(2000)).fetchall())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        rewrite(index, images, model_dir)
    finally:
        done.set()
        thread.join()
    ((count, total, runs),) = expected
    for ((n, s, r),) in answers:
        assert (n, r) == (2000 * count, runs)
        assert s == pytest.approx(2000 * total)
    with segrec_batch.connect(index) as now:
        assert now.sql("SELECT count(*) FROM images WHERE uri LIKE '%new%'").fetchall() == [(1,)]


@pytest.mark.slow
def test_query_of_older_version(index: str, images: Path, model_dir: str) -> None:
    before = open_snapshot(index).version
    sql = "SELECT uri, image_id FROM images ORDER BY uri"
    rows = segrec_batch.connect(index).sql(sql).fetchall()
    answer = f"SELECT image_id, pearson FROM recommend('{rows[-1][1]}')"
    recommended = segrec_batch.connect(index).sql(answer).fetchall()
    rewrite(index, images, model_dir)
    then = segrec_batch.connect(index, version=before)
    assert then.sql(sql).fetchall() == rows
    assert then.sql(answer).fetchall() == recommended
    assert segrec_batch.connect(index).sql(sql).fetchall() != rows
