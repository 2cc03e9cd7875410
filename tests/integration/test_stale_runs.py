"""Tests of jobs whose sources cannot be read for a while."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import segrec_batch
from segrec_batch.common.errors import SourceError
from segrec_batch.index import snapshot as store
from segrec_batch.index.history import history
from segrec_batch.maintenance.purge import purge
from segrec_batch.maintenance.verify import verify
from segrec_batch.model.bundle import Model
from segrec_batch.pipeline import chain, run
from segrec_batch.pipeline.backfill import BackfillResult, backfill_parts
from segrec_batch.pipeline.descriptor_setup import change_descriptors, parse_addition
from segrec_batch.pipeline.plan import DEFAULT_MAX_READ_FAILURES, Request
from segrec_batch.pipeline.run import Execution, index_images
from segrec_batch.pipeline.samples import IndexSamples
from segrec_batch.search.cache import refresh_cache
from tests.support.builders import encoded, smooth_pixels
from tests.support.commands import exit_code

pytestmark = pytest.mark.usefixtures("ray_cluster")

Rows = list[tuple[Any, ...]]
CONTENT = "* EXCLUDE (source_etag, run_id, indexed_at)"


@dataclass
class Site:
    """A folder of images with its index, and jobs on them."""

    images: Path
    index: str
    model: str
    capsys: pytest.CaptureFixture[str]

    def job(self, *options: str) -> int:
        """Run the job and return its exit code."""
        locations = ("--images", str(self.images), "--model", self.model, "--index", self.index)
        return exit_code("jobs/index.py", *locations, "--device", "cpu", *options)

    def error(self) -> str:
        """Return the error message of the last job."""
        (line,) = re.findall("^error: (.*)$", self.capsys.readouterr().err, re.MULTILINE)
        return str(line)

    def rows(self, sql: str) -> Rows:
        with segrec_batch.connect(self.index) as connection:
            return connection.sql(sql).fetchall()

    def contents(self) -> Rows:
        """Return all rows of images and regions without times and run ids."""
        return self.rows(f"SELECT {CONTENT} FROM images ORDER BY uri") + self.rows(
            "SELECT * EXCLUDE (run_id) FROM regions ORDER BY uri, class"
        )

    def break_all(self) -> Callable[[], None]:
        """Make all images unreadable, for root too; return a function that repairs them."""
        away = self.images.with_name("away")
        away.mkdir()
        for path in sorted(self.images.iterdir()):
            os.utime(path)
            path.rename(away / path.name)
            path.symlink_to(self.images / "no such file")

        def mend() -> None:
            for path in away.iterdir():
                path.replace(self.images / path.name)
            away.rmdir()

        return mend


@pytest.fixture
def site(tmp_path: Path, model_dir: str, capsys: pytest.CaptureFixture[str]) -> Site:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(10):
        (images / f"{i}.jpg").write_bytes(encoded(smooth_pixels(48, 64, i), "JPEG"))
    site = Site(images, str(tmp_path / "index"), model_dir, capsys)
    assert site.job() == 0
    return site


def test_unreadable_images_keep_rows(site: Site, tmp_path: Path) -> None:
    before = site.contents()
    mend = site.break_all()
    for _ in range(2):
        assert site.job() == 1
        assert re.fullmatch(
            r"10 of 10 sources could not be read, most often broken link: more than "
            r"--max-read-failures 1%\. The rest is published, and 10 of them keep their old rows; "
            r"remove the cause and run again, which tries them all, or accept it: "
            r"--max-read-failures 10",
            site.error(),
        )
        assert site.contents() == before
        assert site.rows("SELECT DISTINCT stage, reason FROM failures") == [
            ("read", "broken link: No such file or directory")
        ]
        assert site.rows("SELECT count(*) FROM failures") == [(10,)]
        assert site.rows("SELECT count(*) FROM stale SEMI JOIN images USING (uri)") == [(10,)]
        assert verify(store.open_snapshot(site.index)) == []
    cache = str(tmp_path / "cache.duckdb")
    refresh_cache(site.index, cache)
    with segrec_batch.connect(cache) as connection:
        sql = "SELECT (SELECT count(*) FROM images), (SELECT count(*) FROM stale)"
        assert connection.sql(sql).fetchall() == [(10, 10)]
    mend()
    assert site.job() == 0
    assert site.contents() == before
    assert site.rows("FROM failures") == site.rows("FROM stale") == []
    assert verify(store.open_snapshot(site.index)) == []
    summary = history(site.index)[0].info["segrec"]
    assert (summary["changed"], summary["copied"], summary["stale"]) == (10, 10, 0)
    refresh_cache(site.index, cache)
    with segrec_batch.connect(cache) as connection:
        assert connection.sql(sql).fetchall() == [(10, 0)]


@pytest.mark.slow
def test_folder_that_vanishes_during_run(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = site.contents()
    for path in site.images.iterdir():
        os.utime(path)
    away, process = tmp_path / "away", chain.process_images

    def late(*arguments: Any) -> Iterator[pa.Table]:
        site.images.rename(away)
        yield from process(*arguments)

    monkeypatch.setattr(chain, "process_images", late)
    assert site.job() == 1
    assert "10 of 10 sources could not be read, most often FileNotFoundError" in site.error()
    monkeypatch.undo()
    assert site.job() == 1
    assert "no images found" in site.error()
    assert site.contents() == before
    away.rename(site.images)
    assert site.job() == 0
    assert site.contents() == before
    assert site.rows("FROM failures") == []


@pytest.mark.slow
def test_short_listing_stops_the_run(site: Site, tmp_path: Path) -> None:
    version = store.open_snapshot(site.index).version
    paths = sorted(site.images.iterdir())
    for path in paths[:6]:
        path.unlink()
    (site.images / "new.jpg").write_bytes(paths[9].read_bytes())
    assert site.job() == 1
    message = site.error()
    assert f"6 of 10 sources that {site.index} has below {site.images} are gone" in message
    assert "more than --max-gone 50%. Nothing is changed" in message
    assert "--max-gone 100%" in message
    assert site.job("--dry-run") == 0
    assert "warning: a run would stop: 6 of 10 sources" in site.capsys.readouterr().err
    assert site.job("--rebuild") == 1
    assert "6 of 10 sources" in site.error()
    assert store.open_snapshot(site.index).version == version
    assert site.job("--max-gone", "60%") == 0
    assert site.rows("SELECT count(*) FROM images") == [(5,)]


@pytest.mark.slow
def test_rebuild_keeps_unreadable_images(site: Site) -> None:
    before = site.contents()
    path = site.images / "3.jpg"
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("nowhere")
    for _ in range(2):
        assert site.job("--rebuild") == 1
        assert "1 of 10 images of" in (message := site.error())
        assert "the rebuild is kept, but not published" in message
        assert site.contents() == before
    path.unlink()
    path.write_bytes(content)
    stats, after = index_images(
        Request(str(site.images)), site.model, site.index, Execution("cpu"), rebuild=True
    )
    assert (stats.unchanged, stats.indexed, stats.changed) == (9, 1, 1)
    assert (after.rows("images"), after.rows("failures")) == (10, 0)
    path.unlink()
    path.symlink_to("nowhere")
    request = Request(str(site.images))
    with pytest.raises(SourceError, match="--max-read-failures 1"):
        index_images(request, site.model, site.index, Execution("cpu"), rebuild=True)
    assert site.job("--rebuild", "--max-read-failures", "1") == 0, "accepted"
    assert site.rows("SELECT (SELECT count(*) FROM images), stage FROM failures") == [(9, "read")]


@pytest.mark.slow
def test_descriptors_of_unreadable_images_come_later(
    site: Site, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = IndexSamples(store.open_snapshot(site.index), 8)
    site.model = str(tmp_path / "described")
    change_descriptors(model, [parse_addition("texture")], [], samples).save(site.model)
    without = "SELECT count(*) FROM descriptors WHERE vector IS NULL"
    request, away = Request(str(site.images)), site.images.with_name("away")

    def hidden(*arguments: Any) -> Iterator[tuple[str, BackfillResult]]:
        """Move four images away during the backfill."""
        away.mkdir(exist_ok=True)
        for i in range(4):
            (site.images / f"{i}.jpg").rename(away / f"{i}.jpg")
        yield from backfill_parts(*arguments)
        for path in away.iterdir():
            path.rename(site.images / path.name)

    monkeypatch.setattr(run, "backfill_parts", hidden)
    stats, _ = index_images(request, site.model, site.index, Execution("cpu"))
    assert (stats.described, stats.reread, stats.unread) == (10, 10, 4)
    with pytest.raises(SourceError, match=r"^4 of 10 sources could not be read"):
        stats.check_read_failures(DEFAULT_MAX_READ_FAILURES)
    assert site.rows(without) == [(4,)]
    again, _ = index_images(request, site.model, site.index, Execution("cpu"))
    assert (again.described, again.reread, again.unread) == (0, 4, 4)
    assert again.commits == 0, "it is no better off"
    monkeypatch.undo()
    assert site.job() == 0
    assert site.rows(without) == [(0,)]
    assert verify(store.open_snapshot(site.index)) == []


@pytest.mark.slow
def test_purge_removes_row_and_failure(site: Site) -> None:
    site.break_all()
    assert site.job() == 1
    uri = str(site.images / "3.jpg")
    report = purge(site.index, [uri], 0)
    assert report.purged == (uri,)
    for table in ("images", "failures", "regions", "stale"):
        assert site.rows(f"SELECT count(*) FROM {table} WHERE uri = '{uri}'") == [(0,)]
    assert site.rows("SELECT count(*) FROM stale") == [(9,)]
    assert verify(store.open_snapshot(site.index)) == []
