"""Tests of the stage that runs the model, on each device."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from segrec_batch.common.errors import DeviceError
from segrec_batch.model.bundle import Model
from segrec_batch.model.engines import EngineChoice, load_segmenter
from segrec_batch.model.torch_engine import TorchSegmenter
from segrec_batch.pipeline.segment import SegmentStage
from segrec_batch.pipeline.stage_schema import DECODED, SEGMENTED
from tests.support.builders import smooth_pixels, tiny_model

SHAPES = [(64, 96), (96, 64), (64, 96), (64, 96), (96, 64), (64, 96)]
SIZES = [(64, 96), (30, 20), (50, 60), (64, 96), (400, 300), (2000, 3000)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("bundle"))
    tiny_model().save(folder)
    return folder


TORCH = EngineChoice("torch", "float32")


@pytest.fixture(scope="module", params=["ncnn", "torch"])
def engine(request: pytest.FixtureRequest, device: str) -> EngineChoice:
    if (request.param, device) == ("ncnn", "cuda"):
        pytest.skip("ncnn runs on CPUs")
    return EngineChoice(request.param, "float32", device)


@pytest.fixture
def stage(bundle: str, engine: EngineChoice) -> SegmentStage:
    return SegmentStage(bundle, engine)


def decoded(seed: int = 0) -> pa.Table:
    """Return six images of two shapes, and one that failed before."""
    rows: list[dict[str, Any]] = [
        {
            "uri": f"{i}.png", "shape": shape, "height": height, "width": width,
            "pixels": smooth_pixels(*shape, seed=seed + i).tobytes(),
        }
        for i, (shape, (height, width)) in enumerate(zip(SHAPES, SIZES, strict=True))
    ]  # fmt: skip
    rows.insert(2, {"uri": "broken.png", "stage": "decode", "reason": "not an image"})
    return pa.Table.from_pylist(rows, DECODED)


def assert_close(result: pa.Table, expected: pa.Table) -> None:
    """Assert that rows are equal; other batches round differently."""
    assert result.schema == expected.schema == SEGMENTED
    for a, b in zip(result.to_pylist(), expected.to_pylist(), strict=True):
        for name in ("uri", "stage", "reason", "grid", "counts", "mask_shape", "labels", "common"):
            assert a[name] == b[name], (name, a["uri"])
        if a["feature"]:
            for name in ("feature", "region_features"):
                np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5)
            masks = (np.frombuffer(row["mask"], np.uint8) for row in (a, b))
            assert np.equal(*masks).mean() > 0.999


def test_segment_batch_keeps_order_and_failures(stage: SegmentStage, engine: EngineChoice) -> None:
    table = decoded()
    rows = stage(table).to_pylist()
    assert [row["uri"] for row in rows] == table["uri"].to_pylist()
    assert rows[2] == dict.fromkeys(SEGMENTED.names) | {
        "uri": "broken.png", "stage": "decode", "reason": "not an image"
    }  # fmt: skip
    segmenter = load_segmenter(tiny_model(), engine)
    for row, source in zip(rows, table.to_pylist(), strict=True):
        if source["shape"]:
            pixels = np.frombuffer(source["pixels"], np.uint8).reshape(1, *source["shape"], 3)
            alone = segmenter(pixels.copy(), [tuple(row["mask_shape"])])
            np.testing.assert_allclose(row["feature"], alone.feature[0], rtol=1e-3, atol=1e-5)
            assert row["mask_shape"] == list(alone.masks[0].shape)
            mask = np.frombuffer(row["mask"], np.uint8)
            same = (mask == alone.masks[0].ravel()).mean()
            assert same == 1 if engine.engine == "ncnn" else same > 0.999  # torch rounds by batch
    assert max(rows[-1]["mask_shape"]) == 1024


def test_segment_batch_keeps_pixels_for_descriptors(
    stage: SegmentStage, engine: EngineChoice, tmp_path: Path
) -> None:
    assert stage(decoded())["pixels"].null_count == 7
    described: Model = tiny_model().with_descriptor("hog", {"cell": 8, "block": 2, "bins": 9}, {})
    described.save(str(tmp_path))
    table = decoded()
    assert SegmentStage(str(tmp_path), engine)(table)["pixels"] == table["pixels"]


def test_segment_batch_concurrent_calls_do_not_mix(stage: SegmentStage) -> None:
    tables = [decoded(seed) for seed in range(6)]
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(stage, tables))
    for result, table in zip(results, tables, strict=True):
        assert_close(result, stage(table))


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        (1, torch.OutOfMemoryError("CUDA out of memory")),
        (3, RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
        (3, RuntimeError("GET was unable to find an engine to execute this computation")),
    ],
)
def test_segment_batch_halves_when_out_of_memory(
    bundle: str, limit: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, launch, sizes = SegmentStage(bundle, TORCH), TorchSegmenter.launch, []
    expected = stage(decoded())

    def limited(self: TorchSegmenter, pixels: Any, masks: Any) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > limit:
            raise error
        return launch(self, pixels, masks)

    monkeypatch.setattr(TorchSegmenter, "launch", limited)
    assert_close(stage(decoded()), expected)
    assert sizes == {1: [4, 2, 1, 1, 1, 1, 1, 1], 3: [4, 2, 2, 2]}[limit]


def test_segment_batch_refuses_too_large_image(
    bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TorchSegmenter, "launch", exhausted)
    with pytest.raises(DeviceError, match="too little memory for one image"):
        SegmentStage(bundle, TORCH)(decoded())


def test_segment_batch_other_errors_do_not_halve(
    bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(TorchSegmenter, "launch", broken)
    stage = SegmentStage(bundle, TORCH)
    max_batch = stage.max_batch
    with pytest.raises(RuntimeError, match="no kernel image"):
        stage(decoded())
    assert stage.max_batch == max_batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_segment_batch_full_gpu_goes_on_with_less(tmp_path: Path) -> None:
    side, count = 512, 64
    model = tiny_model()
    replace(model, spec=replace(model.spec, shapes=((side, side),))).save(str(tmp_path))
    stage = SegmentStage(str(tmp_path), EngineChoice("torch", "float32", "cuda"))
    pixels = smooth_pixels(side, side).tobytes()
    row = {"shape": (side, side), "height": 64, "width": 64, "pixels": pixels}
    table = pa.Table.from_pylist([{**row, "uri": str(i)} for i in range(count)], DECODED)
    torch.cuda.reset_peak_memory_stats()
    one = stage(table.slice(0, 1))
    used = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(8 * used / total)
    try:
        result = stage(table)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert stage.max_batch is not None
    assert stage.max_batch < count
    (labels,) = (np.frombuffer(text, np.uint8) for text in one["labels"].to_pylist())
    for text in result["labels"].to_pylist():
        assert (np.frombuffer(text, np.uint8) == labels).mean() > 0.999  # rounding by batch
