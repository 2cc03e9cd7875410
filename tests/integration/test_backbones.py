"""Test of every backbone from training to a query."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model

import segrec_batch
from segrec_batch.evaluation.report import read_metrics
from segrec_batch.model.backbones import BACKBONES
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.sample_data import write_scenes
from tests.support.commands import ROOT, exit_code

IMAGENET = ROOT.parent / "shared" / "data" / "vgg16_imagenet_fp16.pth"
SIZE = 96  # of the scenes and of the model's input, so that no image is resized
LENGTHS = {"vgg16": 512, "vgg19": 512, "resnet18": 512, "resnet50": 2048, "convnext_tiny": 768}
CASES = [  # VGG-16 with random weights: see the other tests
    ("resnet18", "random:0"),
    *(pytest.param(n, "random:0", marks=pytest.mark.slow) for n in ("vgg19", "resnet50")),
    pytest.param("convnext_tiny", "random:0", marks=pytest.mark.slow),
    pytest.param(
        "vgg16",
        str(IMAGENET),
        marks=[
            pytest.mark.data,
            pytest.mark.slow,
            pytest.mark.skipif(not IMAGENET.exists(), reason="the reference data is not here"),
        ],
        id="vgg16-ImageNet",
    ),
]

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def square_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("square")
    write_scenes(folder, 8, places=2, size=(SIZE, SIZE))
    return folder


def run(*arguments: object) -> None:
    assert exit_code("segrec", *map(str, arguments)) == 0


def query(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    run("query", "--format", "json", *arguments)
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


@torch.inference_mode()
def torchvision_feature(model: Model, path: str) -> np.ndarray:
    """Return the mean of the last map of torchvision's network for an image (C,)."""
    name = model.spec.backbone
    network: Any = get_model(name, weights=None)
    prefix = "features." if name.startswith("vgg") else ""
    state: dict[str, Tensor] = {prefix + k: torch.from_numpy(v) for k, v in model.backbone.items()}
    network.load_state_dict(state, strict=False)
    pixels = np.array(Image.open(path).convert("RGB"), np.float32)
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    x = torch.from_numpy((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    maps: list[Tensor] = []
    network.eval()
    if name.startswith("vgg"):
        *_, last = (module for module in network.features if isinstance(module, nn.ReLU))
    else:
        last = network.layer4 if name.startswith("resnet") else network.features[7]
    last.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    network(x.permute(2, 0, 1)[None].float())
    return maps[0].mean(dim=(0, 2, 3)).numpy()


def sign_words(model: Model, feature: np.ndarray) -> list[int]:
    centred = feature - feature.mean()
    turned = (centred / np.linalg.norm(centred) - model.sign_centre) @ model.sign_rotation
    bits = np.pad(turned > 0, (0, -len(turned) % 64)).reshape(-1, 64)
    return [sum(1 << int(i) for i in np.flatnonzero(word)) for word in bits]


def test_every_backbone_has_a_case() -> None:
    assert {getattr(case, "values", case)[0] for case in CASES} == set(BACKBONES)


@pytest.mark.parametrize(("name", "weights"), CASES)
def test_train_index_query(
    name: str, weights: str, square_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, index = tmp_path / "model", tmp_path / "index"
    images = square_scenes / "images"
    labelled = ["--images", images, "--masks", square_scenes / "masks"]
    labelled += ["--classes", square_scenes / "classes.json"]
    run(
        "train", *labelled, "--output", bundle, "--backbone", name, "--backbone-weights", weights,
        "--input-size", f"{SIZE}x{SIZE}", "--positions", 60, "--C", 1,
    )  # fmt: skip
    model = load_model(str(bundle))
    assert model.spec.backbone == name
    assert ",".join(model.spec.taps) == BACKBONES[name].default_layers
    assert model.spec.is_trained == (weights != "random:0")

    run("index", "--images", images, "--model", bundle, "--index", index, "--precision", "float32")
    rows = (
        segrec_batch.connect(str(index))
        .sql("SELECT uri, feature, sign_bits, grid_h, grid_w FROM images ORDER BY uri")
        .fetchall()
    )
    assert len(rows) == 8
    features = np.array([row[1] for row in rows], np.float32)
    assert features.shape == (8, LENGTHS[name])
    assert (features < 0).any() == name.startswith("convnext")
    for uri, feature, bits, *grid in rows:
        expected = torchvision_feature(model, uri)
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(feature, expected, rtol=0, atol=1e-4 * scale)
        words = sign_words(model, np.array(feature, np.float64))
        assert len(bits) == len(words) == -(-LENGTHS[name] // 64)
        apart = sum((a ^ (b % 2**64)).bit_count() for a, b in zip(words, bits, strict=True))
        assert apart <= 2  # projections within rounding of 0
        assert grid == [SIZE // BACKBONES[name].stride] * 2

    uri = rows[0][0]
    pearson = dict(zip((row[0] for row in rows), np.corrcoef(features)[0], strict=True))
    by_uri = query(capsys, "--index", index, "--uri", uri, "-k", 7)
    assert [row["pearson"] for row in by_uri] == pytest.approx(
        sorted((value for other, value in pearson.items() if other != uri), reverse=True), abs=1e-6
    )
    new = query(capsys, "--index", index, "--image", uri, "-k", 8)
    assert (new[0]["uri"], new[0]["pearson"]) == (uri, pytest.approx(1, abs=1e-4))
    assert [row["uri"] for row in new[1:]] == [row["uri"] for row in by_uri]
    commonest = "SELECT class, min(uri) FROM regions WHERE class <> 'background' GROUP BY class"
    commonest += " ORDER BY count(*) DESC, class LIMIT 1"
    cls, own = segrec_batch.connect(str(index)).sql(commonest).fetchall()[0]
    regions = query(capsys, "--index", index, "--uri", own, "--class", cls, "-k", 3)
    assert all(-1 <= row["pearson"] <= 1 and row["uri"] != own for row in regions)

    report = tmp_path / "report"
    run("evaluate", "segmentation", *labelled, "--model", bundle, "--report", report)
    assert read_metrics(str(report))["measures"]
    run("maintain", "--index", index, "verify")
