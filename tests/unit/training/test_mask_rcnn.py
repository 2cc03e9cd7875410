"""Tests of Mask R-CNN."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn

from segrec_batch.common.errors import InputError, ModelError
from segrec_batch.labels.labelled import VOID, Classes, load_classes, pair_images
from segrec_batch.training.rivals.base import NotRun
from segrec_batch.training.rivals.mask_rcnn import (
    MaskRcnnSettings,
    build_network,
    connected_instances,
    fit_mask_rcnn,
    load_state,
    paint_objects,
)
from tests.support.builders import quick, void_variants

SETTINGS = MaskRcnnSettings(min_size=64, min_pixels=20, batch=2, device="cpu")


def _flood(labels: np.ndarray, start: tuple[int, int]) -> set[tuple[int, int]]:
    result, edge = {start}, [start]
    while edge:
        y, x = edge.pop()
        for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= near[0] < labels.shape[0] and 0 <= near[1] < labels.shape[1]
            if inside and near not in result and labels[near] == labels[start]:
                result.add(near)
                edge.append(near)
    return result


@given(seed=st.integers(0, 1000), least=st.integers(1, 6))
@quick
def test_connected_instances_equal_flood_fill(seed: int, least: int) -> None:
    labels = np.random.default_rng(seed).choice([VOID, 0, 1, 2], (7, 9)).astype(np.int16)
    expected = {}
    for start in np.ndindex(labels.shape):
        region = frozenset(_flood(labels, start))
        if labels[start] > 0 and len(region) >= least:
            ys, xs = zip(*region, strict=True)
            box = (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
            expected[region] = (int(labels[start]), box)
    actual = connected_instances(labels, 2, least)
    assert actual.masks.shape == (len(expected), 7, 9)
    assert actual.boxes.shape == (len(expected), 4)
    for label, box, mask in zip(actual.labels, actual.boxes, actual.masks, strict=True):
        region = frozenset((int(y), int(x)) for y, x in np.argwhere(mask))
        assert expected[region] == (label, tuple(box))


def test_mask_rcnn_without_weights_is_not_run(scenes: Path) -> None:
    images = pair_images(str(scenes / "images"), str(scenes / "masks"))
    classes = load_classes(str(scenes / "classes.json"))
    with pytest.raises(NotRun, match="no weights: give --mask-rcnn-weights PATH, or download"):
        fit_mask_rcnn(images, classes, SETTINGS)
    with pytest.raises(InputError, match="no labelled images"):
        fit_mask_rcnn([], classes, SETTINGS)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Of torchvision's model as its own function makes it, for the 91 classes of COCO."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    # the normalisation is frozen: without this, 50 layers of random weights end in infinity
    return {n: t * 0 if n.endswith("bn3.weight") else t for n, t in result.items()}


OLD_NAMES = (  # as in the file that torchvision downloads
    ("fpn.inner_blocks.{}.0.", "fpn.inner_blocks.{}."),
    ("fpn.layer_blocks.{}.0.", "fpn.layer_blocks.{}."),
    ("rpn.head.conv.{}.0.", "rpn.head.conv."),
    ("roi_heads.mask_head.{}.0.", "roi_heads.mask_head.mask_fcn{+1}."),
)


def _old(name: str) -> str:
    for new, old in OLD_NAMES:
        for i in range(4):
            name = name.replace(new.format(i), old.replace("{+1}", str(i + 1)).format(i))
    return name


@pytest.mark.parametrize("old", [False, True])
def test_mask_rcnn_loads_all_but_predictors(state: dict[str, Tensor], old: bool) -> None:
    given_ = {_old(n): t for n, t in state.items() if "num_batches" not in n} if old else state
    assert ("backbone.fpn.inner_blocks.0.weight" in given_) == old
    network = build_network(given_, 4, SETTINGS).state_dict()
    drawn = {n for n, t in network.items() if not torch.equal(t, state[n])}
    heads = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
    assert drawn == {f"roi_heads.{n}.{part}" for n in heads for part in ("weight", "bias")}
    assert network["roi_heads.box_predictor.cls_score.weight"].shape[0] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.body.conv1.weight": None}, "backbone.body.conv1.weight is missing"),
        ({"extra.weight": torch.zeros(1)}, "extra.weight is not expected"),
        ({"backbone.body.conv1.weight": torch.zeros(64, 4, 7, 7)}, "size mismatch for backbone"),
    ],
)
def test_mask_rcnn_rejects_other_weights(
    change: dict[str, Tensor | None], message: str, state: dict[str, Tensor]
) -> None:
    wrong = {n: t for n, t in {**state, **change}.items() if t is not None}
    with pytest.raises(ModelError, match=f"maskrcnn_resnet50_fpn.*\n?.*{message}"):
        build_network(wrong, 4, SETTINGS)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mask_rcnn_reads_weight_files(suffix: str, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(ModelError, match="cannot be read"):
        load_state(str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="not a state dict"):
        load_state(str(path))
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    assert torch.equal(load_state(str(path))["a"], tensors["a"])


def test_paint_objects_puts_best_score_on_top() -> None:
    masks = torch.zeros(3, 1, 20, 30)
    masks[0, :, 4:12, 4:12] = 0.9
    masks[1, :, 8:16, 8:16] = 0.6
    masks[2] = 1.0
    scores, labels = torch.tensor([0.7, 0.9, 0.2]), torch.tensor([2, 1, 3])
    actual = {"scores": scores, "labels": labels, "masks": masks}
    expected = np.zeros((20, 30), np.uint8)
    expected[4:12, 4:12] = 2
    expected[8:16, 8:16] = 1
    np.testing.assert_array_equal(paint_objects(actual, (20, 30), 0.5), expected)
    double = np.repeat(np.repeat(expected, 2, axis=0), 2, axis=1)
    wrong = paint_objects(actual, (40, 60), 0.5) != double
    assert wrong.mean() < 0.03, "enlarged; edges may move by a pixel"


@pytest.mark.slow
def test_mask_rcnn_learns_and_is_reproducible(
    scenes: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    settings = replace(SETTINGS, weights=weights, epochs=5, batch=1, rate=0.03)
    images = pair_images(str(scenes / "images"), str(scenes / "masks"))[::12]
    variants, classes = void_variants(images, load_classes(str(scenes / "classes.json")), tmp_path)
    first, again = (fit_mask_rcnn(v, classes, settings) for v in variants)
    assert len(first.losses) == 10
    assert np.mean(first.losses[-4:]) < 0.7 * np.mean(first.losses[:2]), first.losses
    assert first.losses == again.losses
    image, labels = images[0].load(classes)
    (one,), (other,) = first(image).values(), again(image).values()
    assert one.labels.shape == labels.shape
    np.testing.assert_array_equal(one.labels, other.labels)


def test_mask_rcnn_classes_start_at_one() -> None:
    labels = Classes({"car": (7,)}).to_classes(np.array([[7, 7], [0, 3]], np.int16))
    result = connected_instances(labels, 1, 1)
    assert result.labels.tolist() == [1]
    assert result.boxes.tolist() == [[0, 0, 2, 1]]
