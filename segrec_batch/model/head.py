"""The linear SVM as a network layer.

A linear SVM at every position of a feature map is a 1×1 convolution. Average pooling and bilinear
resizing are linear too, so the scores of each layer are computed at its own stride, resized and
added. The result equals that of an SVM on hypercolumns, which are never computed.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segrec_batch.model.backbones import Tap

# Numbers that a block of GPU threads can store. PyTorch stores the weights for averaging 32 columns
# and a row there; they do not fit if 156 cells become one, as for an image one pixel high.
_BLOCK = 12_288


def pool(x: Tensor, window: int) -> Tensor:
    """Return (B, C, h, w) with each cell replaced by the mean of its window inside the map."""
    if window == 1:
        return x
    return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)


class LinearHead(nn.Module):
    """One-vs-rest linear SVMs over several taps.

    The score of a class is that of its best component.

    Args:
        weights: SVM weights (M, C) of M components by tap.
        bias: SVM intercepts (M,).
        components: Class (0 = background) of each component.
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
        joined = [torch.cat([weights[tap] for tap in self._taps_of(name)]) for name in self.layers]
        self.weights = nn.ParameterList(  # one for all taps of a layer
            [nn.Parameter(w.float()[:, :, None, None], requires_grad=False) for w in joined]
        )
        self.register_buffer("bias", bias.float())
        self.members = nn.ParameterList(  # indices: with a mask, a GPU has to count first
            [
                nn.Parameter((torch.tensor(components) == k).nonzero()[:, 0], requires_grad=False)
                for k in range(self.n_classes)
            ]
        )

    def decision(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return w·x + b (Abdullah 2026, eq. 4): (B, M, h, w) on the grid of the finest tap."""
        size = max((maps[tap.layer].shape[-2:] for tap in self.taps), key=lambda hw: hw[0])
        total = self.bias[:, None, None]
        for name, weight in zip(self.layers, self.weights, strict=True):
            parts = F.conv2d(maps[name].float(), weight).split(len(self.bias), dim=1)
            for tap, part in zip(self._taps_of(name), parts, strict=True):
                total = total + _read(pool(part, tap.window), size, tap.source.shift)
        return total

    def _taps_of(self, layer: str) -> tuple[Tap, ...]:
        return tuple(tap for tap in self.taps if tap.layer == layer)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return class scores (B, K, h, w), the maximum over the components of each class."""
        decision = self.decision(maps)
        best = [decision.index_select(1, members).amax(dim=1) for members in self.members]
        return torch.stack(best, dim=1)


def _read(scores: Tensor, size: Sequence[int], shift: float) -> Tensor:
    """Return scores (B, C, h, w) at the centres of the cells of a finer grid, `size`.

    shift: of the layer, see `backbones.Layer`.
    """
    if not shift:
        return resize(scores, size)
    rows, columns = (
        read_positions(new, own, shift, scores.device)
        for new, own in zip(size, scores.shape[-2:], strict=True)
    )
    where = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    where = where.expand(len(scores), -1, -1, -1)
    return F.grid_sample(scores, where, padding_mode="border", align_corners=False)


def read_positions(new: int, own: int, shift: float, device: torch.device) -> Tensor:
    """Return where the centres of `new` cells lie in a map of `own` cells, see `F.grid_sample`.

    The receptive field of a cell is centred `shift` cells before its centre, so a map is read that
    much further on.
    """
    centres = (torch.arange(new, device=device) + 0.5) / new
    return centres * 2 - 1 + 2 * shift / own


def resize(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Resize scores (B, C, h, w) bilinearly to `size`; a smaller size averages (antialiased)."""
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    height, width = (
        2 * math.ceil(max(old / new, 1)) + 1  # cells under the filter
        for old, new in zip(scores.shape[-2:], size, strict=True)
    )
    source = scores if 32 * width + 33 * height <= _BLOCK else scores.cpu()
    if size[1] == 1:  # PyTorch 2.15 is wrong for a single column on CPUs, not for a row
        return _interpolate(source.mT.contiguous(), [1, size[0]]).mT.to(scores.device)
    return _interpolate(source, size).to(scores.device)


def _interpolate(scores: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(
        scores, size=list(size), mode="bilinear", align_corners=False, antialias=True
    )
