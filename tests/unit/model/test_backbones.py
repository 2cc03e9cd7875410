"""Tests of all backbones: maps, geometry and weights as in torchvision."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from segrec_batch.common.errors import EngineError, ModelError
from segrec_batch.model import engine_choice, engines
from segrec_batch.model.backbones import BACKBONES, BackboneSpec, Tap
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.model.engine_choice import LONG_RUN, choose_engine
from segrec_batch.model.engines import EngineChoice, load_feature_maps, load_segmenter, measure_rate
from segrec_batch.model.head import LinearHead
from segrec_batch.model.network import Backbone
from segrec_batch.model.spec import ModelSpec
from segrec_batch.model.weights import Weights, load_weights
from segrec_batch.training.sampling import cell_features
from tests.support.builders import smooth_batch
from tests.support.commands import exit_code

ALL = list(BACKBONES)
VGG = ["vgg16", "vgg19"]
TRACED = ["resnet18", "resnet50", "convnext_tiny"]
CONVS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # Simonyan 2015, table 1, D and E
WIDTHS = {  # He 2016, table 1; Liu 2022, section 3
    "resnet18": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "convnext_tiny": (96, 192, 384, 768),
}


@cache
@torch.inference_mode(False)
def weights_of(name: str) -> Weights:
    return load_weights("random:0", BACKBONES[name])


def _original(name: str) -> nn.Module:
    """Return torchvision's network without its classifier, with the weights of `weights_of`."""
    with torch.device("meta"):
        network = get_model(name, weights=None)
    part = network if name.startswith("resnet") else network.features
    inner = "" if name.startswith(("resnet", "vgg")) else "features."
    if isinstance(part, nn.Sequential):
        state = {key.removeprefix(inner): value for key, value in weights_of(name).state.items()}
    else:
        network.fc = nn.Identity()
        state = dict(weights_of(name).state)
    part.load_state_dict(state, assign=True)
    return part.eval().requires_grad_(False)


def _modules(name: str, network: Any) -> dict[str, nn.Module]:
    """Return the modules whose outputs are the layers, by the tables of the papers."""
    if name.startswith("resnet"):
        stages = {layer: getattr(network, layer) for layer in map("layer{}".format, range(1, 5))}
        return {"stem": network.relu, **stages}
    if name.startswith("convnext"):
        return {"stem": network[0]} | {f"stage{i}": network[2 * i - 1] for i in range(1, 5)}
    found: dict[str, nn.Module] = {}
    block, conv = 1, 0
    for module in network:
        if isinstance(module, nn.MaxPool2d):
            block, conv = block + 1, 0
        elif isinstance(module, nn.ReLU):
            conv += 1
            found[f"conv{block}_{conv}"] = module
    return found


@torch.inference_mode()
def _hooked(name: str, x: Tensor) -> dict[str, Tensor]:
    """Run torchvision's network; return copies of the outputs of its modules."""
    network, maps = _original(name), {}

    def copy_output(layer: str) -> Any:
        return lambda _module, _inputs, output: maps.__setitem__(layer, output.clone())

    for layer, module in _modules(name, network).items():
        module.register_forward_hook(copy_output(layer))
    network(x)
    return maps


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 47)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_maps_are_those_of_torchvisions_modules(name: str, size: tuple[int, int]) -> None:
    spec = BACKBONES[name]
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = _hooked(name, x)
    with torch.inference_mode():
        maps = Backbone(weights_of(name).state, list(spec.layers), spec)(x)
    assert maps.keys() == expected.keys() == spec.layers.keys()
    for layer, values in expected.items():
        scale = float(values.abs().max())
        torch.testing.assert_close(maps[layer], values, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", TRACED)
def test_single_layer_is_extracted_alone(name: str) -> None:
    spec = BACKBONES[name]
    first = list(spec.layers)[1]
    x = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    backbone = Backbone(weights_of(name).state, [first], spec)
    with torch.inference_mode():
        maps = backbone(x)
    assert list(maps) == [first]
    torch.testing.assert_close(maps[first], _hooked(name, x)[first], rtol=1e-4, atol=1e-5)
    held = sum(p.numel() for p in backbone.parameters())
    assert held < 0.1 * sum(v.numel() for v in weights_of(name).state.values())


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("size", [(96, 64), (97, 65), (127, 63)], ids=str)
def test_layers_have_the_stated_geometry(name: str, size: tuple[int, int]) -> None:
    spec = BACKBONES[name]
    with torch.inference_mode():
        maps = Backbone(weights_of(name).state, list(spec.layers), spec)(torch.zeros(1, 3, *size))
    round_up = name.startswith("resnet")  # padding of odd kernels; even ones drop the rest
    for layer, values in maps.items():
        stride = spec.layers[layer].stride
        cells = [-(-side // stride) if round_up else side // stride for side in size]
        assert list(values.shape) == [1, spec.layers[layer].channels, *cells]
    stages = list(spec.layers.values())[1:]
    assert tuple(layer.channels for layer in stages) == WIDTHS[name]
    assert [layer.stride for layer in stages] == [4, 8, 16, 32]


@pytest.mark.parametrize("name", VGG)
def test_vgg_has_the_convolutions_of_its_paper(name: str) -> None:
    layers = BACKBONES[name].layers
    blocks = enumerate(CONVS[name], start=1)
    assert list(layers) == [f"conv{b}_{i + 1}" for b, convs in blocks for i in range(convs)]
    assert {layer.stride for layer in layers.values()} == {1, 2, 4, 8, 16}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg16", "conv5_3"),
        ("vgg19", "conv4_4"),
        ("resnet18", "stem"),
        ("resnet18", "layer4"),
        ("resnet50", "layer3"),
        ("convnext_tiny", "stage1"),
        ("convnext_tiny", "stage2"),
    ],
)
def test_receptive_field_of_a_cell_has_the_stated_centre(name: str, layer: str) -> None:
    spec = BACKBONES[name]
    stride, offset = spec.layers[layer].stride, spec.layers[layer].offset
    backbone = Backbone(weights_of(name).state, [layer], spec).double()
    x = torch.rand(1, 3, 32, 768, generator=torch.Generator().manual_seed(0)).double()
    x.requires_grad_()
    cell = 384 // stride
    backbone(x)[layer][..., cell].sum().backward()
    assert x.grad is not None
    columns = np.flatnonzero(x.grad.abs().sum(dim=(0, 1, 2)).numpy())
    assert columns[0] > 0  # the whole receptive field lies in the image
    assert columns[-1] < 767
    centre = (columns[0] + columns[-1] + 1) / 2
    assert centre == stride * (cell + 0.5) - offset


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "convnext_tiny"])
def test_cells_are_read_at_their_pixels(name: str) -> None:
    """Maps that hold the position of each cell's receptive field give the position of the pixel."""
    spec = BACKBONES[name]
    taps = [Tap.parse(text, spec) for text in spec.default_layers.split(",") if "@" not in text]
    height, width = 256, 320
    maps = {}
    for tap in taps:
        layer = tap.source
        rows, columns = height // layer.stride, width // layer.stride
        y = layer.stride * (torch.arange(rows) + 0.5) - layer.offset
        x = layer.stride * (torch.arange(columns) + 0.5) - layer.offset
        positions = torch.stack(torch.meshgrid(y, x, indexing="ij"))
        channels = torch.zeros(layer.channels - 2, rows, columns)
        maps[tap.layer] = torch.cat([positions, channels])[None]
    finest = min(tap.source.stride for tap in taps)
    grid = (height // finest, width // finest)
    cells = np.arange(grid[0] * grid[1])
    rows, columns = np.divmod(cells, grid[1])
    pixels = np.stack([rows, columns], axis=1) * finest + finest / 2
    inside = ((pixels > 32) & (pixels < [height - 48, width - 48])).all(axis=1)
    features = cell_features(maps, taps, cells, grid).numpy()
    starts = np.cumsum([0, *(tap.source.channels for tap in taps)])[:-1]
    for start in starts:
        read = features[:, start : start + 2]
        np.testing.assert_allclose(read[inside], pixels[inside], rtol=0, atol=1e-3)
    for tap in taps:
        weights = torch.zeros(2, tap.source.channels)
        weights[0, 0] = weights[1, 1] = 1
        others = {t: torch.zeros(2, t.source.channels) for t in taps}
        decision = LinearHead({**others, tap: weights}, torch.zeros(2), (0, 1)).decision(maps)
        read = decision[0].flatten(1).T.numpy()
        np.testing.assert_allclose(read[inside], pixels[inside], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", TRACED)
def test_head_decides_as_an_svm_on_cell_features(name: str) -> None:
    spec = BACKBONES[name]
    taps = [Tap.parse(text, spec) for text in spec.default_layers.split(",")]
    generator = torch.Generator().manual_seed(2)
    layers = list(dict.fromkeys(tap.layer for tap in taps))
    with torch.inference_mode():
        x = torch.randn(1, 3, 96, 128, generator=generator)
        maps = Backbone(weights_of(name).state, layers, spec)(x)
    svm = {tap: torch.randn(3, tap.source.channels, generator=generator) for tap in taps}
    bias = torch.randn(3, generator=generator)
    decision = LinearHead(svm, bias, (0, 1, 2)).decision(maps)[0]
    features = cell_features(maps, taps, np.arange(24 * 32), (24, 32))
    expected = features @ torch.cat(list(svm.values()), dim=1).T + bias
    scale = float(expected.abs().max())
    torch.testing.assert_close(decision.flatten(1).T, expected, rtol=0, atol=1e-5 * scale)


# weights


@pytest.mark.parametrize("name", ALL)
def test_normalisation_is_that_of_torchvisions_weights(name: str) -> None:
    preset = get_model_weights(name).IMAGENET1K_V1.transforms()
    assert (tuple(preset.mean), tuple(preset.std)) == (BACKBONES[name].mean, BACKBONES[name].std)


@pytest.mark.parametrize("name", ALL)
def test_tensors_are_those_of_torchvision(name: str) -> None:
    spec = BACKBONES[name]
    with torch.device("meta"):
        state = get_model(name, weights=None).state_dict()
    expected = {
        key.removeprefix(spec.prefix): tuple(value.shape)
        for key, value in state.items()
        if not key.startswith(("fc.", "classifier.")) and not key.endswith("num_batches_tracked")
    }
    assert dict(spec.tensors) == expected


@pytest.mark.parametrize("name", ALL)
def test_random_weights_repeat_and_keep_maps_moderate(name: str) -> None:
    spec, weights = BACKBONES[name], weights_of(name)
    assert load_weights("random:0", spec).fingerprint == weights.fingerprint
    assert load_weights("random:1", spec).fingerprint != weights.fingerprint
    assert (weights.mean, weights.std) == (spec.mean, spec.std)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = Backbone(weights.state, list(spec.layers), spec)(x)
    assert all(0.02 < float(values.std()) < 3 for values in maps.values())


def _save(state: Mapping[str, Tensor], path: Path) -> str:
    torch.save(dict(state), path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "other", "reason"),
    [
        ("resnet50", "vgg16", r"conv1\.weight is missing"),
        ("vgg16", "vgg19", r"17\.weight is missing"),
        ("vgg19", "vgg16", r"16\.weight is missing"),
        ("resnet50", "resnet18", r"layer1\.0\.conv1\.weight has shape \(64, 64, 3, 3\), not"),
        ("convnext_tiny", "resnet18", r"features\.0\.0\.weight is missing"),
    ],
)
def test_weights_of_another_network_are_refused(
    name: str, other: str, reason: str, tmp_path: Path
) -> None:
    path = _save({k: v.half() for k, v in weights_of(other).state.items()}, tmp_path / "w.pth")
    spec = BACKBONES[name]
    with pytest.raises(ModelError, match=rf"w\.pth is not a state dict of {spec.title}: {reason}"):
        load_weights(path, spec)


@pytest.mark.parametrize(
    ("name", "deeper"),
    [("resnet18", "layer3.2.conv1.weight"), ("convnext_tiny", "features.5.9.layer_scale")],
)
def test_weights_of_a_deeper_network_are_refused(name: str, deeper: str, tmp_path: Path) -> None:
    state = {k: v.half() for k, v in weights_of(name).state.items()}
    path = _save({**state, deeper: torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=f"the network has no {deeper}"):
        load_weights(path, BACKBONES[name])


def test_classifier_and_batch_counts_of_a_state_dict_are_ignored(tmp_path: Path) -> None:
    spec, weights = BACKBONES["resnet18"], weights_of("resnet18")
    whole = get_model("resnet18", weights=None)
    whole.load_state_dict(dict(weights.state), strict=False)
    loaded = load_weights(_save(whole.state_dict(), tmp_path / "w.pth"), spec)
    assert loaded.fingerprint == weights.fingerprint


# engines


def test_auto_takes_an_engine_that_runs_the_backbone() -> None:
    for name in VGG:
        assert choose_engine(backbone=BACKBONES[name]).engine == choose_engine().engine
    for name in TRACED:
        assert choose_engine(backbone=BACKBONES[name]).engine == "torch"
        assert choose_engine(device="cuda", backbone=BACKBONES[name]).engine == "torch"
        with pytest.raises(EngineError, match=f"{BACKBONES[name].title} runs in torch only"):
            choose_engine("ncnn", backbone=BACKBONES[name])


def test_long_work_is_measured_with_the_backbone_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[BackboneSpec] = []

    def measure(_engine: str, _precision: str, **options: Any) -> float:
        measured.append(options["backbone"])
        return 1.0

    monkeypatch.setattr(engines, "measure_rate", measure)
    monkeypatch.setattr(
        engine_choice, "match_candidates", lambda *_: [("torch", "float32"), ("torch", "bfloat16")]
    )
    choose_engine(work=float(LONG_RUN), backbone=BACKBONES["resnet50"])
    assert measured == [BACKBONES["resnet50"]] * 2


def test_rate_of_another_backbone_is_measured() -> None:
    rate = measure_rate(
        "torch", "float32", shape=(32, 32), seconds=0.01, backbone=BACKBONES["resnet18"]
    )
    assert rate > 0


@pytest.mark.parametrize("shape", [(64, 96), (50, 70)], ids=str)
def test_vgg19_of_ncnn_is_that_of_torch(shape: tuple[int, int]) -> None:
    spec, arrays = BACKBONES["vgg19"], weights_of("vgg19").arrays
    taps = tuple(Tap.parse(name, spec) for name in ("conv1_2", "conv3_4", "conv4_4"))
    exact, computed = (
        load_feature_maps(arrays, taps, EngineChoice(engine, "float32"), backbone=spec)(
            smooth_batch(2, *shape)
        )
        for engine in ("torch", "ncnn")
    )
    assert set(computed) == {"conv1_2", "conv3_4", "conv4_4", "conv5_4"}
    for name, values in exact.items():
        scale = float(values.max())
        np.testing.assert_allclose(computed[name], values, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_maps_stay_near_float32(name: str) -> None:
    spec, x = BACKBONES[name], torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = Backbone(weights_of(name).state, list(spec.layers), spec)(x)
        rough = Backbone(weights_of(name).state, list(spec.layers), spec).to(torch.bfloat16)(
            x.bfloat16()
        )
    for layer in spec.layers:
        assert rough[layer].dtype == torch.bfloat16
        error = (rough[layer].float() - exact[layer]).norm() / exact[layer].norm()
        assert error < 0.03, (layer, float(error))


def test_train_refuses_a_layer_before_it_reads_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing")
    arguments = ["--images", missing, "--masks", missing, "--classes", missing, "--output", missing]
    arguments += ["--backbone", "convnext_tiny", "--layers", "stage2", "stage1,conv5_3"]
    assert exit_code("segrec", "train", *arguments) == 1
    message = "conv5_3: no such layer; ConvNeXt-Tiny has stem, stage1, stage2, stage3, stage4"
    assert message in capsys.readouterr().err


def test_help_lists_layers_and_defaults_of_every_backbone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code("segrec", "train", "--help") == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    for name, spec in BACKBONES.items():
        assert {name + ":", *spec.layers, *spec.default_layers.split(",")} <= set(words)


def test_unknown_layer_of_a_backbone_is_refused() -> None:
    with pytest.raises(ModelError, match="conv5_3: no such layer; ResNet-50 has stem, layer1"):
        Tap.parse("conv5_3", BACKBONES["resnet50"])
    with pytest.raises(ModelError, match="layer5; ConvNeXt-Tiny has stem, stage1"):
        Backbone({}, ["layer5"], BACKBONES["convnext_tiny"])


def _model(name: str) -> Model:
    """Return a model with random weights and a random head of three classes."""
    spec, weights, rng = BACKBONES[name], weights_of(name), np.random.default_rng(0)
    taps = [Tap.parse(text, spec) for text in spec.default_layers.split(",")]
    svm = {tap: rng.standard_normal((3, tap.source.channels), np.float32) for tap in taps}
    head = {
        f"svm.{tap}": values - values.mean(axis=1, keepdims=True) for tap, values in svm.items()
    }
    head["svm.bias"] = np.zeros(3, np.float32)
    head["sign_bits.centre"] = np.zeros(spec.feature_length, np.float32)
    head["sign_bits.rotation"] = np.eye(spec.feature_length, dtype=np.float32)
    model = ModelSpec(
        classes=("car", "tree"), taps=tuple(map(str, taps)), components=(0, 1, 2),
        shapes=((96, 128),), mean=weights.mean, std=weights.std, weights=weights.origin,
        weights_fingerprint=weights.fingerprint, backbone=name,
    )  # fmt: skip
    return Model(model, head, weights.arrays)


@pytest.mark.parametrize("name", ALL)
def test_segmenters_of_a_device_agree(name: str, device: str) -> None:
    """Each device and precision gives the results of float32 on the CPU."""
    model, spec, pixels = _model(name), BACKBONES[name], smooth_batch(2, 96, 128)
    expected = load_segmenter(model, EngineChoice("torch", "float32"))(pixels, [(90, 120)] * 2)
    grid = (96 // spec.stride, 128 // spec.stride)
    assert expected.labels.shape == (2, *grid)
    assert expected.feature.shape == (2, spec.feature_length)
    assert (expected.counts.sum(axis=1) == grid[0] * grid[1]).all()
    for precision, least in (("float32", 1 - 1e-6), ("bfloat16", 0.999)):
        result = load_segmenter(model, EngineChoice("torch", precision, device))(pixels)
        for i in range(2):
            assert np.corrcoef(result.feature[i], expected.feature[i])[0, 1] > least
    together = np.einsum("bk,bkc->bc", expected.counts, expected.region_features)
    scale = float(np.abs(expected.feature).max())
    np.testing.assert_allclose(
        together / (grid[0] * grid[1]), expected.feature, rtol=0, atol=1e-4 * scale
    )


def test_engine_that_does_not_run_the_backbone_is_refused() -> None:
    with pytest.raises(EngineError, match="ResNet-18 runs in torch only"):
        load_segmenter(_model("resnet18"), EngineChoice("ncnn", "float32"))


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_bundle_of_a_backbone_comes_back_equal(name: str, tmp_path: Path) -> None:
    model = _model(name)
    model.save(str(tmp_path))
    loaded = load_model(str(tmp_path))
    assert (loaded.spec, loaded.model_id) == (model.spec, model.model_id)
    assert loaded.backbone.keys() == model.backbone.keys()
    assert all(np.array_equal(loaded.backbone[k], v) for k, v in model.backbone.items())
