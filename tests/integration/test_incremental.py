"""Tests of repeated runs: only missing work is done, and sums are checked."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

import segrec_batch
from segrec_batch.common.errors import AccountingError, IndexStateError, InputError, StorageError
from segrec_batch.index import snapshot as store
from segrec_batch.model.bundle import Model
from segrec_batch.model.engines import ENGINES
from segrec_batch.pipeline import chain
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, dry_run, index_images
from segrec_batch.pipeline.run_stats import RunStats
from tests.support.builders import uris

pytestmark = pytest.mark.usefixtures("ray_cluster")

Run = Callable[..., tuple[RunStats, store.Snapshot]]


@pytest.fixture
def run(images: Path, model_dir: str, tmp_path: Path) -> Run:
    def run_again(
        model: str = model_dir, seconds: float = 300.0, rebuild: bool = False, **request: Any
    ) -> tuple[RunStats, store.Snapshot]:
        options = Request(str(images), **request)
        execution = Execution("cpu", batch_size=4, commit_seconds=seconds)
        return index_images(options, model, str(tmp_path / "index"), execution, rebuild)

    return run_again


def rows(index: str, sql: str) -> list[tuple[Any, ...]]:
    return segrec_batch.connect(index).sql(sql).fetchall()


def labels(mask: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(mask)))


def test_second_run_publishes_nothing(run: Run) -> None:
    first, snapshot = run()
    again, unchanged = run()
    assert (first.indexed, again.indexed, again.unchanged) == (6, 0, 6)
    assert unchanged.version == snapshot.version


def test_idle_run_starts_no_ray(run: Run, images: Path, model_dir: str, tmp_path: Path) -> None:
    run()
    again = subprocess.run(
        [
            sys.executable, "jobs/index.py", "--images", images, "--model", model_dir,
            "--index", tmp_path / "index",
        ],
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},  # no cluster listens there
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "6 unchanged" in again.stderr


def test_new_changed_and_gone_images(run: Run, images: Path, tmp_path: Path) -> None:
    _, before = run()
    index = str(tmp_path / "index")
    changed, gone, *_ = sorted(images.iterdir())
    old = segrec_batch.connect(index).sql("SELECT uri, content_hash FROM images").fetchall()
    Image.new("RGB", (50, 40), "red").save(changed)
    gone.unlink()
    Image.new("L", (40, 50), 7).save(images / "new.png")
    stats, _ = run()
    assert (stats.indexed, stats.unchanged, stats.gone) == (2, 4, 1)
    assert uris(index) == sorted(p.name for p in images.iterdir())
    new = dict(segrec_batch.connect(index).sql("SELECT uri, content_hash FROM images").fetchall())
    assert new[str(changed)] != dict(old)[str(changed)]
    orphans = "SELECT count(*) FROM regions ANTI JOIN images USING (image_id)"
    assert segrec_batch.connect(index).sql(orphans).fetchall() == [(0,)]
    assert gone.name in uris(index, version=before.version), "an older version keeps its rows"


@pytest.mark.slow
def test_failed_image_waits_for_change_or_retry(run: Run, images: Path, tmp_path: Path) -> None:
    bad = images / "bad.jpg"
    bad.write_bytes(b"")
    first, _ = run()
    again, _ = run()
    retried, _ = run(retry_failed=True)
    assert (first.failed, again.skipped, retried.failed) == (1, 1, 1)
    Image.new("RGB", (50, 40)).save(bad)
    mended, snapshot = run()
    assert (mended.indexed, snapshot.rows("failures"), snapshot.rows("images")) == (1, 0, 7)


@pytest.mark.slow
def test_broken_image_loses_its_row(run: Run, images: Path, tmp_path: Path) -> None:
    run()
    sorted(images.iterdir())[0].write_bytes(b"<html>")
    stats, snapshot = run()
    assert (stats.failed, snapshot.rows("images"), snapshot.rows("failures")) == (1, 5, 1)


@pytest.mark.slow
def test_intermediate_commits_give_the_same_index(run: Run, images: Path, tmp_path: Path) -> None:
    first, snapshot = run(seconds=-1)
    assert (first.commits, snapshot.version, snapshot.rows("images")) == (1, 1, 6)
    changed, gone, *_ = sorted(images.iterdir())
    Image.new("RGB", (50, 40), "blue").save(changed)
    gone.unlink()
    second, snapshot = run(seconds=-1)
    assert (second.commits, snapshot.version, snapshot.rows("images")) == (2, 3, 5)
    assert uris(str(tmp_path / "index")) == sorted(p.name for p in images.iterdir())


@pytest.mark.slow
def test_only_listed_folder_can_lose_images(
    run: Run, scenes: Path, model_dir: str, tmp_path: Path
) -> None:
    run()
    other = str(scenes / "images" / "place_02")
    stats, snapshot = index_images(
        Request(other), model_dir, str(tmp_path / "index"), Execution("cpu")
    )
    assert (stats.gone, snapshot.rows("images")) == (0, 12)


def test_another_model_is_refused(run: Run, model: Model, images: Path, tmp_path: Path) -> None:
    run()
    other = replace(model, spec=replace(model.spec, minmax=False))
    other.save(str(tmp_path / "other"))
    with pytest.raises(IndexStateError, match=f"{model.model_id}.*{other.model_id}"):
        run(model=str(tmp_path / "other"))


def test_lost_image_stops_publication(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = run()
    Image.new("RGB", (50, 40)).save(images / "a.png")
    Image.new("RGB", (50, 40)).save(images / "b.png")
    process = chain.process_images

    def lossy(manifest: Callable[..., pa.Table], *rest: Any) -> Iterator[pa.Table]:
        return process(lambda start, stop: manifest(start + 1, stop), *rest)

    monkeypatch.setattr(chain, "process_images", lossy)
    with pytest.raises(AccountingError, match="8 images listed, but 7 accounted for"):
        run()
    assert store.open_snapshot(str(tmp_path / "index")).version == before.version


@pytest.mark.slow
def test_image_counted_twice_stops_publication(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = chain.process_images

    def doubled(*arguments: Any) -> Iterator[pa.Table]:
        for receipts in process(*arguments):
            yield from (receipts, receipts)

    monkeypatch.setattr(chain, "process_images", doubled)
    with pytest.raises(AccountingError):
        run()
    assert uris(str(tmp_path / "index")) == []


@pytest.mark.slow
def test_relative_path_is_the_same_source(
    run: Run, images: Path, model_dir: str, tmp_path: Path
) -> None:
    run()
    relative = os.path.relpath(images)
    stats, _ = index_images(Request(relative), model_dir, str(tmp_path / "index"), Execution("cpu"))
    assert stats.unchanged == 6


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_equal_bytes_are_copied(engine: str, images: Path, model_dir: str, tmp_path: Path) -> None:
    """Images are touched, moved, or moved over another one."""
    execution = Execution("cpu", batch_size=4, engine=engine, precision="float32")

    def run() -> tuple[RunStats, store.Snapshot]:
        index = str(tmp_path / "index")
        return index_images(Request(str(images)), model_dir, index, execution)

    run()
    index = str(tmp_path / "index")
    sql = "SELECT uri, feature, mask, content_hash FROM images"
    before = {Path(u).name: rest for u, *rest in rows(index, sql)}
    regions = "SELECT class, feature, mask_bits FROM regions WHERE uri = '{}' ORDER BY class"
    touched, moved, over, under, *_ = sorted(images.iterdir())
    old_regions = rows(index, regions.format(moved))
    os.utime(touched)
    moved.rename(images / "moved here.jpg")
    over.rename(under)
    stats, snapshot = run()
    assert (stats.indexed, stats.copied, stats.gone) == (3, 2, 2)
    after = {Path(u).name: rest for u, *rest in rows(index, sql)}
    assert after[touched.name] == before[touched.name]
    assert after["moved here.jpg"] == before[moved.name]
    assert rows(index, regions.format(images / "moved here.jpg")) == old_regions
    (feature, mask, digest), (old_feature, old_mask, old) = after[under.name], before[over.name]
    assert digest == old, "the same bytes, computed again"
    np.testing.assert_allclose(feature, old_feature, rtol=1e-3, atol=1e-5)
    assert (labels(mask) == labels(old_mask)).mean() > 0.999
    assert snapshot.rows("images") == 5
    assert run()[0].unchanged == 5


@pytest.mark.slow
def test_copy_candidate_is_read_first(run: Run, images: Path, tmp_path: Path) -> None:
    plain = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for path, image in zip((images / "a.bmp", images / "b.bmp"), plain, strict=True):
        image.save(path)
        os.utime(path, (1e9, 1e9))
        stats, _ = run()
    assert (stats.indexed, stats.copied) == (1, 0)
    hashes = rows(str(tmp_path / "index"), "SELECT DISTINCT content_hash FROM images")
    assert len(hashes) == 8


@pytest.mark.slow
def test_limit_continues_after_last_run(run: Run, images: Path) -> None:
    (images / "bad.gif").write_bytes(b"GIF89a")
    results = [run(limit=3) for _ in range(4)]
    done = [(a.indexed + a.failed, a.postponed) for a, _ in results]
    assert done == [(3, 4), (3, 1), (1, 0), (0, 0)]
    assert results[-1][1].rows("images") == 6


@pytest.mark.slow
def test_excluded_is_neither_listed_nor_gone(run: Run, images: Path) -> None:
    first = sorted(images.iterdir())[0].name
    (images / "thumbs").mkdir()
    Image.new("RGB", (9, 9)).save(images / "thumbs" / "it's [1]%.png")
    stats, _ = run(include=("*.jpg",))
    assert (stats.listed, stats.indexed) == (6, 6)
    stats, snapshot = run(include=("thumbs/*", first), exclude=("*.jpg",))
    assert (stats.listed, stats.indexed, snapshot.rows("images")) == (1, 1, 7)
    stats, snapshot = run(exclude=("thumbs/*",))
    assert (stats.unchanged, stats.gone, snapshot.rows("images")) == (6, 0, 7)
    with pytest.raises(InputError, match="leave no image"):
        run(include=("*.tif",))


@pytest.mark.slow
def test_dry_run_prints_plan_and_changes_nothing(
    run: Run, images: Path, model_dir: str, tmp_path: Path
) -> None:
    index = str(tmp_path / "index")
    request = Request(str(images))
    paths = sorted(images.iterdir())
    assert list(dry_run(request, model_dir, index)) == [("new", str(path)) for path in paths]
    assert not store.exists(index)
    _, before = run()
    os.utime(paths[0])
    paths[1].unlink()
    (images / "a\nb.png").write_bytes(b"")
    assert list(dry_run(request, model_dir, index)) == [
        ("new", f"{images}/a\nb.png"), ("changed", str(paths[0])), ("gone", str(paths[1]))
    ]  # fmt: skip
    assert store.open_snapshot(index) == before


@pytest.mark.slow
def test_rebuild_is_invisible_until_complete(
    run: Run, images: Path, model: Model, tmp_path: Path
) -> None:
    (images / "bad.jpg").write_bytes(b"")
    index, other = str(tmp_path / "index"), str(tmp_path / "other")
    _, before = run()
    changed = replace(model, spec=replace(model.spec, minmax=False))
    changed.save(other)
    reader = segrec_batch.connect(index)
    stats, same = run(other, rebuild=True, limit=5)
    assert (stats.postponed, same) == (2, before)
    sorted(images.glob("place*"))[0].unlink()  # one that is staged already
    stats, after = run(other, rebuild=True)
    assert stats.unchanged + stats.skipped == 4
    assert (after.model_id, after.rows("images"), after.rows("failures")) == (
        changed.model_id, 5, 1
    )  # fmt: skip
    features = reader.sql("SELECT count(feature) FROM images").fetchall()
    assert features == [(6,)], "a reader keeps its snapshot"
    assert rows(index, "SELECT DISTINCT model_id FROM images") == [(changed.model_id,)]
    assert run(other)[0].unchanged == 5
    stats, _ = run(other, rebuild=True)
    assert (stats.indexed, stats.failed) == (5, 1), "with the same model it starts anew"


@pytest.mark.slow
def test_rebuild_must_cover_the_index(run: Run, images: Path, scenes: Path) -> None:
    run()
    with pytest.raises(InputError, match="replaces all"):
        run(rebuild=True, exclude=(f"*{sorted(images.iterdir())[0].name}",))


@pytest.mark.slow
def test_store_failure_keeps_finished_work(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = chain.process_images

    def breaking(*arguments: Any) -> Iterator[pa.Table]:
        yield next(process(*arguments))
        raise StorageError("no answer")

    monkeypatch.setattr(chain, "process_images", breaking)
    for i in range(20):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(images / f"{i}.png")
    with pytest.raises(StorageError):
        run()
    monkeypatch.undo()
    indexed = store.open_snapshot(str(tmp_path / "index")).rows("images")
    assert 0 < indexed < 26
    stats, _ = run()
    assert (stats.unchanged, stats.indexed) == (indexed, 26 - indexed)


@pytest.mark.slow
def test_moved_old_row_stops_publication(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = run()
    sorted(images.iterdir())[0].unlink()
    part = before.files["images"][0].part
    monkeypatch.setattr(
        "segrec_batch.pipeline.plan.Plan.iter_gone", lambda _: iter([(part, {"images": ["x"]})])
    )
    with pytest.raises(AccountingError, match=r"old rows of part .* should be removed"):
        run()
    monkeypatch.setattr("segrec_batch.pipeline.plan.Plan.iter_gone", lambda _: iter(()))
    with pytest.raises(AccountingError, match="do not add up"):
        run()
    assert store.open_snapshot(str(tmp_path / "index")) == before


@pytest.mark.slow
def test_concurrent_jobs_do_not_mix(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = chain.process_images
    snapshots: list[store.Snapshot] = []

    def overtaken(*arguments: Any) -> Iterator[pa.Table]:
        monkeypatch.setattr(chain, "process_images", process)
        snapshots.append(run()[1])  # another job, from start to end
        yield from process(*arguments)

    for expected in (6, 7):  # on a new index, on one with rows
        monkeypatch.setattr(chain, "process_images", overtaken)
        with pytest.raises(IndexStateError, match="another run has published"):
            run()
        newest = store.open_snapshot(str(tmp_path / "index"))
        assert newest == snapshots[-1]
        assert newest.rows("images") == run()[0].unchanged == expected
        sorted(images.iterdir())[0].write_bytes(sorted(images.iterdir())[1].read_bytes())
        Image.new("RGB", (50, 40)).save(images / "new.png")


def test_worker_error_keeps_its_type(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> pa.Table:
        raise StorageError("s3://bucket: no answer") from OSError("the network")

    monkeypatch.setattr(chain, "decode_batch", failing)
    with pytest.raises(StorageError) as caught:
        run()
    assert type(caught.value) is StorageError
    assert str(caught.value) == "s3://bucket: no answer"
