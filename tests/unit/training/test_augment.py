"""Tests of augmentations."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.labels.labelled import VOID
from segrec_batch.training.augment import KINDS, augment

COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255]], np.uint8
)
H, W = 90, 120
SEEDS = range(6)


def _blocks(void: bool = False) -> NDArray[np.int16]:
    """Labels 0 to 4 in blocks without symmetry."""
    coarse = np.random.default_rng(1).integers(0, len(COLOURS), (6, 8)).astype(np.int16)
    labels = coarse.repeat(H // 6, axis=0).repeat(W // 8, axis=1)
    if void:
        labels[30:60, 45:75] = VOID
    return labels


def _drawn(labels: NDArray[np.int16]) -> Image.Image:
    return Image.fromarray(
        np.where(labels[..., None] == VOID, 77, COLOURS[labels]).astype(np.uint8)
    )


def _augment(
    kind: str, seed: int, void: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    labels = _blocks(void)
    image, result = augment(_drawn(labels), labels, kind, np.random.default_rng(seed))
    assert (image.mode, result.dtype) == ("RGB", np.int16)
    pixels = np.asarray(image)
    assert pixels.shape[:2] == result.shape
    return pixels, result


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_augment_keeps_image_and_mask_aligned(kind: str, seed: int) -> None:
    pixels, labels = _augment(kind, seed)
    same = (pixels[:, :, None] == COLOURS).all(axis=-1)  # (h, w, colours)
    pure, drawn = same.any(axis=-1), same.argmax(axis=-1)  # not mixed by interpolation
    known = labels != VOID
    assert (pure & known).sum() > 0.7 * known.sum()
    np.testing.assert_array_equal(drawn[pure & known], labels[pure & known])
    assert not pure[~known].any(), "void lies on the added border only"
    assert len(np.unique(labels[known])) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_augment_keeps_void(kind: str) -> None:
    pixels, labels = _augment(kind, 0, void=True)
    old = (pixels == 77).all(axis=-1)
    assert old.sum() > 100
    assert (labels[old] == VOID).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_augment_adds_void_only_in_borders(kind: str, seed: int) -> None:
    pixels, labels = _augment(kind, seed)
    void = labels == VOID
    grey = (pixels == 128).all(axis=-1)
    if kind in ("flip", "crop", "zoom"):
        assert not void.any()
        return
    assert (grey == void).mean() > 0.98
    assert not void[30:60, 40:80].any()
    if kind == "rotate":
        assert void.mean() < 0.25
    else:
        inner = np.argwhere(~void)
        (top, left), (bottom, right) = inner.min(axis=0), inner.max(axis=0) + 1
        assert len(inner) == (bottom - top) * (right - left)
        assert abs(top - (H - bottom)) <= 1
        assert abs(left - (W - right)) <= 1
        assert 0.49 < (bottom - top) / H < 0.81


@pytest.mark.parametrize("seed", SEEDS)
def test_augment_crop_and_zoom_window_sizes(seed: int) -> None:
    whole = _blocks()
    crop, zoom = (_augment(kind, seed)[1] for kind in ("crop", "zoom"))
    assert 0.59 < crop.shape[0] / H < 0.91
    assert abs(crop.shape[0] / H - crop.shape[1] / W) < 0.02
    h, w = zoom.shape
    top, left = round((H - h) / 2), round((W - w) / 2)
    assert 0.49 < h / H < 0.81
    np.testing.assert_array_equal(zoom, whole[top : top + h, left : left + w])


def test_augment_flip_mirrors() -> None:
    pixels, labels = _augment("flip", 0)
    np.testing.assert_array_equal(labels, _blocks()[:, ::-1])
    np.testing.assert_array_equal(pixels, COLOURS[_blocks()[:, ::-1]])


@pytest.mark.parametrize("kind", KINDS)
def test_augment_is_reproducible(kind: str) -> None:
    for result, again in zip(_augment(kind, 3), _augment(kind, 3), strict=True):
        np.testing.assert_array_equal(result, again)
    labels = [_augment(kind, seed)[1] for seed in SEEDS]
    others = [a.shape != labels[0].shape or (a != labels[0]).any() for a in labels[1:]]
    assert any(others) == (kind != "flip")


@pytest.mark.parametrize("kind", KINDS)
def test_augment_keeps_source_and_accepts_tiny_images(kind: str) -> None:
    labels = np.array([[3]], np.int16)
    image = _drawn(labels)
    result, mask = augment(image, labels, kind, np.random.default_rng(0))
    assert (result.size, mask.tolist()) == ((1, 1), [[3]])
    assert labels.tolist() == [[3]]
    assert image.getpixel((0, 0)) == tuple(COLOURS[3])


def test_augment_rejects_unknown_kind() -> None:
    with pytest.raises(ValueError, match="flip, rotate, crop, zoom, scale"):
        augment(_drawn(_blocks()), _blocks(), "shear", np.random.default_rng(0))
