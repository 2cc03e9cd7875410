"""Tests of backbones and their weights: VGG-16 as in torchvision."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VGG16_Weights, vgg16

from segrec_batch.common.errors import ModelError
from segrec_batch.model.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from segrec_batch.model.backbones.vgg import VGG16_LAYERS as LAYERS
from segrec_batch.model.bundle import fingerprint
from segrec_batch.model.network import Backbone
from segrec_batch.model.weights import load_weights
from tests.support.builders import random_maps, random_weights, smooth_batch, tiny_model


def _torchvision(state: Mapping[str, Tensor]) -> nn.Sequential:
    with torch.device("meta"):
        features: nn.Sequential = vgg16().features
    features.load_state_dict(dict(state), assign=True)
    return features.eval().requires_grad_(False)


def _save_pth(state: dict[str, Any], path: Path) -> str:
    torch.save(state, path.with_suffix(".pth"))
    return str(path.with_suffix(".pth"))


def _save_safetensors(state: dict[str, Tensor], path: Path) -> str:
    save_file(state, path.with_suffix(".safetensors"))
    return str(path.with_suffix(".safetensors"))


def test_vgg16_layers_match_torchvision() -> None:
    features = _torchvision(random_weights().state)
    x, block, conv = torch.rand(1, 3, 32, 48), 1, 0
    result = {}
    for position, module in enumerate(features):
        x = module(x)
        if isinstance(module, nn.MaxPool2d):
            block, conv = block + 1, 0
        if isinstance(module, nn.ReLU):
            conv += 1
            result[f"conv{block}_{conv}"] = (str(position), x.shape[1], 32 // x.shape[2])
            assert x.shape[3] * result[f"conv{block}_{conv}"][2] == 48
    assert result == {name: (s.node, s.channels, s.stride) for name, s in LAYERS.items()}
    assert len(result) == 13


def test_random_weights_repeat_and_differ_by_seed() -> None:
    again = load_weights("random:0")
    assert again.fingerprint == random_weights(0).fingerprint != random_weights(7).fingerprint
    assert not again.is_trained
    assert again.origin == "random:0"
    assert all(v.isfinite().all() and v.dtype == torch.float32 for v in again.state.values())


def test_random_weights_keep_the_global_generator() -> None:
    before = torch.get_rng_state()
    Backbone(load_weights("random:3").state, ["conv1_1"])
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


def test_random_maps_neither_vanish_nor_explode() -> None:
    maps = random_maps(smooth_batch(2), list(LAYERS))
    assert all(0.01 < m.mean() < 1 and (m > 0).float().mean() > 0.2 for m in maps.values())


@pytest.mark.parametrize("save", [_save_pth, _save_safetensors])
@pytest.mark.parametrize("prefix", ["", "features."])
def test_load_weights_accepts_half_precision_and_prefix(
    save: Callable[[dict[str, Tensor], Path], str], prefix: str, tmp_path: Path
) -> None:
    half = {k: v.half() for k, v in random_weights().state.items()}
    stored = {prefix + k: v for k, v in half.items()}
    if prefix:
        stored["classifier.0.weight"] = torch.zeros(2, 2)
    weights = load_weights(save(stored, tmp_path / "weights"))
    assert weights.is_trained
    assert weights.state.keys() == half.keys()
    assert all(v.dtype == torch.float32 for v in weights.state.values())
    assert all(torch.equal(v, half[k].float()) for k, v in weights.state.items())


def test_weights_stored_channels_last_can_be_bundled(tmp_path: Path) -> None:
    weights = random_weights()
    stored = {
        k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
        for k, v in weights.state.items()
    }
    loaded = load_weights(_save_pth(stored, tmp_path / "weights"))
    assert loaded.fingerprint == weights.fingerprint
    assert all(v.is_contiguous() for v in loaded.state.values()), "safetensors refuses to save them"


class _Code:
    """Pickles to a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_load_weights_refuses_pickled_code(tmp_path: Path) -> None:
    path = _save_pth({**random_weights().state, "more": _Code(tmp_path / "ran")}, tmp_path / "w")
    with pytest.raises(ModelError, match=r"w\.pth"):
        load_weights(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("prefix", ["", "features."])
def test_load_weights_names_wrong_tensors(prefix: str, tmp_path: Path) -> None:
    state = {prefix + k: v for k, v in random_weights().state.items()}
    missing = {k: v for k, v in state.items() if not k.endswith("17.bias")}
    with pytest.raises(ModelError, match=rf" {prefix}17\.bias is missing"):
        load_weights(_save_pth(missing, tmp_path / "missing"))
    wrong = {**state, f"{prefix}5.weight": torch.zeros(4, 3)}
    with pytest.raises(ModelError, match=rf" {prefix}5\.weight has shape \(4, 3\)"):
        load_weights(_save_pth(wrong, tmp_path / "wrong"))


@pytest.mark.parametrize(
    "content",
    [
        {0: torch.zeros(1)},
        {"0.weight": 3},
        [torch.zeros(1)],
        torch.zeros(2, 2),
        {},
        {"state_dict": {"0.weight": torch.zeros(1)}},
    ],
    ids=["numbered", "no tensor", "list", "tensor", "empty", "nested"],
)
def test_load_weights_refuses_other_objects(content: Any, tmp_path: Path) -> None:
    path = _save_pth(content, tmp_path / "w")
    with pytest.raises(ModelError, match=r"w\.pth"):
        load_weights(path)


@pytest.mark.parametrize(
    "name", [".", "none.pth", "none.safetensors", "junk.pth", "junk.safetensors"]
)
def test_load_weights_refuses_unreadable_files(name: str, tmp_path: Path) -> None:
    for junk in ("junk.pth", "junk.safetensors"):
        (tmp_path / junk).write_bytes(b"<html>")
    with pytest.raises(ModelError):
        load_weights(str(tmp_path / name))


@pytest.mark.parametrize("seed", ["", "x", "1.5", str(2**70)])
def test_load_weights_checks_the_seed(seed: str) -> None:
    with pytest.raises(ModelError):
        load_weights(f"random:{seed}")


def test_maps_are_torchvisions_own() -> None:
    state, x = random_weights().state, torch.randn(2, 3, 48, 64)
    features = _torchvision(state)
    maps = Backbone(state, list(LAYERS))(x)
    assert set(maps) == set(LAYERS)
    for name, layer in LAYERS.items():
        torch.testing.assert_close(
            maps[name], features[: int(layer.node) + 1](x), rtol=1e-4, atol=1e-5
        )


def test_backbone_stops_at_its_deepest_layer() -> None:
    weights = random_weights()
    before = weights.fingerprint
    backbone = Backbone(weights.state, ["conv3_3", "conv1_2"])
    assert len(list(backbone.parameters())) == 2 * 7  # conv1_1 to conv3_3
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone.to(torch.bfloat16)(torch.rand(1, 3, 32, 32, dtype=torch.bfloat16))
    assert weights.fingerprint == before
    assert all(v.is_contiguous() and v.dtype == torch.float32 for v in weights.state.values())


def test_bfloat16_maps_stay_near_float32() -> None:
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    exact = Backbone(random_weights().state, list(LAYERS))(x)
    rough = Backbone(random_weights().state, list(LAYERS)).to(torch.bfloat16)(x.bfloat16())
    for name in LAYERS:  # measured 0.003 at conv1_1, 0.008 at conv5_3
        assert rough[name].dtype == torch.bfloat16
        assert (rough[name].float() - exact[name]).norm() / exact[name].norm() < 0.02, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    batch = torch.randn(3, 3, 48, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    backbone = Backbone(random_weights().state, ["conv3_3", "conv5_3"]).to(dtype)
    together, alone = backbone(batch), backbone(batch[1:2])
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for name in together:
        torch.testing.assert_close(together[name][1:2], alone[name], rtol=tolerance, atol=tolerance)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"conv6_1, pool5; VGG-16 has conv1_1"):
        Backbone(random_weights().state, ["conv6_1", "conv3_3", "pool5"])


def test_a_fingerprint_covers_names_shapes_values_and_types() -> None:
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 3)}
    others = [
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"], "b": tensors["b"].reshape(3, 2)},
        {"a": torch.tensor([1.0, 2.0000002]), "b": tensors["b"]},
        {"a": tensors["a"].view(torch.int32), "b": tensors["b"]},  # same bytes, other numbers
    ]
    assert fingerprint(dict(reversed(tensors.items()))) == fingerprint(tensors)
    assert fingerprint(tensors) not in [fingerprint(o) for o in others]


def test_imagenet_weights_are_scaled_as_the_random_ones() -> None:
    preset = VGG16_Weights.IMAGENET1K_V1.transforms()  # what `imagenet` reads, without the download
    assert tuple(preset.mean) == IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert tuple(preset.std) == IMAGENET_STD == (0.229, 0.224, 0.225)
    assert (tiny_model().spec.mean, tiny_model().spec.std) == (IMAGENET_MEAN, IMAGENET_STD)
