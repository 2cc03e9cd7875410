"""The 13 convolution layers of VGG-16 as in torchvision, with the maps of any of them by name."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segrec_batch.common.errors import ModelError
from segrec_batch.model.architecture import (
    CHANNELS_PER_BLOCK,
    CONVS_PER_BLOCK,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LAYERS,
)
from segrec_batch.model.bundle import Array, fingerprint
from segrec_batch.sources import storage


@dataclass(frozen=True)
class Weights:
    """Backbone weights: `state` as of `torchvision.models.vgg16().features`, float32; the
    normalisation they were trained with; `origin` as the user named them.
    """

    origin: str
    state: Mapping[str, Tensor]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def trained(self) -> bool:
        """False for `random:SEED`."""
        return not self.origin.startswith("random:")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and values, in hex."""
        return fingerprint(self.arrays)

    @property
    def arrays(self) -> dict[str, Array]:
        """`state` as a bundle holds it; the memory is shared."""
        return {name: value.numpy() for name, value in self.state.items()}


def load_weights(spec: str) -> Weights:
    """Backbone weights by name.

    `imagenet` (torchvision's own, downloaded on first use), `random:SEED`, or the path or URI of a
    state dict (`.pth`, `.safetensors`) of `vgg16()` or of its `features`. Raises ModelError.
    """
    if spec == "imagenet":
        from torchvision.models import VGG16_Weights  # takes longer to import than torch

        enum = VGG16_Weights.IMAGENET1K_V1
        preset = enum.transforms()
        state = download(enum, spec)
        return Weights(spec, _convolutions(state, spec), tuple(preset.mean), tuple(preset.std))
    if spec.startswith("random:"):
        return Weights(spec, _random_state(spec))
    return Weights(spec, _convolutions(read_state(spec, "backbone weights"), spec))


def download(enum: Any, what: str) -> dict[str, Tensor]:
    """torchvision's own weights, downloaded on first use; `what` names them in errors.

    Raises ModelError.
    """
    cached = Path(torch.hub.get_dir(), "checkpoints", enum.url.rpartition("/")[2])
    was_cached = cached.exists()
    try:
        return dict(enum.get_state_dict(progress=True, check_hash=True))
    except Exception as error:  # no network, another file than expected, a damaged one
        if was_cached:  # torch reads it as it is
            raise ModelError(
                f"the {what} weights in {cached} cannot be read ({error}); delete that file"
            ) from error
        raise ModelError(
            f"the {what} weights could not be downloaded ({error}); download {enum.url} "
            "elsewhere and give its path"
        ) from error


def seed(generator: torch.Generator, spec: str) -> torch.Generator:
    """The generator, from now on as `random:SEED` says. Raises ModelError."""
    try:
        return generator.manual_seed(int(spec.removeprefix("random:")))
    except ValueError:  # no number, or one of more than 64 bits
        raise ModelError(f"{spec}: write random:SEED with a whole number") from None


def _random_state(spec: str) -> dict[str, Tensor]:
    generator = seed(torch.Generator(), spec)
    state = {}
    for name, like in _architecture().state_dict().items():
        value = state[name] = torch.zeros(like.shape)
        if name.endswith("weight"):  # as torchvision initialises VGG
            nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu", generator=generator)
    return state


def _architecture() -> nn.Sequential:
    """As torchvision's `vgg16().features`, with no memory behind its parameters."""
    layers: list[nn.Module] = []
    channels = 3
    with torch.device("meta"):
        for convs, width in zip(CONVS_PER_BLOCK, CHANNELS_PER_BLOCK, strict=True):
            for _ in range(convs):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def read_state(uri: str, what: str) -> dict[str, Tensor]:
    """What a .pth or .safetensors file holds; `what` names it in errors. Raises ModelError."""
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        raise ModelError(f"{what} {uri} cannot be read: {error}") from error
    try:
        if uri.endswith(".safetensors"):
            from safetensors.torch import load

            return load(data)
        return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except Exception as error:
        raise ModelError(f"{uri} is not a state dict: {error}") from error


def _convolutions(state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The `features.*` entries of a VGG-16 state dict, or all of them where they have no prefix."""
    prefix = "features." if any(str(k).startswith("features.") for k in state) else ""
    found = {}
    for name, like in _architecture().state_dict().items():
        value = state.get(prefix + name)
        if not isinstance(value, Tensor) or value.shape != like.shape:
            shape = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else "is missing"
            raise ModelError(f"{origin} is not VGG-16: {prefix}{name} {shape}")
        found[name] = value.detach().float().contiguous()
    return found


class Backbone(nn.Module):
    """VGG-16's convolution layers up to the deepest of `layers`; no gradients.

    Runs in the dtype of its parameters, channels-last. The maps are those after the ReLU.
    """

    def __init__(self, state: Mapping[str, Tensor], layers: Sequence[str]) -> None:
        super().__init__()
        unknown = [name for name in layers if name not in LAYERS]
        if unknown:
            raise ModelError(
                f"no such layers: {', '.join(unknown)}; VGG-16 has {', '.join(LAYERS)}"
            )
        features = _architecture()
        features.load_state_dict(dict(state), assign=True)
        depth = max(LAYERS[name].position for name in layers) + 1
        self.blocks = features[:depth].eval().requires_grad_(False)
        self.blocks.to(memory_format=torch.channels_last)
        self.taps = {LAYERS[name].position: name for name in layers}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images → {layer: (B, C, H/stride, W/stride)}."""
        x = x.contiguous(memory_format=torch.channels_last)
        maps = {}
        for position, block in enumerate(self.blocks):
            x = block(x)
            if position in self.taps:
                maps[self.taps[position]] = x
        return maps
