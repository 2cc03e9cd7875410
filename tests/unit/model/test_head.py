"""Tests of the SVM head against scikit-learn."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from segrec_batch.common.errors import ModelError, SegrecError
from segrec_batch.model.backbones import Tap
from segrec_batch.model.backbones.vgg import VGG16_LAYERS as LAYERS
from segrec_batch.model.head import LinearHead, pool, resize
from segrec_batch.model.torch_engine import as_tensors
from segrec_batch.training.sampling import cell_features
from segrec_batch.training.svm import LinearSvm, Scaler, fit_svm
from segrec_batch.training.trainer import Settings, _make_head
from segrec_batch.training.validation import fit_all
from tests.support.builders import TAPS, quick, random_maps, smooth_batch

GRID = (16, 24)  # of conv3_3, the finest tap, at 64 x 96
C = 2.0


@dataclass(frozen=True)
class Fitted:
    """An SVM of four targets, and what it was fitted on: cells of four images."""

    taps: list[Tap]
    maps: dict[str, Tensor]
    cells: NDArray[np.int64]
    features: NDArray[np.float16]
    targets: NDArray[np.int64]
    svm: LinearSvm


def _one(maps: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: m[i : i + 1] for name, m in maps.items()}


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    pixels = smooth_batch(4, seed=3)
    taps = [Tap.parse(t) for t in TAPS]
    maps = random_maps(pixels, [t.layer for t in taps])
    cells = np.arange(GRID[0] * GRID[1])
    parts = [cell_features(_one(maps, i), taps, cells, GRID).half().numpy() for i in range(4)]
    brightness = pixels.mean(axis=3).reshape(4, GRID[0], 4, GRID[1], 4).mean(axis=(2, 4)).ravel()
    targets = np.digitize(brightness, np.quantile(brightness, [0.25, 0.5, 0.75]))
    features = np.concatenate(parts)
    return Fitted(taps, maps, cells, features, targets, fit_svm(features, targets, C))


def test_the_compiled_head_decides_as_the_fitted_svm(fitted: Fitted) -> None:
    tensors = _make_head(fitted.taps, fitted.svm.weights, fitted.svm.bias, torch.zeros(512))
    weights = {tap: tensors[f"svm.{tap}"] for tap in fitted.taps}
    bias = torch.from_numpy(tensors["svm.bias"])
    head = LinearHead(as_tensors(weights), bias, [0, 1, 2, 0])
    compiled = head.decision(fitted.maps)
    assert compiled.shape == (4, 4, *GRID)
    for i in range(4):
        exact = cell_features(_one(fitted.maps, i), fitted.taps, fitted.cells, GRID).numpy()
        expected = fitted.svm.decision(exact).T.reshape(4, *GRID)
        np.testing.assert_allclose(compiled[i].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_fitted_svm_separates_most_cells(fitted: Fitted) -> None:
    actual = fitted.svm.decision(fitted.features)
    assert actual.shape == (len(fitted.features), 4)
    assert (actual.argmax(axis=1) == fitted.targets).mean() > 0.7


def test_two_targets_become_two_opposite_svms(fitted: Fitted) -> None:
    svm = fit_svm(fitted.features, (fitted.targets > 1).astype(np.int64), C)
    np.testing.assert_array_equal(svm.weights[0], -svm.weights[1])
    decision = svm.decision(fitted.features)
    np.testing.assert_allclose(decision[:, 0], -decision[:, 1], rtol=1e-3, atol=1e-3)
    right = decision.argmax(axis=1) == (fitted.targets > 1)
    assert right.mean() > 0.7


def test_scaler_matches_scikit_learn_over_root_width(fitted: Fitted) -> None:
    features = fitted.features[:, :50].copy()
    features[:, 7] = 0.3
    actual = Scaler.of(features).transform(features)
    expected = StandardScaler().fit_transform(features.astype(np.float64)) / 50**0.5
    assert actual.dtype == np.float32
    wide = features.astype(np.float64).std(axis=0) > 1e-3  # narrower columns are not blown up
    assert wide.sum() > 40
    np.testing.assert_allclose(actual[:, wide], expected[:, wide], atol=1e-5)
    np.testing.assert_allclose(actual[:, 7], 0, atol=1e-6)


def test_a_target_that_does_not_occur_never_wins(fitted: Fitted) -> None:
    targets = np.array([0, 1, 3, 4])[fitted.targets]
    svm = fit_all(fitted.features, targets, 6, C)
    decision = svm.decision(fitted.features)
    assert svm.weights.shape == (6, fitted.features.shape[1])
    assert (decision[:, [2, 5]].max(axis=1) < decision[:, [0, 1, 3, 4]].min(axis=1)).all()
    np.testing.assert_array_equal(svm.weights[[0, 1, 3, 4]], fitted.svm.weights)
    np.testing.assert_array_equal(svm.bias[[0, 1, 3, 4]], fitted.svm.bias)


def test_a_single_target_always_wins(fitted: Fitted) -> None:
    svm = fit_all(fitted.features[:9], np.full(9, 1), 3, C)
    assert (svm.decision(fitted.features).argmax(axis=1) == 1).all()


@pytest.mark.parametrize("size", [(64, 96), (72, 104), (80, 56)])  # of whole strides or not
def test_features_of_cells_are_those_of_resized_maps(size: tuple[int, int]) -> None:
    taps = [Tap.parse(t) for t in ("conv4_3", "conv5_3@3", "conv3_3")]
    maps = random_maps(smooth_batch(1, *size), [t.layer for t in taps])
    h, w = maps["conv3_3"].shape[-2:]
    cells = np.random.default_rng(0).choice(h * w, 50)
    resized = [
        F.interpolate(
            pool(maps[tap.layer], tap.window), size=(h, w), mode="bilinear", align_corners=False
        )
        for tap in taps
    ]
    expected = torch.cat(resized, dim=1).flatten(2)[0, :, cells].T
    actual = cell_features(maps, taps, cells, (h, w))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_no_cells_have_no_features() -> None:
    maps = {"conv5_3": torch.rand(1, 512, 4, 6)}
    none = np.zeros(0, np.int64)
    assert cell_features(maps, [Tap("conv5_3")], none, (4, 6)).shape == (0, 512)


def test_scores_are_the_best_of_a_classs_components() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {Tap("conv5_3"): torch.randn(5, 512, generator=generator)}
    head = LinearHead(weights, torch.randn(5, generator=generator), [2, 0, 1, 0, 2])
    maps = {"conv5_3": torch.rand(2, 512, 4, 6, generator=generator)}
    decision, scores = head.decision(maps), head(maps)
    assert scores.shape == (2, 3, 4, 6)
    for k, members in enumerate([[1, 3], [2], [0, 4]]):
        torch.testing.assert_close(scores[:, k], decision[:, members].max(dim=1).values)


def test_a_coarser_input_grid_follows_the_finest_tap() -> None:
    taps = {Tap("conv5_3"): torch.ones(2, 512), Tap("conv4_3"): torch.ones(2, 512)}
    head = LinearHead(taps, torch.zeros(2), [0, 1])
    maps = {"conv5_3": torch.ones(1, 512, 2, 3), "conv4_3": torch.ones(1, 512, 4, 6)}
    assert head.stride == 8
    torch.testing.assert_close(head(maps), torch.full((1, 2, 4, 6), 1024.0))


@pytest.mark.parametrize("window", [3, 5, 11])
def test_pooling_commutes_with_the_one_by_one_convolution(window: int) -> None:
    generator = torch.Generator().manual_seed(window)
    x = torch.randn(2, 16, 5, 7, generator=generator)
    weight = torch.randn(3, 16, 1, 1, generator=generator)
    tap = Tap("conv5_3", window)
    torch.testing.assert_close(
        pool(F.conv2d(x, weight), tap.window),
        F.conv2d(pool(x, tap.window), weight),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("window", [1, 3, 11, 99])
def test_a_window_is_averaged_inside_the_map(window: int) -> None:
    x = torch.rand(1, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    result, half = pool(x, window), window // 2
    for r, c in np.ndindex(4, 6):
        inside = x[..., max(0, r - half) : r + half + 1, max(0, c - half) : c + half + 1]
        torch.testing.assert_close(result[..., r, c], inside.mean(dim=(2, 3)))


@given(layer=st.sampled_from(list(LAYERS)), window=st.integers(0, 60).map(lambda n: 2 * n + 1))
@quick
def test_a_tap_is_read_as_it_is_written(layer: str, window: int) -> None:
    tap = Tap(layer, window)
    assert Tap.parse(str(tap)) == Tap.parse(f"{layer}@{window}") == tap
    assert (tap.source, "@" in str(tap)) == (LAYERS[layer], window > 1)


@pytest.mark.parametrize(
    "text",
    ["", "@3", "conv6_1", "conv5_3@", "conv5_3@2", "conv5_3@0", "conv5_3@-3", "conv5_3@x",
     "conv5_3@3@5", " conv5_3", "conv5_3@1.0"],
)  # fmt: skip
def test_tap_parse_refuses_other_text(text: str) -> None:
    with pytest.raises(ModelError):
        Tap.parse(text)


def test_a_layer_named_twice_is_refused_or_counts_once() -> None:
    # two SVM parts of one name: the head keeps one of them and scores are silently wrong
    try:
        (candidate,) = Settings(layers=("conv5_3,conv4_3,conv5_3@1",), c=(1.0,)).candidates
    except SegrecError:
        return
    assert len(set(candidate.taps)) == len(candidate.taps)


def test_resizing_is_bilinear_upwards_and_an_average_downwards() -> None:
    x = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert resize(x, (8, 12)) is x
    larger = F.interpolate(x, size=(20, 31), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(x, (20, 31)), larger, rtol=1e-4, atol=1e-5)
    for size in ((20, 1), (3, 1), (1, 1)):  # of a column, as of the row that it is when turned
        turned = F.interpolate(x.mT.contiguous(), size=size[::-1], mode="bilinear", antialias=True)
        torch.testing.assert_close(resize(x, size), turned.mT, rtol=1e-4, atol=1e-5)
    column = torch.arange(4.0).expand(1, 1, 2, 4).mT  # (1, 1, 4, 2), 0 to 3 downwards
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(resize(column, (8, 1)).flatten(), expected)
    stripes = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(8).expand(1, 1, 32, 32)
    assert (resize(stripes, (8, 8)) - 0.5).abs().max() < 0.2  # without averaging: 1


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 200), (470, 470)])
@pytest.mark.parametrize("cells", [(16, 24), (156, 156), (941, 40)])
def test_scores_take_any_size_on_any_device(
    device: str, cells: tuple[int, int], size: tuple[int, int]
) -> None:
    """Averaging 156 cells to one is more than a kernel of a GPU can do."""
    scores = torch.rand(2, 3, *cells, generator=torch.Generator().manual_seed(0))
    actual = resize(scores.to(device), size)
    assert actual.device.type == device
    assert actual.shape == (2, 3, *size)
    # channels-last: PyTorch 2.15 resizes others to a single column wrongly on CPUs
    last = scores.contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(last, size, mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-5)
