"""Tests of AlexNet and ResNet-50."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from segrec_batch.common.errors import InputError, ModelError
from segrec_batch.descriptors import module
from segrec_batch.descriptors.operators import networks
from segrec_batch.model.torch_engine import as_tensors
from tests.support.described import Learned, random_network, some_images

NAMES = ("alexnet", "resnet50")


@cache
def descriptor(name: str, device: str = "cpu", precision: str = "float32") -> Any:
    return module(name).Descriptor(random_network(name), 4, device, precision)


def theirs(name: str, state: Mapping[str, NDArray[Any]]) -> nn.Module:
    """torchvision's whole model on the state, its classifier as it happens to be."""
    network: nn.Module = getattr(torchvision.models, name)(weights=None)
    left_out = network.load_state_dict(as_tensors(state), strict=False).missing_keys
    last = {"alexnet": "classifier.6.", "resnet50": "fc."}[name]
    assert all(n.startswith(last) or n.endswith("num_batches_tracked") for n in left_out)
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


@pytest.mark.parametrize("name", NAMES)
def test_vector_is_independent_of_batch(name: str) -> None:
    described, images = descriptor(name), some_images(3)
    together = described(images).vectors
    for i, one in enumerate(together):
        alone = described(
            type(images)(**{key: value[i : i + 1] for key, value in vars(images).items()})
        )
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weights": "random:x"}, ModelError, "write random:SEED"),
        ({"weights": "/nowhere.pth"}, ModelError, "weights /nowhere.pth cannot be read"),
        ({"size": "32"}, InputError, "unknown argument 'size'; known are weights"),
    ],
)
def test_fit_rejects_wrong_arguments(
    name: str, arguments: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        module(name).fit(arguments, Learned())
