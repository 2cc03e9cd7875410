"""Tests of AlexNet, ResNet-50 and VGG-16."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from segrec_batch.common.errors import InputError, ModelError
from segrec_batch.descriptors import ImageBatch, Parameters, module
from segrec_batch.descriptors.operators import networks
from segrec_batch.model.torch_engine import as_tensors
from tests.support.described import Learned, random_network, some_images

NAMES = ("alexnet", "resnet50")
LAST = {"alexnet": "classifier.6.", "resnet50": "fc.", "vgg16": "classifier.6."}


@dataclass(frozen=True)
class Drawn(Learned):
    """Samples that are these images, two at a time."""

    images: ImageBatch = field(default_factory=some_images)

    def draw_images(self, count: int) -> Iterator[ImageBatch]:
        for i in range(0, min(count, len(self.images)), 2):
            yield part(self.images, slice(i, i + 2))


def part(images: ImageBatch, rows: slice) -> ImageBatch:
    return ImageBatch(**{key: value[rows] for key, value in vars(images).items()})


@cache
def descriptor(name: str, device: str = "cpu", precision: str = "float32") -> Any:
    return module(name).Descriptor(random_network(name), 4, device, precision)


def theirs(name: str, state: Mapping[str, NDArray[Any]]) -> nn.Module:
    """torchvision's whole model on the state, its classifier as it happens to be."""
    network: nn.Module = getattr(torchvision.models, name)(weights=None)
    left_out = network.load_state_dict(as_tensors(state), strict=False).missing_keys
    assert all(n.startswith(LAST[name]) or n.endswith("num_batches_tracked") for n in left_out)
    return network.eval()


def hooked(network: nn.Module, layer: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the output of a layer for images that torchvision has prepared."""
    result: list[Tensor] = []
    network.get_submodule(layer).register_forward_hook(lambda *a: result.append(a[2].clone()))
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    x = transforms.resize(x, [224, 224], antialias=True)
    with torch.inference_mode():
        network(transforms.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return result[0].flatten(1).numpy()


@pytest.mark.parametrize(
    ("name", "layer", "length"), [("alexnet", "classifier.5", 4096), ("resnet50", "avgpool", 2048)]
)
def test_vectors_equal_torchvision_layer(name: str, layer: str, length: int) -> None:
    images, described = some_images(2), descriptor(name)
    network = theirs(name, random_network(name).tensors)
    expected = hooked(network, layer, images.pixels)
    actual = described(images)
    assert (described.reads_pixels, described.on_device) == (True, True)
    assert (actual.vectors.shape, actual.vectors.dtype) == ((2, length), np.float32)
    assert (described.length, actual.categories) == (length, None)
    assert (expected > 0).mean() > 0.2
    np.testing.assert_allclose(actual.vectors, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_vgg16_vectors_equal_torchvision_layers() -> None:
    """Each descriptor gets the tensors that its layer needs, and no others."""
    images, state = some_images(1), random_network("vgg16").tensors
    network = theirs("vgg16", state)
    layers = {
        "fc7": ("classifier.4", 4096, ()),
        "fc6": ("classifier.1", 4096, ("classifier.3.",)),
        "pool5": ("avgpool", 25_088, ("classifier.",)),
    }
    for layer, (block, length, left_out) in layers.items():
        tensors = {n: t for n, t in state.items() if not n.startswith(left_out)}
        described = module("vgg16").Descriptor(Parameters({"layer": layer}, tensors), 4, "cpu")
        expected = hooked(network, block, images.pixels)
        actual = described(images).vectors
        assert (described.length, actual.shape) == (length, (1, length))
        assert (expected > 0).mean() > 0.2
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * expected.max())


@pytest.mark.parametrize("prefix", ["", "features."])
def test_vgg16_pool5_needs_convolutions_only(prefix: str, tmp_path: Path) -> None:
    state = random_network("vgg16").tensors
    convolutions = {n.removeprefix("features."): t for n, t in state.items() if "features." in n}
    path = str(tmp_path / "convolutions.safetensors")
    save_file({f"{prefix}{n}": t for n, t in as_tensors(convolutions).items()}, path)
    fitted = module("vgg16").fit({"layer": "pool5", "weights": path}, Learned())
    assert fitted.settings == {"layer": "pool5", "weights": "convolutions.safetensors"}
    assert fitted.tensors.keys() == {f"features.{n}" for n in convolutions}
    assert all(np.array_equal(t, state[name]) for name, t in fitted.tensors.items())
    with pytest.raises(
        ModelError, match=r"has only the convolution layers of VGG-16; give .*pool5"
    ):
        module("vgg16").fit({"layer": "fc6", "weights": path}, Learned())


def test_principal_components_equal_scikit_learn() -> None:
    samples, new = some_images(7), some_images(3, seed=1)
    network = theirs("alexnet", random_network("alexnet").tensors)
    vectors, others = (hooked(network, "classifier.5", i.pixels) for i in (samples, new))
    arguments = {"weights": "random:0", "pca": "4"}
    fitted = module("alexnet").fit(arguments, Drawn(images=samples))
    pca = PCA(4, svd_solver="full").fit(vectors.astype(np.float64))
    assert fitted.settings["pca"] == 4
    shares = fitted.settings["explained_variance_ratio"]
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, atol=1e-4)
    described = module("alexnet").Descriptor(fitted, 4, "cpu")
    actual, expected = described(new).vectors, pca.transform(others)
    assert (described.length, actual.shape, actual.dtype) == (4, (3, 4), np.float32)
    signs = np.sign((actual * expected).sum(axis=0))
    tolerance = 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected * signs, rtol=1e-3, atol=tolerance)


def test_principal_components_need_more_images() -> None:
    same = part(some_images(2), slice(0, 1))
    twice = ImageBatch(**{key: np.repeat(value, 2, axis=0) for key, value in vars(same).items()})
    for images, rank in ((some_images(4), 3), (twice, 0)):
        message = f"pca={rank + 1}, but the vectors of {len(images)} images span only {rank} dim"
        arguments = {"weights": "random:0", "pca": str(rank + 1)}
        with pytest.raises(InputError, match=message):
            module("alexnet").fit(arguments, Drawn(images=images))


@pytest.mark.parametrize("name", NAMES)
def test_vector_is_independent_of_batch(name: str) -> None:
    described, images = descriptor(name), some_images(3)
    together = described(images).vectors
    for i, one in enumerate(together):
        alone = described(part(images, slice(i, i + 1)))
        np.testing.assert_allclose(alone.vectors[0], one, rtol=1e-5, atol=1e-5 * one.max())
    apart = np.abs(together[0] - together[1]).max()
    assert apart > 1e-3 * together.max(), "another image has another vector"


@pytest.mark.parametrize("name", NAMES)
def test_devices_agree_with_cpu(name: str, device: str) -> None:
    images = some_images(2)
    expected, actual = (descriptor(name, d)(images).vectors for d in ("cpu", device))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_bfloat16_is_close_to_float32(device: str) -> None:
    images = some_images(2)
    exact = descriptor("alexnet")(images).vectors
    near = descriptor("alexnet", device, "bfloat16")(images).vectors
    assert near.dtype == np.float32
    assert not np.array_equal(near, exact)
    cosine = (near * exact).sum(axis=1) / np.linalg.norm(near, axis=1)
    assert (cosine / np.linalg.norm(exact, axis=1) > 0.999).all()


def test_random_weights_are_reproducible() -> None:
    result = random_network("resnet50")
    before = torch.get_rng_state()
    settings, state = networks.load_weights(networks.RESNET50, "random:0")
    assert torch.equal(torch.get_rng_state(), before)
    assert settings == result.settings == {"weights": "random:0"}
    assert all(np.array_equal(value, state[name]) for name, value in result.tensors.items())
    assert not any(name.startswith("fc.") for name in state)


def test_load_weights_reads_state_dict(tmp_path: Path) -> None:
    expected = random_network("resnet50").tensors
    theirs_ = {n: t.half() for n, t in as_tensors(expected).items()}
    theirs_ |= {"fc.weight": torch.zeros(7, 2048), "bn1.num_batches_tracked": torch.tensor(3)}
    torch.save(theirs_, tmp_path / "mine.pth")
    actual = module("resnet50").fit({"weights": str(tmp_path / "mine.pth")}, Learned())
    assert actual.settings == {"weights": "mine.pth"}
    assert actual.tensors.keys() == expected.keys()
    assert all(np.array_equal(v, theirs_[n].float()) for n, v in actual.tensors.items())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": torch.zeros(2)}, "conv1.weight is missing"),
        ({"conv1.weight": torch.zeros(64, 4, 7, 7)}, r"conv1.weight has shape \(64, 4, 7, 7\)"),
    ],
)
def test_load_weights_rejects_other_weights(
    state: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "other.safetensors")
    save_file(state, path)
    with pytest.raises(ModelError, match=f"is not torchvision's ResNet-50: {message}"):
        networks.load_weights(networks.RESNET50, path)


@pytest.mark.parametrize("name", [*NAMES, "vgg16"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weights": "random:x"}, ModelError, "write random:SEED"),
        ({"weights": "/nowhere.pth"}, ModelError, "weights /nowhere.pth cannot be read"),
        ({"size": "32"}, InputError, "unknown argument 'size'; known are .*weights, pca"),
        ({"pca": "0"}, InputError, "pca=0 is not a whole number of 1 or more"),
    ],
)
def test_fit_rejects_wrong_arguments(
    name: str, arguments: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        module(name).fit(arguments, Learned())


def test_vgg16_fit_rejects_unknown_layer() -> None:
    with pytest.raises(InputError, match="layer=fc8; known are fc7, fc6, pool5"):
        module("vgg16").fit({"layer": "fc8"}, Learned())
