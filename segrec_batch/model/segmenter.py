"""Pictures → class maps and features: backbone, SVM head and pooling in one forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segrec_batch.decode import Shape
from segrec_batch.errors import DeviceError
from segrec_batch.model import describe
from segrec_batch.model.backbone import DEEPEST, Backbone
from segrec_batch.model.bundle import Model
from segrec_batch.model.head import LinearHead, Tap, resize
from segrec_batch.model.spec import COMMON_GRID


@dataclass(frozen=True)
class Segmentation:
    """What the model says of B pictures of one shape; K classes, class 0 is the background.

    scores: (B, K, H/s, W/s) float32, s the stride of the finest layer of the head, on the device.
    labels: (B, h, w) uint8, the class map on the feature grid, stride 16.
    common: (B, 32, 32) uint8, the class map on the common grid.
    counts: (B, K) int64, cells of each class on the feature grid; their sum is h·w.
    feature: (B, 512) float32, global average of conv5_3.
    region_features: (B, K, 512) float32, the same average inside each class.
    sign_bits: (B, 8) int64, bits of `feature`.
    """

    scores: Tensor
    labels: NDArray[np.uint8]
    common: NDArray[np.uint8]
    counts: NDArray[np.int64]
    feature: NDArray[np.float32]
    region_features: NDArray[np.float32]
    sign_bits: NDArray[np.int64]

    def mask(self, index: int, shape: Shape) -> NDArray[np.uint8]:
        """The class map of picture `index` at any size: scores resized bilinearly, then argmax."""
        labels: NDArray[np.uint8] = _argmax(resize(self.scores[index : index + 1], shape))[0]
        return labels


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

    @torch.inference_mode()
    def forward(self, pixels: NDArray[np.uint8]) -> Segmentation:
        """Segment and describe pictures, uint8 (B, H, W, 3) RGB."""
        maps = self.maps(pixels)
        deepest = maps[DEEPEST]
        scores: Tensor = self.head(maps)
        labels = resize(scores, deepest.shape[-2:]).argmax(dim=1)
        counts, means = describe.class_means(deepest, labels, scores.shape[1])
        feature = describe.global_mean(deepest)
        sign_bits = describe.sign_bits(feature, self.centre, self.rotation)
        return Segmentation(
            scores=scores,
            labels=labels.to(torch.uint8).cpu().numpy(),
            common=_argmax(resize(scores, (COMMON_GRID, COMMON_GRID))),
            counts=counts.cpu().numpy(),
            feature=feature.cpu().numpy(),
            region_features=means.cpu().numpy(),
            sign_bits=sign_bits.cpu().numpy(),
        )


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
        self.normalise = normalise.to(device)
        self.backbone = Backbone(state, list(layers)).to(device, normalise.dtype)

    @torch.inference_mode()
    def forward(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """uint8 (B, H, W, 3) RGB of one shape → {layer: (B, C, h, w)}."""
        batch = torch.from_numpy(pixels).to(self.device, non_blocking=True)
        maps: dict[str, Tensor] = self.backbone(self.normalise(batch))
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


def _argmax(scores: Tensor) -> NDArray[np.uint8]:
    """(B, K, h, w) → (B, h, w) uint8; of equal scores the first class."""
    labels: NDArray[np.uint8] = scores.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return labels


def resolve_device(name: str) -> str:
    """`auto` → `cuda` where there is a GPU, else `cpu`; any other name must exist (DeviceError)."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"device {name} asked for, but torch sees no GPU; say --device cpu or auto"
        )
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {name} is not available: {error}") from error
    return name
