"""Tests of segmenters in every engine: maps, counts and features agree."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from segrec_batch.common.errors import DeviceError
from segrec_batch.images.decode import decode
from segrec_batch.model.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from segrec_batch.model.bundle import Model
from segrec_batch.model.class_maps import normalise
from segrec_batch.model.device import full_float32, resolve_device
from segrec_batch.model.engines import EngineChoice, load_segmenter
from segrec_batch.model.ncnn_engine import NcnnSegmenter
from segrec_batch.model.segmentation import Segmentation, Segmenter
from segrec_batch.model.spec import Scaling
from segrec_batch.model.torch_engine import Normalise, TorchSegmenter
from tests.support.builders import random_maps, smooth_batch, smooth_pixels, tiny_model

B, H, W, K = 4, 64, 96, 3
IMAGES = smooth_batch(B, H, W)
EXACT, ROUGH, NCNN = ("torch", "float32"), ("torch", "bfloat16"), ("ncnn", "float32")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

Engine = tuple[str, str]


@pytest.fixture(scope="module")
def segmenters(device: str) -> Mapping[Engine, Segmenter]:
    engines = [EXACT, ROUGH, *([NCNN] if device == "cpu" else [])]
    return {e: load_segmenter(tiny_model(), EngineChoice(*e, device)) for e in engines}


@pytest.fixture(scope="module", params=[EXACT, ROUGH, NCNN], ids=" ".join)
def segmenter(request: pytest.FixtureRequest, segmenters: Mapping[Engine, Segmenter]) -> Segmenter:
    if request.param not in segmenters:
        pytest.skip("ncnn runs on CPUs")
    return segmenters[request.param]


@pytest.fixture(scope="module")
def found(segmenter: Segmenter) -> Segmentation:
    return segmenter(IMAGES)


def scores(segmenter: Segmenter, images: NDArray[np.uint8]) -> torch.Tensor:
    if isinstance(segmenter, NcnnSegmenter):
        return torch.from_numpy(np.stack([segmenter.score(pixels)[1] for pixels in images]))
    assert isinstance(segmenter, TorchSegmenter)
    with full_float32():
        found: torch.Tensor = segmenter.head(segmenter.maps(images))
    return found.cpu()


@pytest.mark.parametrize("engine", [EXACT, ROUGH], ids=" ".join)
def test_arithmetic_is_on_the_device(
    engine: Engine, segmenters: Mapping[Engine, Segmenter], device: str
) -> None:
    segmenter = segmenters[engine]
    assert isinstance(segmenter, TorchSegmenter)
    maps = segmenter.maps(IMAGES)
    assert {m.device.type for m in maps.values()} == {device}
    assert {str(m.dtype).removeprefix("torch.") for m in maps.values()} == {engine[1]}


def test_shapes_and_types_are_as_documented(found: Segmentation) -> None:
    arrays = {k: v for k, v in vars(found).items() if isinstance(v, np.ndarray)}
    assert {k: (v.shape, v.dtype) for k, v in arrays.items()} == {
        "labels": ((B, H // 16, W // 16), np.uint8),
        "common": ((B, 32, 32), np.uint8),
        "counts": ((B, K), np.int64),
        "feature": ((B, 512), np.float32),
        "region_features": ((B, K, 512), np.float32),
        "sign_bits": ((B, 8), np.int64),
    }
    assert found.masks == [], "none were asked for"
    assert all(np.isfinite(v).all() for v in arrays.values())


def test_counts_regions_and_features_agree(found: Segmentation) -> None:
    assert set(found.labels.ravel()) == {0, 1, 2}, "the head must tell the classes apart"
    expected = [[(labels == k).sum() for k in range(K)] for labels in found.labels]
    np.testing.assert_array_equal(found.counts, expected)
    assert (found.counts.sum(axis=1) == H * W // 256).all()
    whole = (found.counts[..., None] * found.region_features).sum(axis=1) / (H * W // 256)
    np.testing.assert_allclose(whole, found.feature, rtol=1e-4, atol=1e-6)
    absent = found.counts == 0
    assert (found.region_features[absent] == 0).all()
    assert (found.region_features[~absent].max(axis=1) > 0).all()


def test_features_are_the_mean_of_the_deepest_maps(
    segmenters: Mapping[Engine, Segmenter],
) -> None:
    expected = random_maps(IMAGES, ["conv5_3"])["conv5_3"].mean(dim=(2, 3)).numpy()
    for engine, segmenter in segmenters.items():
        feature = segmenter(IMAGES).feature
        if engine == ROUGH:
            assert np.linalg.norm(feature - expected) / np.linalg.norm(expected) < 0.01
        else:
            np.testing.assert_allclose(feature, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(H, W), (240, 320), (7, 5), (1, 200), (1, 1)])
def test_masks_come_at_any_size(segmenter: Segmenter, shape: tuple[int, int]) -> None:
    sizes = [(32, 32), (9, 8), shape, shape]
    masks = segmenter(IMAGES, sizes).masks
    assert [(mask.shape, mask.dtype) for mask in masks] == [(size, np.uint8) for size in sizes]
    if shape[0] >= H:  # upwards: plain bilinear
        own = scores(segmenter, IMAGES)[2:]
        expected = F.interpolate(own, shape, mode="bilinear", align_corners=False).argmax(dim=1)
        assert (np.stack(masks[2:]) == expected.numpy()).mean() > 0.999


def test_all_class_maps_come_from_the_same_scores(
    segmenter: Segmenter, found: Segmentation
) -> None:
    own, common = (segmenter(IMAGES, [s] * B).masks for s in ((H // 16, W // 16), (32, 32)))
    np.testing.assert_array_equal(own, found.labels)
    np.testing.assert_array_equal(common, found.common)


@pytest.mark.parametrize("images", [2, 1 / K], ids=["two images", "a class of one"])
def test_masks_do_not_depend_on_how_many_are_resized_together(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, images: float
) -> None:
    sizes = [(50, 70), (50, 70), (50, 70), (8, 9)]
    together = segmenter(IMAGES, sizes).masks
    monkeypatch.setattr("segrec_batch.model.torch_engine._MAX_SCORES", int(images * K * 50 * 70))
    for mask, alike in zip(segmenter(IMAGES, sizes).masks, together, strict=True):
        np.testing.assert_array_equal(mask, alike)


def test_launched_results_do_not_change_later(segmenter: Segmenter, found: Segmentation) -> None:
    launched = [segmenter.launch(IMAGES[::step].copy()) for step in (1, -1, 1, -1)]
    for i, one in enumerate(launched):
        np.testing.assert_array_equal(one.result().labels, found.labels[:: (-1) ** i])


def test_segmentation_does_not_depend_on_the_batch(
    segmenter: Segmenter, found: Segmentation
) -> None:
    for i in range(B):
        alone: Segmentation = segmenter(IMAGES[i : i + 1])
        np.testing.assert_allclose(alone.feature[0], found.feature[i], rtol=1e-2, atol=1e-4)
        assert (alone.common[0] == found.common[i]).mean() > 0.99
        assert (alone.labels[0] == found.labels[i]).mean() > 0.95
        bits = np.unpackbits((alone.sign_bits[0] ^ found.sign_bits[i]).view(np.uint8))
        assert bits.sum() <= 5


def test_bfloat16_labels_are_those_of_float32(segmenters: Mapping[Engine, Segmenter]) -> None:
    images = smooth_batch(12, H, W, seed=4)
    exact, rough = (segmenters[e](images) for e in (EXACT, ROUGH))
    assert (exact.labels == rough.labels).mean() >= 0.95  # measured 0.995 to 1
    assert (exact.common == rough.common).mean() >= 0.95  # measured 0.995 to 1
    bits = np.unpackbits((exact.sign_bits ^ rough.sign_bits).view(np.uint8), axis=1).sum(axis=1)
    assert bits.max() < 512 * 0.05  # measured 1 %


def test_a_trained_head_says_the_same_in_bfloat16(model: Model, scenes: Path, device: str) -> None:
    exact, rough = TorchSegmenter(model), TorchSegmenter(model, device, "bfloat16")
    same = []
    for path in sorted((scenes / "images").rglob("*.jpg")):
        pixels = decode(path.read_bytes(), model.spec.shapes).pixels[None]
        one, two = (s(pixels, [(120, 160)]).masks[0] for s in (exact, rough))
        same.append((one == two).mean())
    assert np.mean(same) >= 0.995


def test_minmax_undoes_an_affine_change_of_brightness() -> None:
    pixels = smooth_batch(3)
    darker = np.rint(0.5 * pixels + 20).astype(np.uint8)
    scale = Normalise(Scaling(True, IMAGENET_MEAN, IMAGENET_STD))
    a, b = (scale(torch.from_numpy(x)) for x in (pixels, darker))
    spread = int(np.ptp(darker, axis=(1, 2, 3)).min())
    assert (a - b).abs().max() < 1.5 / spread / min(IMAGENET_STD)  # rounding to whole values
    plain = Normalise(Scaling(False, IMAGENET_MEAN, IMAGENET_STD))
    c, d = (plain(torch.from_numpy(x)) for x in (pixels, darker))
    assert (c - d).abs().max() > 10 * (a - b).abs().max()


@pytest.mark.parametrize("minmax", [True, False])
def test_normalisation_is_the_formula(minmax: bool) -> None:
    pixels = smooth_batch(2, 32, 48)
    pixels = np.stack([pixels[0].clip(30, 200), pixels[1].clip(60, 240)])
    scaled = pixels.astype(np.float64) / 255
    if minmax:
        low, high = (f(pixels, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
        scaled = (pixels - low) / (high - low).astype(np.float64)
    expected = ((scaled - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
    scaling = Scaling(minmax, IMAGENET_MEAN, IMAGENET_STD)
    found = Normalise(scaling)(torch.from_numpy(pixels))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    for image, reference in zip(pixels, expected, strict=True):
        np.testing.assert_allclose(normalise(image, scaling), reference, atol=1e-5)


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_an_image_of_one_value_has_finite_results(segmenter: Segmenter, value: int) -> None:
    one: Segmentation = segmenter(np.full((1, H, W, 3), value, np.uint8))
    black: Segmentation = segmenter(np.zeros((1, H, W, 3), np.uint8))
    assert scores(segmenter, np.full((1, H, W, 3), value, np.uint8)).isfinite().all()
    assert np.isfinite(one.feature).all()
    np.testing.assert_array_equal(one.feature, black.feature)
    assert one.counts.sum() == H * W // 256


def test_a_low_image_and_a_wide_one_pass(segmenter: Segmenter) -> None:
    for shape in ((16, 16), (32, 96), (96, 32)):
        found: Segmentation = segmenter(smooth_pixels(*shape)[None])
        assert found.labels.shape == (1, shape[0] // 16, shape[1] // 16)


def _labels(segmenter: Segmenter) -> NDArray[np.uint8]:
    labels: NDArray[np.uint8] = segmenter(IMAGES).labels
    return labels


def test_the_minmax_field_is_obeyed() -> None:
    dark = (IMAGES // 8).astype(np.uint8)
    scaled, plain = (TorchSegmenter(tiny_model(minmax=m)) for m in (True, False))
    inputs = [s.maps.normalise(torch.from_numpy(dark)).amax() for s in (scaled, plain)]
    assert inputs[0] > 1.5
    assert inputs[1] < 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_launching_waits_for_nothing(precision: str) -> None:
    segmenter, sizes = TorchSegmenter(tiny_model(), "cuda", precision), [(H, W)] * B
    expected = segmenter(IMAGES, sizes)
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = segmenter.launch(IMAGES, sizes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (launched.result().labels == expected.labels).mean() > 0.99


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:99"])
def test_missing_gpu_is_an_error(name: str) -> None:
    with pytest.raises(DeviceError, match="--device cpu"):
        resolve_device(name)
    with pytest.raises(DeviceError):
        TorchSegmenter(tiny_model(), name)


@pytest.mark.parametrize("name", ["gpu", "", "CUDA", "mps", "cpu0"])
def test_a_device_that_does_not_exist_is_an_error(name: str) -> None:
    with pytest.raises(DeviceError):
        resolve_device(name)


def test_auto_is_the_gpu_or_the_cpu() -> None:
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == "cpu"


def test_devices_and_engines_give_labels_of_torch_on_cpu(
    segmenters: Mapping[Engine, Segmenter],
) -> None:
    cpu = _labels(TorchSegmenter(tiny_model()))
    for engine, segmenter in segmenters.items():
        assert (_labels(segmenter) == cpu).mean() >= (0.95 if engine == ROUGH else 0.99)
