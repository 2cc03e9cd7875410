"""Weights of a backbone from torchvision, a file or a seed, and the network that holds them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segrec_batch.common.errors import ModelError
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec
from segrec_batch.model.bundle import Array, fingerprint
from segrec_batch.sources import storage


@dataclass(frozen=True)
class Weights:
    """Weights of a backbone.

    origin: `imagenet`, `random:SEED` or a path.
    state: float32 tensors by name, see `BackboneSpec.tensors`.
    """

    origin: str
    state: Mapping[str, Tensor]
    backbone: BackboneSpec = DEFAULT_BACKBONE

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the training images by RGB channel."""
        return self.backbone.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the training images by RGB channel."""
        return self.backbone.std

    @property
    def is_trained(self) -> bool:
        """True unless the weights are `random:SEED`."""
        return not self.origin.startswith("random:")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and values, in hex."""
        return fingerprint(self.arrays)

    @property
    def arrays(self) -> dict[str, Array]:
        """`state` as a bundle holds it; the memory is shared."""
        return {name: value.numpy() for name, value in self.state.items()}


def load_weights(origin: str, backbone: BackboneSpec = DEFAULT_BACKBONE) -> Weights:
    """Return weights of a backbone.

    Args:
        origin: `imagenet` (torchvision's, downloaded on first use), `random:SEED`, or the path or
            URI of a state dict (`.pth`, `.safetensors`) of the whole classifier or of the backbone.
        backbone: The network.

    Raises:
        ModelError: The weights cannot be read, or are of another network.
    """
    if origin.startswith("random:"):
        return Weights(origin, _random_state(backbone, origin), backbone)
    if origin == "imagenet":
        import torchvision.models  # takes longer to import than torch

        enum, _, member = backbone.torchvision.partition(".")
        state = download(getattr(torchvision.models, enum)[member], origin)
    else:
        state = read_state(origin, "backbone weights")
    return Weights(origin, _select_tensors(state, backbone, origin), backbone)


def download(enum: Any, what: str) -> dict[str, Tensor]:
    """Return torchvision's weights, downloaded on first use; `what` names them in errors.

    Raises ModelError.
    """
    cached = Path(torch.hub.get_dir(), "checkpoints", enum.url.rpartition("/")[2])
    was_cached = cached.exists()
    try:
        return dict(enum.get_state_dict(progress=True, check_hash=True))
    except Exception as error:  # no network, an unexpected or damaged file
        if was_cached:  # torch does not check a cached file
            raise ModelError(
                f"the {what} weights in {cached} cannot be read ({error}); delete that file"
            ) from error
        raise ModelError(
            f"the {what} weights could not be downloaded ({error}); download {enum.url} "
            "elsewhere and give its path"
        ) from error


def seed_generator(generator: torch.Generator, spec: str) -> torch.Generator:
    """Seed a generator as `random:SEED` says, and return it. Raises ModelError."""
    try:
        return generator.manual_seed(int(spec.removeprefix("random:")))
    except ValueError:  # not a number, or more than 64 bits
        raise ModelError(f"{spec}: write random:SEED with a whole number") from None


def read_state(uri: str, what: str) -> dict[str, Tensor]:
    """Return the tensors of a .pth or .safetensors file; `what` names it in errors.

    Raises ModelError.
    """
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


def _random_state(backbone: BackboneSpec, spec: str) -> dict[str, Tensor]:
    """Draw convolutions as torchvision does for VGG (He 2015); other layers change nothing."""
    generator = seed_generator(torch.Generator(), spec)
    state = {}
    for name, shape in backbone.tensors.items():
        value = state[name] = torch.zeros(shape)
        if len(shape) > 1:
            nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu", generator=generator)
        elif name.endswith(("weight", "running_var")):  # of a batch normalisation
            value.fill_(1)
    return state


def _select_tensors(
    state: Mapping[str, Tensor], backbone: BackboneSpec, origin: str
) -> dict[str, Tensor]:
    """Return the tensors of a backbone from a state dict, with or without the prefix."""
    has_prefix = any(str(key).startswith(backbone.prefix) for key in state)
    prefix = backbone.prefix if has_prefix else ""
    tensors = {}
    for name, shape in backbone.tensors.items():
        value = state.get(prefix + name)
        if not isinstance(value, Tensor) or value.shape != shape:
            problem = (
                f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else "is missing"
            )
            raise ModelError(f"{origin} is not {backbone.title}: {prefix}{name} {problem}")
        tensors[name] = value.detach().float().contiguous()
    return tensors


class Backbone(nn.Module):
    """A backbone up to the deepest of `layers`; no gradients.

    Runs in the dtype of its parameters, channels-last.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        layers: Sequence[str],
        spec: BackboneSpec = DEFAULT_BACKBONE,
    ) -> None:
        super().__init__()
        unknown = [name for name in layers if name not in spec.layers]
        if unknown:
            raise ModelError(
                f"no such layers: {', '.join(unknown)}; {spec.title} has {', '.join(spec.layers)}"
            )
        blocks = spec.build()
        blocks.load_state_dict(dict(state), assign=True)
        depth = max(spec.layers[name].position for name in layers) + 1
        self.blocks = blocks[:depth].eval().requires_grad_(False)
        self.blocks.to(memory_format=torch.channels_last)
        self.layers = {spec.layers[name].position: name for name in layers}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {layer: (B, C, H/stride, W/stride)} of normalised images (B, 3, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        maps = {}
        for position, block in enumerate(self.blocks):
            x = block(x)
            if position in self.layers:
                maps[self.layers[position]] = x
        return maps
