"""The linear SVM as a network layer.

A linear SVM at every position of a feature map is a 1×1 convolution. Average pooling and bilinear
resizing are linear too, so what each layer contributes is computed at that layer's own stride and
the *scores* are resized and added: a hypercolumn SVM without the hypercolumn.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segrec_batch.model.backbones import Tap

# Numbers that a block of a GPU's threads has room for. PyTorch keeps there the weights by which it
# averages, of 32 columns and a row: 156 cells to one, of an image one pixel high, are too many.
_BLOCK = 12_288


def pool(x: Tensor, window: int) -> Tensor:
    """(B, C, h, w) → the same shape, each cell the mean of its window inside the map."""
    if window == 1:
        return x
    return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)


class LinearHead(nn.Module):
    """One-vs-rest linear SVMs over several taps.

    `weights[tap]` (M, C) and `bias` (M,) are the SVMs of M *components*; `components[m]` is the
    class (0 = background) that component m belongs to. A class scores as its best component.
    """

    bias: Tensor

    def __init__(
        self, weights: Mapping[Tap, Tensor], bias: Tensor, components: Sequence[int]
    ) -> None:
        super().__init__()
        self.taps = tuple(weights)
        self.stride = min(tap.source.stride for tap in self.taps)
        self.n_classes = max(components) + 1
        self.layers = tuple(dict.fromkeys(tap.layer for tap in self.taps))
        together = [torch.cat([weights[tap] for tap in self._of(name)]) for name in self.layers]
        self.weights = nn.ParameterList(  # of all taps of a layer, so that it is read once
            [nn.Parameter(w.float()[:, :, None, None], requires_grad=False) for w in together]
        )
        self.register_buffer("bias", bias.float())
        self.members = nn.ParameterList(  # by number: those of a mask a GPU would stop to count
            [
                nn.Parameter(torch.tensor(_places(components, k)), requires_grad=False)
                for k in range(self.n_classes)
            ]
        )

    def decision(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Decision values w·x + b (Abdullah 2026, eq. 4): (B, M, h, w) on the finest tap's grid."""
        size = max((maps[tap.layer].shape[-2:] for tap in self.taps), key=lambda hw: hw[0])
        total = self.bias[:, None, None]
        for name, weight in zip(self.layers, self.weights, strict=True):
            parts = F.conv2d(maps[name].float(), weight).split(len(self.bias), dim=1)
            for tap, part in zip(self._of(name), parts, strict=True):
                total = total + resize(pool(part, tap.window), size)
        return total

    def _of(self, layer: str) -> tuple[Tap, ...]:
        return tuple(tap for tap in self.taps if tap.layer == layer)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Class scores (B, K, h, w): for each class the maximum over its components."""
        decision = self.decision(maps)
        best = [decision.index_select(1, members).amax(dim=1) for members in self.members]
        return torch.stack(best, dim=1)


def _places(values: Sequence[int], value: int) -> list[int]:
    return [i for i, other in enumerate(values) if other == value]


def resize(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resizing of scores (B, C, h, w) to `size`; a smaller size averages (antialiased)."""
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    high, wide = (
        2 * math.ceil(max(own / new, 1)) + 1
        for own, new in zip(scores.shape[-2:], size, strict=True)
    )
    given = scores if 32 * wide + 33 * high <= _BLOCK else scores.cpu()
    if size[1] == 1:  # PyTorch 2.15 resizes to a single column wrongly on CPUs, to a row rightly
        return _interpolate(given.mT.contiguous(), [1, size[0]]).mT.to(scores.device)
    return _interpolate(given, size).to(scores.device)


def _interpolate(scores: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(
        scores, size=list(size), mode="bilinear", align_corners=False, antialias=True
    )
