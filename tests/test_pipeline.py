"""The indexing job: every picture accounted for, nothing twice, nothing half."""

import os
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import segrec_batch
from segrec_batch.errors import AccountingError, DeviceError, IndexStateError, InputError
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.model.segmenter import Segmenter
from segrec_batch.pipeline import chain
from segrec_batch.pipeline.run import index_pictures
from segrec_batch.pipeline.stages import SegmentBatch, decode_batch, image_id, write_batch
from segrec_batch.store import index as store

pytestmark = pytest.mark.usefixtures("ray_cluster")


def uris(index: str, table: str = "images", version: int | None = None) -> list[str]:
    rows = segrec_batch.connect(index, version).sql(f"SELECT uri FROM {table} ORDER BY uri")
    return [Path(uri).name for (uri,) in rows.fetchall()]


@pytest.fixture
def pictures(scenes: Path, tmp_path: Path) -> Path:
    """Six scenes to change at will."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for source in sorted((scenes / "images" / "place_01").iterdir()):
        shutil.copy(source, folder)
    return folder


@pytest.fixture
def run(pictures: Path, model_dir: str, tmp_path: Path) -> Callable[..., object]:
    def run_again(**options: bool) -> tuple[object, store.Snapshot]:
        index = str(tmp_path / "index")
        return index_pictures(str(pictures), model_dir, index, "cpu", **options)

    return run_again


def test_every_listed_picture_is_indexed_or_failed(index: str, scenes: Path) -> None:
    listed = [p.name for p in (scenes / "images").rglob("*.jpg")]
    assert uris(index) == sorted(listed)
    assert uris(index, "failures") == ["broken.jpg"]


def test_a_failure_says_stage_and_reason(index: str) -> None:
    rows = segrec_batch.connect(index).sql("SELECT stage, reason FROM failures").fetchall()
    assert rows == [("decode", "not a picture")]


def test_coverages_add_up_and_agree_with_regions_and_masks(index: str) -> None:
    connection = segrec_batch.connect(index)
    rows = connection.sql(
        """SELECT image_id, grid_h * grid_w AS cells, mask_grid, dominant_class,
                  coverage_background, coverage_car, coverage_person, coverage_tree
           FROM images"""
    ).fetchall()
    regions = connection.sql("SELECT image_id, class, cells, coverage FROM regions").fetchall()
    by_image = {(i, c): (n, share) for i, c, n, share in regions}
    for image, cells, grid, dominant, *shares in rows:
        labels = np.frombuffer(grid, np.uint8)
        counts = np.bincount(labels, minlength=4)
        assert counts.sum() == cells
        assert shares == pytest.approx(list(counts / cells))
        assert sum(shares) == pytest.approx(1)
        names = ("background", "car", "person", "tree")
        assert dominant == (names[1 + counts[1:].argmax()] if counts[1:].any() else "background")
        for name, count in zip(names, counts, strict=True):
            assert by_image.get((image, name), (0, 0))[0] == count


def test_class_isolated_features_average_to_the_images_feature(index: str) -> None:
    worst = (
        segrec_batch.connect(index)
        .sql(
            """WITH parts AS (SELECT image_id, unnest(feature) * coverage AS x,
                                 generate_subscripts(feature, 1) AS channel FROM regions),
                sums AS (SELECT image_id, channel, sum(x) AS x FROM parts GROUP BY ALL)
           SELECT max(abs(sums.x - images.feature[channel]))
           FROM sums JOIN images USING (image_id)"""
        )
        .fetchall()
    )
    assert worst[0][0] < 1e-4


def test_rows_are_what_the_model_says_of_the_picture(index: str, model: Model) -> None:
    connection = segrec_batch.connect(index)
    uri, feature, mask, width, height = connection.sql(
        "SELECT uri, feature, mask, width, height FROM images ORDER BY uri LIMIT 1"
    ).fetchall()[0]
    pixels = np.asarray(Image.open(uri).resize((144, 112), Image.Resampling.BILINEAR))
    found = Segmenter(model)(pixels[None].copy())
    np.testing.assert_allclose(feature, found.feature[0], rtol=1e-2, atol=1e-3)
    stored = np.asarray(Image.open(BytesIO(mask)))
    assert stored.shape == (height, width) == (120, 160)
    assert (stored == found.mask(0, (120, 160))).mean() > 0.99


def test_running_again_does_nothing_and_publishes_nothing(run: Callable[..., object]) -> None:
    first, snapshot = run()
    again, unchanged = run()
    assert (first.indexed, again.indexed, again.unchanged) == (6, 0, 6)
    assert unchanged.version == snapshot.version


def test_new_changed_and_gone_pictures(
    run: Callable[..., object], pictures: Path, tmp_path: Path
) -> None:
    _, before = run()
    index = str(tmp_path / "index")
    changed, gone, *_ = sorted(pictures.iterdir())
    old = segrec_batch.connect(index).sql("SELECT uri, content_hash FROM images").fetchall()
    Image.new("RGB", (50, 40), "red").save(changed)
    gone.unlink()
    Image.new("L", (40, 50), 7).save(pictures / "new.png")
    account, _ = run()
    assert (account.indexed, account.unchanged, account.gone) == (2, 4, 1)
    assert uris(index) == sorted(p.name for p in pictures.iterdir())
    new = dict(segrec_batch.connect(index).sql("SELECT uri, content_hash FROM images").fetchall())
    assert new[str(changed)] != dict(old)[str(changed)]
    orphans = "SELECT count(*) FROM regions ANTI JOIN images USING (image_id)"
    assert segrec_batch.connect(index).sql(orphans).fetchall() == [(0,)]
    assert gone.name in uris(index, version=before.version), "an older version keeps its rows"


def test_a_failed_picture_is_skipped_until_it_changes_or_is_retried(
    run: Callable[..., object], pictures: Path, tmp_path: Path
) -> None:
    bad = pictures / "bad.jpg"
    bad.write_bytes(b"")
    first, _ = run()
    again, _ = run()
    retried, _ = run(retry_failed=True)
    assert (first.failed, again.skipped, retried.failed) == (1, 1, 1)
    Image.new("RGB", (50, 40)).save(bad)
    mended, snapshot = run()
    assert (mended.indexed, snapshot.rows("failures"), snapshot.rows("images")) == (1, 0, 7)


def test_a_picture_that_breaks_leaves_the_images(
    run: Callable[..., object], pictures: Path, tmp_path: Path
) -> None:
    run()
    sorted(pictures.iterdir())[0].write_bytes(b"<html>")
    account, snapshot = run()
    assert (account.failed, snapshot.rows("images"), snapshot.rows("failures")) == (1, 5, 1)


def test_commits_on_the_way_add_up_to_the_same_index(
    run: Callable[..., object], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segrec_batch.pipeline.run.COMMIT_SECONDS", -1.0)
    first, snapshot = run()
    assert (first.commits, snapshot.version, snapshot.rows("images")) == (1, 1, 6)
    changed, gone, *_ = sorted(pictures.iterdir())
    Image.new("RGB", (50, 40), "blue").save(changed)
    gone.unlink()
    second, snapshot = run()
    assert (second.commits, snapshot.version, snapshot.rows("images")) == (2, 3, 5)
    assert uris(str(tmp_path / "index")) == sorted(p.name for p in pictures.iterdir())


def test_only_what_lies_below_the_listed_folder_can_be_gone(
    run: Callable[..., object], scenes: Path, model_dir: str, tmp_path: Path
) -> None:
    run()
    other = str(scenes / "images" / "place_02")
    account, snapshot = index_pictures(other, model_dir, str(tmp_path / "index"), "cpu")
    assert (account.gone, snapshot.rows("images")) == (0, 12)


def test_another_model_is_refused_by_name(
    run: Callable[..., object], model: Model, pictures: Path, tmp_path: Path
) -> None:
    run()
    from dataclasses import replace

    other = replace(model, spec=replace(model.spec, minmax=False))
    other.save(str(tmp_path / "other"))
    with pytest.raises(IndexStateError, match=f"{model.model_id}.*{other.model_id}"):
        index_pictures(str(pictures), str(tmp_path / "other"), str(tmp_path / "index"), "cpu")


def test_a_lost_picture_stops_publication(
    run: Callable[..., object], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = run()
    Image.new("RGB", (50, 40)).save(pictures / "a.png")
    Image.new("RGB", (50, 40)).save(pictures / "b.png")
    process = chain.process

    def lossy(manifest: pa.Table, *rest: object) -> Iterator[pa.Table]:
        return process(manifest.slice(1), *rest)

    monkeypatch.setattr(chain, "process", lossy)
    with pytest.raises(AccountingError, match="8 pictures listed, but 7 accounted for"):
        run()
    assert store.open_snapshot(str(tmp_path / "index")).version == before.version


def test_a_picture_counted_twice_stops_publication(
    run: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = chain.process

    def doubled(*arguments: object) -> Iterator[pa.Table]:
        for receipts in process(*arguments):
            yield from (receipts, receipts)

    monkeypatch.setattr(chain, "process", doubled)
    with pytest.raises(AccountingError):
        run()
    assert uris(str(tmp_path / "index")) == []


def test_cuda_without_a_gpu_is_an_error(pictures: Path, model_dir: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no GPU"):
        index_pictures(str(pictures), model_dir, str(tmp_path / "index"), "cuda")


def test_no_pictures_is_an_error_that_makes_no_index(model_dir: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match="no pictures found"):
        index_pictures(str(tmp_path), model_dir, str(tmp_path / "index"), "cpu")
    assert not store.exists(str(tmp_path / "index"))


def test_the_stages_run_without_ray(pictures: Path, model_dir: str, tmp_path: Path) -> None:
    (pictures / "html.jpg").write_bytes(b"<html>")
    sorted(pictures.glob("place*"))[0].rename(pictures / "it's 100% [1]*? é.jpg")
    rows = [
        {"uri": str(p), "source_size": p.stat().st_size, "source_etag": "", "known": False}
        for p in sorted(pictures.iterdir())
    ]
    vanished = {**rows[0], "uri": str(pictures / "vanished.jpg")}
    huge = {**rows[0], "uri": str(pictures / "huge.jpg"), "source_size": 2**40}
    rows += [vanished, huge]
    model = load_model(model_dir)
    decoded = decode_batch(pa.Table.from_pylist(rows), model.spec.shapes)
    segmented = SegmentBatch(model_dir, "cpu")(decoded)
    receipts = write_batch(segmented, str(tmp_path), model.spec, model.model_id, "run").to_pylist()
    for receipt in receipts:
        written = tmp_path / receipt["table"] / receipt["path"]
        assert written.stat().st_size == receipt["size"]
    counts = {t: sum(r["rows"] for r in receipts if r["table"] == t) for t in store.TABLES}
    assert (counts["images"], counts["failures"]) == (6, 3)
    failed = {Path(r["uri"]).name: (r["stage"], r["reason"]) for r in segmented.to_pylist()}
    assert failed["html.jpg"] == ("decode", "not a picture")
    assert failed["vanished.jpg"][0] == "read"
    assert failed["huge.jpg"] == ("read", f"{2**40} bytes are more than {2**28}")


def test_image_ids_are_128_bits_of_the_uri() -> None:
    assert image_id("s3://bucket/a.jpg") == image_id("s3://bucket/a.jpg")
    assert len({image_id(f"{i}") for i in range(1000)}) == 1000
    assert len(bytes.fromhex(image_id("a"))) == 16


def test_relative_and_absolute_paths_are_the_same_source(
    run: Callable[..., object], pictures: Path, model_dir: str, tmp_path: Path
) -> None:
    run()
    relative = os.path.relpath(pictures)
    account, _ = index_pictures(relative, model_dir, str(tmp_path / "index"), "cpu")
    assert account.unchanged == 6
