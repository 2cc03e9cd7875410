"""Tests of the sampling of training positions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segrec_batch.common.errors import InputError, ModelError
from segrec_batch.images.decode import fit, open_rgb
from segrec_batch.labels.labelled import VOID, Classes, LabelledImage
from segrec_batch.model.backbones import Tap
from segrec_batch.training import trainer
from segrec_batch.training.augment import KINDS
from segrec_batch.training.sampling import (
    Samples,
    Sampling,
    cell_features,
    cell_labels,
    draw_cells,
    sample_images,
)
from segrec_batch.training.trainer import Settings, Trainer, train
from tests.support.builders import quick, random_maps, random_weights, smooth_pixels, write_png

SHAPES = ((64, 96), (96, 64))
TAPS = (Tap("conv4_3"), Tap("conv5_3", 3))
CLASSES = Classes({"car": (8,), "tree": (2,)}, ignore=(11,))


def _skewed(seed: int = 0) -> NDArray[np.int16]:
    """(20, 30) values of very different frequency, a fifth of them void."""
    rng = np.random.default_rng(seed)
    values = rng.choice([VOID, 0, 2, 7, 8], (20, 30), p=[0.2, 0.6, 0.15, 0.04, 0.01])
    values[0, :2] = 8
    return values.astype(np.int16)


@given(positions=st.integers(1, 60), seed=st.integers(0, 99))
@quick
def test_draw_cells_never_draws_void(positions: int, seed: int) -> None:
    labels = _skewed(seed)
    value, cells, weight = draw_cells(labels, positions, np.random.default_rng(seed))
    assert 1 <= len(value) == len(cells) == len(weight) <= positions
    assert VOID not in value
    np.testing.assert_array_equal(labels.ravel()[cells], value)
    assert (weight > 0).all()


def test_draw_cells_oversamples_rare_values() -> None:
    labels = _skewed()
    value, _, _ = draw_cells(labels, 400, np.random.default_rng(0))
    present, counts = np.unique(value, return_counts=True)
    assert present.tolist() == [0, 2, 7, 8]
    assert counts.min() >= 400 // 2 // 4


@pytest.mark.parametrize("positions", [7, 200, 20_001])
def test_draw_cells_weights_are_unbiased(positions: int) -> None:
    labels, rng = _skewed(), np.random.default_rng(0)
    worth = rng.uniform(0, 1, labels.size)  # any quantity of a cell
    draws = [draw_cells(labels, positions, rng) for _ in range(max(10, 60_000 // positions))]
    cells, weights = (np.concatenate([d[i] for d in draws]) for i in (1, 2))
    for value in (0, 2, 7, 8):
        members = labels.ravel() == value
        actual = np.where(members[cells], weights, 0)
        assert actual.sum() / len(draws) == pytest.approx(members.sum(), rel=0.1)
        expected = worth[members].sum()
        assert (actual * worth[cells]).sum() / len(draws) == pytest.approx(expected, rel=0.1)


def test_draw_cells_of_void_image_is_empty() -> None:
    void = np.full((4, 6), VOID, np.int16)
    value, cells, weight = draw_cells(void, 50, np.random.default_rng(0))
    assert (len(value), len(cells), len(weight)) == (0, 0, 0)
    assert cells.dtype == np.int64


@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
@quick
def test_cell_labels_read_centre_pixels(size: tuple[int, int], grid: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(-1, 99, size).astype(np.int16)
    result = cell_labels(labels, grid)
    assert result.shape == grid
    for r, c in ((0, 0), (grid[0] - 1, grid[1] - 1), (grid[0] // 2, grid[1] // 3)):
        y, x = (
            (2 * i + 1) * side // (2 * n) for i, side, n in zip((r, c), size, grid, strict=True)
        )
        assert result[r, c] == labels[y, x]


def test_samples_columns_follow_selected_taps() -> None:
    taps = [Tap("conv1_1"), Tap("conv2_1"), Tap("conv3_1"), Tap("conv1_1", 3)]
    widths = [64, 128, 256, 64]
    parts = [np.full((5, w), i, np.float16) + np.arange(w) / 1024 for i, w in enumerate(widths)]
    features = np.concatenate(parts, axis=1).astype(np.float16)
    none = np.zeros(5)
    values, numbers = none.astype(np.int16), none.astype(np.int64)
    groups, centre = none.astype(object), torch.zeros(512)
    samples = Samples(features, values, none, groups, centre, numbers, numbers)
    for expected in ([2, 0], [3], [1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0]):
        actual = samples.columns(taps, [taps[i] for i in expected])
        np.testing.assert_array_equal(
            actual, np.concatenate([parts[i] for i in expected], axis=1, dtype=np.float16)
        )


def _images(folder: Path, values: list[list[int]]) -> list[LabelledImage]:
    """Images of 90 x 120 with masks of equal upright stripes of the values."""
    items = []
    for i, stripes in enumerate(values):
        image = write_png(folder / "i" / f"{i}.png", smooth_pixels(90, 120, seed=i))
        mask = np.array(stripes, np.uint8).repeat(120 // len(stripes))[None].repeat(90, axis=0)
        path = write_png(folder / "m" / f"{i}.png", mask)
        items.append(LabelledImage(str(image), str(path), f"group_{i}"))
    return items


def _maps(pixels: NDArray[np.uint8]) -> Mapping[str, Tensor]:
    return random_maps(pixels, ["conv4_3", "conv5_3"])


def _sampled(items: list[LabelledImage], sampling: Sampling) -> Samples:
    return sample_images(items, CLASSES, TAPS, SHAPES, _maps, sampling, iter)


def test_sample_images_features_match_cells(tmp_path: Path) -> None:
    items = _images(tmp_path, [[0, 8, 2, 11], [11], [2, 2, 7]])
    samples = _sampled(items, Sampling(positions=60))
    assert samples.features.dtype == np.float16
    lengths = {len(v) for v in (samples.features, samples.values, samples.weights, samples.groups)}
    assert lengths == {120}, "two images of 60 positions; one is void"
    assert set(samples.values[samples.groups == "group_0"]) == {0, 2, 8}
    assert set(samples.values[samples.groups == "group_2"]) == {2, 7}
    assert samples.weights[samples.groups == "group_0"].sum() == pytest.approx(72, rel=0.3)
    image, *_ = open_rgb(Path(items[2].image).read_bytes())
    every = cell_features(_maps(fit(image, SHAPES)[None]), TAPS, np.arange(96), (8, 12))
    known = {row.tobytes() for row in every.half().numpy()}
    assert {row.tobytes() for row in samples.features[samples.groups == "group_2"]} <= known
    assert samples.centre.shape == (512,)
    assert samples.centre.sum().abs() < 1e-4


def test_sample_images_is_reproducible(tmp_path: Path) -> None:
    items = _images(tmp_path, [[0, 8], [2, 0]])
    first, again, other = (_sampled(items, Sampling(20, ("crop",), 2, s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.features, again.features)
    np.testing.assert_array_equal(first.values, again.values)
    assert not np.array_equal(first.features, other.features)


@pytest.mark.parametrize("workers", [2, 5])
def test_sample_images_is_independent_of_workers(workers: int, tmp_path: Path) -> None:
    items = _images(tmp_path, [[0, 8], [2, 0], [8, 2, 7], [0, 2]])
    sampling = Sampling(20, ("crop",), 2)
    alone = _sampled(items, sampling)
    shared = sample_images(items, CLASSES, TAPS, SHAPES, _maps, sampling, iter, None, workers)
    for name in ("features", "values", "weights", "groups", "images", "variants"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(shared, name))
    assert torch.equal(alone.centre, shared.centre)


def test_sample_images_counts_variants(tmp_path: Path) -> None:
    items = _images(tmp_path, [[0, 8, 2]])
    sampling = Sampling(10, KINDS, 2)
    assert sampling.variants == 11
    samples = _sampled(items, sampling)
    assert len(samples.values) == 11 * 8  # 5 anywhere and 1 of each of the 3 values
    assert VOID not in samples.values


@pytest.mark.parametrize(
    ("stripes", "absent"),
    [
        ([[8, 0], [0, 8]], r"tree \[2\]; the masks of 2 images have the values 0, 8:"),
        ([[0], [8, 11]], r"tree \[2\]; .* the values 0, 8:"),
        ([[0, 7], [3]], r"car \[8\], tree \[2\]; .* the values 0, 3, 7:"),
    ],
)
def test_train_names_class_without_pixels(
    stripes: list[list[int]], absent: str, tmp_path: Path
) -> None:
    settings = Settings(layers=("conv1_1",), c=(1.0,), shapes=SHAPES, sampling=Sampling(20))
    with pytest.raises(InputError, match=f"no labelled pixels of.*{absent}"):
        train(_images(tmp_path, stripes), CLASSES, random_weights(), settings)


def test_train_names_class_between_cells(tmp_path: Path) -> None:
    items = _images(tmp_path, [[0, 8], [8, 0]])
    mask = np.array(Image.open(items[1].mask))
    mask[0, 0] = 2
    write_png(Path(items[1].mask), mask)
    settings = Settings(layers=("conv4_3",), c=(1.0,), shapes=SHAPES, sampling=Sampling(20))
    with pytest.raises(
        InputError, match=r"too few labelled pixels to learn from: tree \(1\); none"
    ):
        train(items, CLASSES, random_weights(), settings)


def test_train_rejects_masks_of_void_only(tmp_path: Path) -> None:
    settings = Settings(layers=("conv1_1",), c=(1.0,), shapes=SHAPES, sampling=Sampling(20))
    with pytest.raises(InputError, match="no labelled pixel"):
        train(_images(tmp_path, [[11], [11]]), CLASSES, random_weights(), settings)


def test_samples_count_pixels_of_whole_masks(tmp_path: Path) -> None:
    items = _images(tmp_path, [[0, 8, 2, 11], [11], [2, 2, 7]])
    quarter, third = 90 * 30, 90 * 40
    assert list(_sampled(items, Sampling(20, ("flip",))).pixels) == [
        {VOID: quarter, 0: quarter, 2: quarter, 8: quarter}, {VOID: 4 * quarter},
        {2: 2 * third, 7: third},
    ]  # fmt: skip


@pytest.mark.parametrize("value", [1e5, -1e5, np.nan])
def test_sample_images_refuses_values_beyond_float16(value: float, tmp_path: Path) -> None:
    def maps(pixels: NDArray[np.uint8]) -> Mapping[str, Tensor]:
        return {name: torch.full_like(x, value) for name, x in _maps(pixels).items()}

    items = _images(tmp_path, [[0, 8, 2]])
    with pytest.raises(ModelError, match="values beyond ±65,504, or NaN: give other"):
        sample_images(items, CLASSES, TAPS, SHAPES, maps, Sampling(20), iter)


def test_wide_features_have_fewer_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images share 3 × 33 positions of 512 values, or 3 × 22 of 768 values."""
    monkeypatch.setattr(trainer, "MAX_VALUES", 3 * 33 * 512)
    items = _images(tmp_path, [[0, 8, 2], [8, 0, 2], [2, 8, 0]])
    for layers, positions in (("conv5_3", 33), ("conv5_3,conv3_3", 22)):
        settings = Settings((layers,), (1.0,), SHAPES, sampling=Sampling(100))
        fitted = Trainer(items, CLASSES, random_weights(), settings)
        counts = np.bincount(fitted.samples.images)
        assert (counts <= positions).all()
        assert (counts >= positions - 3).all()  # half of them in equal parts for three values
