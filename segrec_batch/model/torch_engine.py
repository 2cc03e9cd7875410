"""The segmenter in torch: backbone, SVM head and pooling in one forward pass, on CPUs and GPUs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segrec_batch.images.decode import Shape
from segrec_batch.model import pooling
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec
from segrec_batch.model.bundle import Model
from segrec_batch.model.device import Download, Upload, full_float32, resolve_device
from segrec_batch.model.head import LinearHead, resize
from segrec_batch.model.network import Backbone
from segrec_batch.model.segmentation import Segmentation
from segrec_batch.model.spec import COMMON_GRID, Scaling

K = TypeVar("K")

_MAX_SCORES = 2**24  # scores resized at a time: 64 MiB


@dataclass(frozen=True)
class _DeviceWork:
    """A `PendingSegmentation` that a device computes."""

    _segmentation: Segmentation
    _download: Download

    def result(self) -> Segmentation:
        """Wait for the segmentation and return it."""
        self._download.wait()
        return self._segmentation


class TorchSegmenter(nn.Module):
    """A model in torch on a device, see `segmentation.Segmenter`.

    precision: float32 or bfloat16, of the backbone; the head computes in float32.
    """

    def __init__(self, model: Model, device: str = "cpu", precision: str = "float32") -> None:
        super().__init__()
        self.model = model
        self.device = resolve_device(device)
        spec = model.spec
        backbone = spec.backbone_spec
        self.feature_layer = backbone.feature_layer
        layers = dict.fromkeys([*(tap.layer for tap in model.taps), self.feature_layer])
        scale = Normalise(spec.scaling, precision)
        state = as_tensors(model.backbone)
        self.maps = FeatureMaps(state, list(layers), scale, self.device, backbone)
        bias = torch.from_numpy(model.svm_bias)
        self.head = LinearHead(as_tensors(model.svm_weights), bias, spec.components)
        self.head.to(self.device)
        self.centre = torch.from_numpy(model.sign_centre).to(self.device)
        self.rotation = torch.from_numpy(model.sign_rotation).to(self.device)

    def forward(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> Segmentation:
        """Segment images, see `segmentation.Segmenter`."""
        return self.launch(pixels, masks).result()

    @torch.inference_mode()
    def launch(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> _DeviceWork:
        """Start the segmentation of images, see `segmentation.Segmenter`."""
        maps = self.maps(pixels)
        feature_map = maps[self.feature_layer]
        with full_float32():
            scores: Tensor = self.head(maps)
        labels = _class_map(scores, feature_map.shape[-2:])
        counts, means = pooling.class_means(feature_map, labels, scores.shape[1])
        feature = pooling.global_mean(feature_map)
        sign_bits = pooling.sign_bits(feature, self.centre, self.rotation)
        host = Download(self.device)
        segmentation = Segmentation(
            labels=host(labels).numpy(),
            common=host(_class_map(scores, (COMMON_GRID, COMMON_GRID))).numpy(),
            counts=host(counts).numpy(),
            feature=host(feature).numpy(),
            region_features=host(means).numpy(),
            sign_bits=host(sign_bits).numpy(),
            masks=[mask for maps in class_maps(scores, masks) for mask in host(maps).numpy()],
        )
        return _DeviceWork(segmentation, host)


def as_tensors(arrays: Mapping[K, NDArray[Any]]) -> dict[K, Tensor]:
    """Return arrays of a bundle as tensors that share their memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def class_maps(scores: Tensor, shapes: Sequence[Shape]) -> Iterator[Tensor]:
    """Yield class maps (b, H, W) uint8 of scores (B, K, h, w) at B sizes: resize, then argmax.

    Each has consecutive images of one size, as many as a memory limit allows.
    """
    start = 0
    for shape, group in groupby(shapes):
        end = start + len(list(group))
        step = max(1, _MAX_SCORES // (scores.shape[1] * shape[0] * shape[1]))
        for i in range(start, end, step):
            yield _class_map(scores[i : min(i + step, end)], shape)
        start = end


def _class_map(scores: Tensor, shape: Shape) -> Tensor:
    """Return class maps (b, H, W) uint8 of scores (b, K, h, w); ties go to the first class.

    A few classes are resized at a time. max() is ten times as fast as argmax() on CPUs.
    """
    step = max(1, _MAX_SCORES // (len(scores) * shape[0] * shape[1]))
    best, labels = resize(scores[:, :step], shape).max(dim=1)
    for k in range(step, scores.shape[1], step):
        value, label = resize(scores[:, k : k + step], shape).max(dim=1)
        labels = torch.where(value > best, label + k, labels)
        best = torch.maximum(best, value)
    return labels.to(torch.uint8)


class FeatureMaps(nn.Module):
    """Normalisation and backbone on a device: images to the maps of some layers."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        layers: Sequence[str],
        normalise: "Normalise",
        device: str,
        backbone: BackboneSpec = DEFAULT_BACKBONE,
    ) -> None:
        super().__init__()
        self.device = device
        self._upload = Upload(device)
        self.normalise = normalise.to(device)
        self.backbone = Backbone(state, layers, backbone).to(device, normalise.dtype)

    @torch.inference_mode()
    def forward(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Return {layer: (B, C, h, w)} of uint8 (B, H, W, 3) RGB images of one shape."""
        with full_float32():
            maps: dict[str, Tensor] = self.backbone(self.normalise(self._upload(pixels)))
        return maps


class Normalise(nn.Module):
    """Normalisation of uint8 (B, H, W, 3) to (B, 3, H, W) in a precision."""

    mean: Tensor
    std: Tensor

    def __init__(self, scaling: Scaling, precision: str = "float32") -> None:
        super().__init__()
        self.minmax = scaling.minmax
        self.dtype: torch.dtype = getattr(torch, precision)
        self.register_buffer("mean", torch.tensor(scaling.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(scaling.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Return normalised images."""
        x = pixels.permute(0, 3, 1, 2).float()  # (B, H, W, 3) -> (B, 3, H, W)
        if self.minmax:
            low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
            x = (x - low) / (high - low).clamp(min=1)
        else:
            x = x / 255
        return ((x - self.mean) / self.std).to(self.dtype)
