"""Weights of a backbone: from torchvision by name, from a file, or drawn from a seed."""

import io
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segrec_batch.common.errors import ModelError
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec
from segrec_batch.model.bundle import Array, fingerprint
from segrec_batch.sources import storage

BATCH_COUNT = ".num_batches_tracked"
"""End of the names of the counters in normalisation layers; only training uses them."""


@dataclass(frozen=True)
class Weights:
    """Weights of a backbone.

    origin: `imagenet`, another name of torchvision's weights, `random:SEED` or a path.
    state: float32 tensors by name, see `BackboneSpec.tensors`.
    backbone: the network.
    mean, std: normalisation by RGB channel that the weights were trained with.
    """

    origin: str
    state: Mapping[str, Tensor]
    backbone: BackboneSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]

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
        origin: `imagenet` (torchvision's IMAGENET1K_V1, downloaded on first use), another name of
            torchvision's weights of the network, such as `IMAGENET1K_V2`, `random:SEED`, or the
            path or URI of a state dict (`.pth`, `.safetensors`) of the whole network or of the
            backbone.
        backbone: The network.

    Raises:
        ModelError: The weights cannot be read, or are of another network.
    """
    if origin.startswith("random:"):
        state = _random_state(backbone, origin)
        return Weights(origin, state, backbone, backbone.mean, backbone.std)
    if _ENUM_NAME.fullmatch(origin):
        enum = _find_enum(origin, backbone)
        preset = enum.transforms()
        mean, std = tuple(map(float, preset.mean)), tuple(map(float, preset.std))
        state = _select_tensors(download(enum, f"{backbone.title} {enum.name}"), backbone, origin)
        return Weights(origin, state, backbone, mean, std)
    state = _select_tensors(read_state(origin, "backbone weights"), backbone, origin)
    return Weights(origin, state, backbone, backbone.mean, backbone.std)


_ENUM_NAME = re.compile(r"imagenet|IMAGENET\w*")


def _find_enum(name: str, backbone: BackboneSpec) -> Any:
    """Return torchvision's weights of a name. Raises ModelError for an unknown one."""
    from torchvision.models import get_model_weights  # takes as long to import as torch

    enums = get_model_weights(backbone.name)
    member = "IMAGENET1K_V1" if name == "imagenet" else name
    if member not in enums.__members__:
        names = ", ".join(enums.__members__)
        raise ModelError(
            f"torchvision has no weights {name[:80]} of {backbone.title}; it has {names}"
        )
    return enums[member]


def download(enum: Any, what: str) -> dict[str, Tensor]:
    """Return torchvision's weights, downloaded on first use; `what` names them in errors.

    Raises ModelError.
    """
    cached = Path(torch.hub.get_dir(), "checkpoints", enum.url.rpartition("/")[2])
    was_cached = cached.exists()
    try:
        with redirect_stdout(sys.stderr):  # torch announces a download
            return dict(enum.get_state_dict(progress=True, check_hash=True, weights_only=True))
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
    """Draw convolutions as torchvision does for VGG (He 2015).

    Normalisation layers change nothing but the statistics; residual branches are scaled down.
    """
    generator = seed_generator(torch.Generator(), spec)
    state = {}
    for name, shape in backbone.tensors.items():
        value = state[name] = torch.zeros(shape)
        if backbone.residual_scale and name.endswith(backbone.residual_scale):
            value.fill_(_RESIDUAL_SCALE)
        elif len(shape) > 1:
            nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu", generator=generator)
        elif name.endswith(("weight", "running_var")):  # of a batch normalisation
            value.fill_(1)
    return state


_RESIDUAL_SCALE = 0.25  # of each residual branch in random weights


def _select_tensors(
    state: Mapping[str, Tensor], backbone: BackboneSpec, origin: str
) -> dict[str, Tensor]:
    """Return the tensors of a backbone from a state dict, with or without the prefix.

    Raises ModelError for a tensor that is missing or too many: a deeper network of the same family
    has all tensors of a shallower one.
    """
    has_prefix = any(str(key).startswith(backbone.prefix) for key in state)
    prefix = backbone.prefix if has_prefix else ""
    problem = next(_mismatches(state, backbone, prefix), None)
    if problem:
        raise ModelError(
            f"{origin} is not a state dict of {backbone.title}: {problem}; give the weights of "
            "this network, or --backbone of the network that they belong to"
        )
    return {name: state[prefix + name].detach().float().contiguous() for name in backbone.tensors}


def _mismatches(state: Mapping[str, Tensor], backbone: BackboneSpec, prefix: str) -> Iterator[str]:
    """Yield what distinguishes a state dict from that of a backbone."""
    for name, shape in backbone.tensors.items():
        value = state.get(prefix + name)
        if not isinstance(value, Tensor):
            yield f"{prefix}{name} is missing"
        elif value.shape != shape:
            yield f"{prefix}{name} has shape {tuple(value.shape)}, not {shape}"
    for key in map(str, state):
        is_used = key.removeprefix(prefix) in backbone.tensors or key.endswith(BATCH_COUNT)
        if key.startswith(prefix) and not is_used and not key.startswith(f"{backbone.classifier}."):
            yield f"the network has no {key}"
