"""Tests of the indexing job: complete counts and consistent rows."""

import os
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import segrec_batch
from segrec_batch.common.errors import DeviceError, InputError
from segrec_batch.distributed.scratch import scratch_folder
from segrec_batch.index import snapshot as store
from segrec_batch.index.column_values import image_id
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.model.engine_choice import choose_engine
from segrec_batch.model.engines import load_segmenter
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, index_images
from segrec_batch.pipeline.segment import SegmentStage
from segrec_batch.pipeline.stage_schema import MANIFEST
from segrec_batch.pipeline.stages import decode_batch, write_batch
from segrec_batch.sources.roots import MAX_IMAGE_BYTES
from tests.support.builders import uris

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_listed_images_are_indexed_or_failed(index: str, scenes: Path) -> None:
    listed = [p.name for p in (scenes / "images").rglob("*.jpg")]
    assert uris(index) == sorted(listed)
    assert uris(index, "failures") == ["broken.jpg"]


def test_failure_has_stage_and_reason(index: str) -> None:
    rows = segrec_batch.connect(index).sql("SELECT stage, reason FROM failures").fetchall()
    assert rows == [("decode", "not an image")]


def test_coverages_agree_with_regions_and_masks(index: str) -> None:
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


def test_region_features_average_to_image_feature(index: str) -> None:
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


def test_rows_equal_model_output(index: str, model: Model) -> None:
    connection = segrec_batch.connect(index)
    uri, feature, mask, width, height = connection.sql(
        "SELECT uri, feature, mask, width, height FROM images ORDER BY uri LIMIT 1"
    ).fetchall()[0]
    pixels = np.asarray(Image.open(uri).resize((144, 112), Image.Resampling.BILINEAR))
    segmentation = load_segmenter(model, choose_engine())(pixels[None].copy(), [(120, 160)])
    np.testing.assert_allclose(feature, segmentation.feature[0], rtol=1e-2, atol=1e-3)
    stored = np.asarray(Image.open(BytesIO(mask)))
    assert stored.shape == (height, width) == (120, 160)
    assert (stored == segmentation.masks[0]).mean() > 0.99


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_gpu_is_an_error(images: Path, model_dir: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no GPU"):
        index_images(Request(str(images)), model_dir, str(tmp_path / "index"), Execution("cuda"))


def test_empty_listing_makes_no_index(model_dir: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match="no images found"):
        index_images(Request(str(tmp_path)), model_dir, str(tmp_path / "index"), Execution("cpu"))
    assert not store.exists(str(tmp_path / "index"))


def test_empty_tasks_need_no_cluster() -> None:
    code = "import ray; from segrec_batch.distributed.tasks import run_tasks"
    code += "; print(list(run_tasks(len, iter(()))))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(ray.is_initialized())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\nFalse\n"


def test_stages_run_without_ray(images: Path, model_dir: str, tmp_path: Path) -> None:
    (images / "html.jpg").write_bytes(b"<html>")
    sorted(images.glob("place*"))[0].rename(images / "it's 100% [1]*? é.jpg")
    rows = [
        {"uri": str(p), "source_size": p.stat().st_size, "source_etag": ""}
        for p in sorted(images.iterdir())
    ]
    vanished = {**rows[0], "uri": str(images / "vanished.jpg")}
    huge = {**rows[0], "uri": str(images / "huge.jpg"), "source_size": 2**40}
    link = {**rows[0], "uri": str(images / "link.jpg"), "problem": "a link to itself"}
    rows += [vanished, huge, link]
    model = load_model(model_dir)
    decoded = decode_batch(pa.Table.from_pylist(rows, MANIFEST), model.spec.shapes)
    segmented = SegmentStage(model_dir, choose_engine())(decoded)
    receipts = write_batch(segmented, str(tmp_path), model.spec, model.model_id, "run").to_pylist()
    for receipt in receipts:
        written = tmp_path / receipt["table"] / receipt["path"]
        assert written.stat().st_size == receipt["size"]
    counts = {t: sum(r["rows"] for r in receipts if r["table"] == t) for t in store.TABLES}
    assert (counts["images"], counts["failures"]) == (6, 4)
    failed = {Path(r["uri"]).name: (r["stage"], r["reason"]) for r in segmented.to_pylist()}
    assert failed["html.jpg"] == ("decode", "not an image")
    assert failed["vanished.jpg"][0] == "read"
    assert failed["huge.jpg"] == ("decode", f"{2**40} bytes are more than {MAX_IMAGE_BYTES}")
    assert failed["link.jpg"] == ("read", "a link to itself")
    parts = {(r["table"] == "failures", Path(r["path"]).name) for r in receipts}
    assert len(parts) == len({name for _, name in parts}) == 2, "one part, and one of failures"


@pytest.mark.slow
def test_job_without_address_starts_private_ray(ray_cluster: None) -> None:
    """Ray by default would join the cluster of this process, and end with it."""
    code = """
import ray
from segrec_batch.distributed import cluster
with cluster.join():
    print(ray.get_runtime_context().gcs_address)
"""
    addresses = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "RAY_ADDRESS": address},
            stdout=subprocess.PIPE, text=True, check=True,
        ).stdout.strip()
        for address in (os.environ["RAY_ADDRESS"], "")
    ]  # fmt: skip
    assert addresses[0] == os.environ["RAY_ADDRESS"] != addresses[1]


def test_scratch_of_dead_processes_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = """
import os
from segrec_batch.distributed.scratch import scratch_folder
with scratch_folder("segrec-test-") as folder:
    (folder / "large").touch()
    print(folder, flush=True)
    os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    dead = Path(done.stdout.decode().strip())
    with scratch_folder("segrec-test-") as live:
        assert dead.exists(), "too young to tell"
        for folder in (dead, live):
            os.utime(folder, (1e9, 1e9))
        with scratch_folder("segrec-test-"):
            assert not dead.exists()
            assert live.exists()
    assert list(tmp_path.iterdir()) == []


def test_image_id_is_hash_of_uri() -> None:
    assert image_id("s3://bucket/a.jpg") == image_id("s3://bucket/a.jpg")
    assert len({image_id(f"{i}") for i in range(1000)}) == 1000
    assert len(bytes.fromhex(image_id("a"))) == 16
