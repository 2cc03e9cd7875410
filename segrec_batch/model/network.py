"""A backbone in torch: images to the maps of some layers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segrec_batch.common.errors import ModelError
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec


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
        network = spec.build()
        network.load_state_dict(dict(state), assign=True)
        nodes = {spec.layers[name].node: name for name in layers}
        self.network = _extract_maps(network, nodes).eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {layer: (B, C, h, w)} of normalised images (B, 3, H, W)."""
        maps: dict[str, Tensor] = self.network(x.contiguous(memory_format=torch.channels_last))
        return maps


class _Blocks(nn.Module):
    """The first blocks of a sequence, with the outputs of some by name."""

    def __init__(self, network: nn.Sequential, nodes: Mapping[str, str]) -> None:
        super().__init__()
        depth = max(map(int, nodes)) + 1
        self.blocks = network[:depth]
        self.names = [nodes.get(str(position)) for position in range(depth)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        maps = {}
        for name, block in zip(self.names, self.blocks, strict=True):
            x = block(x)
            if name is not None:
                maps[name] = x
        return maps


def _extract_maps(network: nn.Module, nodes: Mapping[str, str]) -> nn.Module:
    """Return a module that computes the outputs of some nodes by name, and nothing deeper.

    A sequence needs no tracing, and does without torchvision.

    Args:
        network: The network.
        nodes: Names of the outputs, by node.
    """
    if isinstance(network, nn.Sequential):
        return _Blocks(network, nodes)
    from torchvision.models.feature_extraction import create_feature_extractor

    # the traces of training and evaluation differ in dropped branches; only evaluation is used
    extractor: nn.Module = create_feature_extractor(
        network, dict(nodes), suppress_diff_warning=True
    )
    return extractor
