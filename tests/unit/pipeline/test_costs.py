"""Tests of the costs of a run in its statistics and commits."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segrec_batch.index import snapshot as store
from segrec_batch.index.history import history
from segrec_batch.pipeline import chain, stages
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, index_images
from segrec_batch.pipeline.run_stats import RunStats

pytestmark = pytest.mark.usefixtures("ray_cluster")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_commit_stores_cost_of_stages(index: str, scenes: Path) -> None:
    summary: dict[str, Any] = dict(history(index)[0].info["segrec"])
    assert summary["bytes_read"] == size(scenes / "images") + len(b"no image")
    assert summary["bytes_written"] == sum(
        file.size for file in store.open_snapshot(index).all_files
    )
    assert summary["reasons"] == {"decode: not an image": 1}
    assert 0 <= summary["starved"] < 1
    cost = summary["stages"]
    assert sum(stage["share"] for stage in cost.values()) == pytest.approx(1, abs=1e-3)
    counts = {"read": 25, "decode": 25, "segment": 24, "write": 25}
    for name, images in counts.items():
        assert cost[name]["seconds"] > 0
        assert cost[name]["images_per_second"] == pytest.approx(
            images / cost[name]["seconds"], rel=0.5
        )
    assert cost["describe"] == {"seconds": 0, "share": 0, "images_per_second": None}


@pytest.mark.slow
def test_run_stats_exclude_work_of_dead_workers(
    images: Path, model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = str(tmp_path / "has died")

    def dies_once(segmented: pa.Table, **options: Any) -> pa.Table:
        receipts = stages.write_batch(segmented, **options)
        if not os.path.exists(mark):  # noqa: PTH110 - no import in a function that Ray ships
            os.mkdir(mark)  # noqa: PTH102
            os._exit(1)
        return receipts

    monkeypatch.setattr(chain, "write_batch", dies_once)
    stats = run(images, model_dir, tmp_path)
    assert Path(mark).exists()
    assert (stats.indexed, stats.failed) == (6, 0)
    assert stats.cost["bytes_read"] == size(images)
    assert all(stats.cost[stage] > 0 for stage in ("read", "decode", "segment", "write"))
    assert len(list((tmp_path / "index" / "images").glob("*.parquet"))) == 2, "one by the dead"
    assert stats.bytes_written == sum(
        file.size for file in store.open_snapshot(str(tmp_path / "index")).all_files
    )


def run(images: Path, model: str, folder: Path) -> RunStats:
    execution = Execution("cpu", batch_size=4)
    stats, _ = index_images(Request(str(images)), model, str(folder / "index"), execution)
    return stats
