"""Tests of the U-Net."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.segmentation.counts import count_pixels
from segrec_batch.labels.labelled import VOID, Classes, load_classes, pair_images
from segrec_batch.training.rivals.unet import UNet, UNetSettings, fit_unet, segmentation_loss
from tests.support.builders import quality, quick, smooth_pixels, void_variants

TINY = UNetSettings(
    side=64, crop=48, width=4, depth=2, epochs=2, batch=2, precision="float32", device="cpu"
)


@given(seed=st.integers(0, 1000), void=st.floats(0, 1))
@quick
def test_segmentation_loss_equals_plain_loops(seed: int, void: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(2, 3, 4, 5))
    labels = rng.integers(0, 3, (2, 4, 5))
    labels[rng.uniform(size=labels.shape) < void] = VOID
    entropy, overlap, size, known = 0.0, np.zeros(3), np.zeros(3), 0
    for b, y, x in np.ndindex(labels.shape):
        if labels[b, y, x] != VOID:
            p = np.exp(scores[b, :, y, x]) / np.exp(scores[b, :, y, x]).sum()
            entropy -= np.log(p[labels[b, y, x]])
            overlap[labels[b, y, x]] += p[labels[b, y, x]]
            size += p
            size[labels[b, y, x]] += 1
            known += 1
    dice = [2 * o / max(s, 1) for o, s in zip(overlap, size, strict=True)]
    expected = entropy / max(known, 1) + 1 - (dice[1] + dice[2]) / 2
    actual = segmentation_loss(torch.from_numpy(scores), torch.from_numpy(labels))
    assert float(actual) == pytest.approx(expected)


def test_segmentation_loss_ignores_void() -> None:
    scores = torch.randn(1, 3, 6, 6, requires_grad=True, generator=torch.manual_seed(0))
    labels = torch.zeros(1, 6, 6, dtype=torch.long)
    labels[:, 2:, 3:] = VOID
    segmentation_loss(scores, labels).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert (scores.grad[:, :, 2:, 3:] == 0).all()
    assert (scores.grad[:, :, :2] != 0).all()


def test_unet_shapes_and_receptive_field() -> None:
    network = UNet(5, 4, 3).eval()
    x = torch.randn(1, 3, 64, 96, requires_grad=True, generator=torch.manual_seed(0))
    scores = network(x)
    assert scores.shape == (1, 5, 64, 96)
    scores[0, 0, 32, 48].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum(dim=(0, 1)).nonzero()
    assert seen.amin(dim=0).tolist()[1] < 48 - 30, "through all levels of the contracting path"
    assert len(network.contract[0]) == 6, "two convolutions, normalised"
    assert [b[0].in_channels for b in network.expand] == [32, 16, 8], "joined by concatenation"


@pytest.mark.parametrize("size", [(200, 30), (17, 23), (1, 1), (64, 64)])
def test_unet_map_has_size_of_image(size: tuple[int, int], scenes: Path) -> None:
    images = pair_images(str(scenes / "images"), str(scenes / "masks"))[:2]
    fitted = fit_unet(images, load_classes(str(scenes / "classes.json")), TINY)
    (result,) = fitted(Image.fromarray(smooth_pixels(*size))).values()
    assert result.labels.shape == size
    assert result.labels.dtype == np.uint8
    assert result.cells is None


def test_unet_fit_is_reproducible_and_ignores_void(scenes: Path, tmp_path: Path) -> None:
    images = pair_images(str(scenes / "images"), str(scenes / "masks"))[::6]
    variants, classes = void_variants(images, load_classes(str(scenes / "classes.json")), tmp_path)
    before = torch.random.get_rng_state()
    first, again = (fit_unet(v, classes, TINY).network.state_dict() for v in variants)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(t, again[n]) for n, t in first.items())
    other = fit_unet(images, classes, TINY).network.state_dict()
    assert not torch.equal(first["score.bias"], other["score.bias"])


def test_unet_fit_without_images_is_an_error() -> None:
    with pytest.raises(InputError, match="no labelled images"):
        fit_unet([], Classes({"car": (1,)}), TINY)


@pytest.mark.slow
def test_unet_beats_majority_class(scenes: Path) -> None:
    classes = load_classes(str(scenes / "classes.json"))
    images = pair_images(str(scenes / "images"), str(scenes / "masks"))
    settings = UNetSettings(side=128, crop=96, width=8, depth=3, epochs=25, batch=4, device="cpu")
    fitted = fit_unet(images, classes, settings)
    assert fitted.settings["U-Net"]["epochs"] == 25
    confusion = np.zeros((4, 4), np.int64)
    for item in images[::3]:
        image, labels = item.load(classes)
        confusion += count_pixels(classes.to_classes(labels), fitted(image)["U-Net"].labels, 4)
    accuracy, majority, iou = quality(confusion)
    assert accuracy > majority + 0.05
    assert iou > 0.3
