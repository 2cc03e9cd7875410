"""Pictures → class maps and features: backbone, SVM head and pooling in one forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segrec_batch.decode import Shape
from segrec_batch.model import describe
from segrec_batch.model.backbone import DEEPEST, Backbone
from segrec_batch.model.bundle import Model
from segrec_batch.model.device import Download, Upload, full_float32, resolve_device
from segrec_batch.model.head import LinearHead, Tap, resize
from segrec_batch.model.spec import COMMON_GRID

_AT_ONCE = 2**24  # scores that are resized to masks together: 64 MiB


@dataclass(frozen=True)
class Segmentation:
    """What the model says of B pictures of one shape; K classes, class 0 is the background.

    labels: (B, h, w) uint8, the class map on the feature grid, stride 16.
    common: (B, 32, 32) uint8, the class map on the common grid.
    counts: (B, K) int64, cells of each class on the feature grid; their sum is h·w.
    feature: (B, 512) float32, global average of conv5_3.
    region_features: (B, K, 512) float32, the same average inside each class.
    sign_bits: (B, 8) int64, bits of `feature`.
    masks: the class map of each picture at the size that was asked for it: (H, W) uint8.
    """

    labels: NDArray[np.uint8]
    common: NDArray[np.uint8]
    counts: NDArray[np.int64]
    feature: NDArray[np.float32]
    region_features: NDArray[np.float32]
    sign_bits: NDArray[np.int64]
    masks: list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Launched:
    """Work that a device has been given."""

    _found: Segmentation
    _download: Download

    def result(self) -> Segmentation:
        """What it found; waits for it."""
        self._download.wait()
        return self._found


class Segmenter(nn.Module):
    """A model on a device. Call it with uint8 pictures of one shape."""

    def __init__(self, model: Model, device: str = "cpu") -> None:
        super().__init__()
        self.model = model
        self.device = resolve_device(device)
        spec = model.spec
        self.normalise = Normalise(spec.minmax, spec.mean, spec.std, spec.dtype)
        self.maps = FeatureMaps(model.backbone, model.taps, self.normalise, self.device)
        self.head = LinearHead(model.svm_weights, model.svm_bias, spec.components)
        self.head.to(self.device)
        self.centre = model.sign_centre.to(self.device)
        self.rotation = model.sign_rotation.to(self.device)

    def forward(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> Segmentation:
        """Segment and describe pictures, uint8 (B, H, W, 3) RGB.

        masks: the sizes (height, width) of their masks, for each picture or for none.
        """
        return self.launch(pixels, masks).result()

    @torch.inference_mode()
    def launch(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> Launched:
        """As calling it, but a GPU may still be at it; more can be launched meanwhile.

        Raises RuntimeError where the device lacks memory, see `device.lacks_memory`.
        """
        maps = self.maps(pixels)
        deepest = maps[DEEPEST]
        with full_float32():
            scores: Tensor = self.head(maps)
        labels = _class_map(scores, deepest.shape[-2:])
        counts, means = describe.class_means(deepest, labels, scores.shape[1])
        feature = describe.global_mean(deepest)
        sign_bits = describe.sign_bits(feature, self.centre, self.rotation)
        host = Download(self.device)
        found = Segmentation(
            labels=host(labels).numpy(),
            common=host(_class_map(scores, (COMMON_GRID, COMMON_GRID))).numpy(),
            counts=host(counts).numpy(),
            feature=host(feature).numpy(),
            region_features=host(means).numpy(),
            sign_bits=host(sign_bits).numpy(),
            masks=[mask for maps in class_maps(scores, masks) for mask in host(maps).numpy()],
        )
        return Launched(found, host)


def class_maps(scores: Tensor, shapes: Sequence[Shape]) -> Iterator[Tensor]:
    """Scores (B, K, h, w) → class maps uint8 at B sizes: resized bilinearly, argmax.

    They come in batches (b, H, W) of neighbours of one size, within a bound on memory.
    """
    start = 0
    for shape, alike in groupby(shapes):
        end = start + len(list(alike))
        step = max(1, _AT_ONCE // (scores.shape[1] * shape[0] * shape[1]))
        for i in range(start, end, step):
            yield _class_map(scores[i : min(i + step, end)], shape)
        start = end


def _class_map(scores: Tensor, shape: Shape) -> Tensor:
    """(b, K, h, w) → (b, H, W) uint8, of equal scores the first class: of many classes a few at a
    time, the best so far in memory. max() is ten times as fast as argmax() on CPUs.
    """
    step = max(1, _AT_ONCE // (len(scores) * shape[0] * shape[1]))
    best, labels = resize(scores[:, :step], shape).max(dim=1)
    for k in range(step, scores.shape[1], step):
        value, label = resize(scores[:, k : k + step], shape).max(dim=1)
        labels = torch.where(value > best, label + k, labels)
        best = torch.maximum(best, value)
    return labels.to(torch.uint8)


class FeatureMaps(nn.Module):
    """Normalisation and backbone on a device: pictures → the maps of the taps and of conv5_3."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        taps: Sequence[Tap],
        normalise: "Normalise",
        device: str,
    ) -> None:
        super().__init__()
        layers = dict.fromkeys([*(tap.layer for tap in taps), DEEPEST])
        self.device = device
        self._upload = Upload(device)
        self.normalise = normalise.to(device)
        self.backbone = Backbone(state, list(layers)).to(device, normalise.dtype)

    @torch.inference_mode()
    def forward(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """uint8 (B, H, W, 3) RGB of one shape → {layer: (B, C, h, w)}."""
        with full_float32():
            maps: dict[str, Tensor] = self.backbone(self.normalise(self._upload(pixels)))
        return maps


class Normalise(nn.Module):
    """uint8 (B, H, W, 3) → (B, 3, H, W) in `dtype`: scaled to [0, 1], then by mean and deviation.

    With `minmax` each picture's smallest value becomes 0 and its largest 1 (Abdullah 2026,
    section 3); a picture of one value becomes 0. Otherwise values are divided by 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, minmax: bool, mean: Sequence[float], std: Sequence[float], dtype: str
    ) -> None:
        super().__init__()
        self.minmax = minmax
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        x = pixels.permute(0, 3, 1, 2).float()  # (B, H, W, 3) -> (B, 3, H, W)
        if self.minmax:
            low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
            x = (x - low) / (high - low).clamp(min=1)
        else:
            x = x / 255
        return ((x - self.mean) / self.std).to(self.dtype)
