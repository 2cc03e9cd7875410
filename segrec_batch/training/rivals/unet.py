"""U-Net trained from scratch on labelled images (Ronneberger, Fischer, Brox 2015)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import InputError
from segrec_batch.labels.labelled import VOID, Classes, LabelledImage
from segrec_batch.model.device import resolve_device
from segrec_batch.model.engine_choice import choose_engine
from segrec_batch.training.rivals.base import ClassMap, class_map, seed_torch, shrink, shrink_both

NAME = "U-Net"
_GREY = 128  # value of added borders; 0 after normalisation

Example = tuple[NDArray[np.uint8], NDArray[np.int16]]  # pixels (h, w, 3), classes (h, w)


@dataclass(frozen=True)
class UNetSettings:
    """Parameters of the U-Net and its training.

    Attributes:
        side: maximum pixels of the long side; larger images are shrunk.
        crop: side of the training windows in pixels.
        width: channels at full resolution, doubled at each of `depth` halvings.
        rate: highest learning rate of Adam.
        precision: arithmetic of the convolutions; auto takes bfloat16 where the device computes it
            natively.
    """

    side: int = 256
    crop: int = 160
    width: int = 16
    depth: int = 4
    epochs: int = 40
    batch: int = 8
    rate: float = 3e-3
    precision: str = "auto"
    seed: int = 0
    device: str = "auto"


class UNet(nn.Module):
    """Network from (B, 3, h, w) to class scores (B, K, h, w); h, w are multiples of 2**depth.

    The contracting path has pairs of 3×3 convolutions and max pooling; the expanding path has 2×2
    up-convolutions, each concatenated with the maps of the contracting path at the same size.
    Unlike in the paper, convolutions are padded and batch-normalised.
    """

    def __init__(self, classes: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        upward = widths[-2::-1]
        self.contract = nn.ModuleList(map(_two_convolutions, [3, *widths], widths))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in upward)
        self.expand = nn.ModuleList(_two_convolutions(2 * w, w) for w in upward)
        self.score = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        skipped = []
        for i, block in enumerate(self.contract):
            x = block(F.max_pool2d(x, 2) if i else x)
            skipped.append(x)
        for enlarge, block, skip in zip(self.enlarge, self.expand, skipped[-2::-1], strict=True):
            x = block(torch.cat([skip, enlarge(x)], dim=1))
        scores: Tensor = self.score(x)
        return scores


def _two_convolutions(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (channels, width):
        convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class FittedUNet:
    """A trained U-Net with its settings."""

    def __init__(self, network: UNet, settings: UNetSettings) -> None:
        self.network = network.eval()
        self._settings = settings

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """Settings by name of the method."""
        parameters = sum(p.numel() for p in self.network.parameters())
        return {NAME: {**asdict(self._settings), "parameters": parameters}}

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> dict[str, ClassMap]:
        """Return the class map of an RGB image."""
        pixels = shrink(image, self._settings.side)
        h, w, _ = pixels.shape
        multiple = 2**self._settings.depth
        padded = _pad(pixels, -h % multiple, -w % multiple, _GREY)
        scores = _compute_scores(self.network, padded[None], self._settings)[:, :, :h, :w]
        return {NAME: ClassMap(class_map(scores, image), None)}


def fit_unet(
    images: Sequence[LabelledImage], classes: Classes, settings: UNetSettings | None = None
) -> FittedUNet:
    """Train on all labelled pixels of the images, which are held in memory at reduced size.

    Raises:
        InputError: there are no images.
        DeviceError: the device is missing.
    """
    settings = settings or UNetSettings()
    if not images:
        raise InputError(f"{NAME}: no labelled images to train on")
    device = resolve_device(settings.device)
    precision = choose_engine("torch", settings.precision, device).precision
    settings = replace(settings, precision=precision)
    examples = [_load_example(item, classes, settings.side) for item in images]
    with seed_torch(settings.seed, device):
        network = UNet(len(classes.names) + 1, settings.width, settings.depth)
        network.to(device).to(memory_format=torch.channels_last)
        _train(network, examples, settings)
    return FittedUNet(network, settings)


def _load_example(item: LabelledImage, classes: Classes, side: int) -> Example:
    pixels, labels = shrink_both(*item.load(classes), side)
    return pixels, classes.to_classes(labels)


def _train(network: UNet, examples: Sequence[Example], settings: UNetSettings) -> None:
    steps = settings.epochs * -(-len(examples) // settings.batch)
    optimiser = torch.optim.Adam(network.parameters(), settings.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.rate, total_steps=steps)
    with ProgressMeter(f"{NAME} training", steps) as meter:
        for pixels, labels in _batches(examples, settings):
            scores = _compute_scores(network, pixels, settings)
            loss = segmentation_loss(scores, torch.from_numpy(labels).to(scores.device).long())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            meter.advance()


def _batches(
    examples: Sequence[Example], settings: UNetSettings
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int16]]]:
    """Yield batches; each epoch has one window of every example, in a new order."""
    rng = np.random.default_rng(settings.seed)
    crop = -(-settings.crop // 2**settings.depth) * 2**settings.depth
    for _ in range(settings.epochs):
        order = rng.permutation(len(examples))
        for start in range(0, len(order), settings.batch):
            chosen = order[start : start + settings.batch]
            windows = [_draw_window(examples[i], crop, rng) for i in chosen]
            yield np.stack([p for p, _ in windows]), np.stack([y for _, y in windows])


def _draw_window(example: Example, crop: int, rng: np.random.Generator) -> Example:
    """Return a random crop × crop window, mirrored half of the time; padding is void."""
    pixels, labels = example
    below, right = (max(0, crop - n) for n in labels.shape)
    pixels, labels = _pad(pixels, below, right, _GREY), _pad(labels, below, right, VOID)
    y, x = (rng.integers(n - crop + 1) for n in labels.shape)
    step = rng.choice([-1, 1])
    window = np.s_[y : y + crop, x : x + crop]
    return pixels[window][:, ::step], labels[window][:, ::step]


def _pad(array: NDArray[Any], below: int, right: int, value: int) -> NDArray[Any]:
    widths = [(0, below), (0, right), (0, 0)][: array.ndim]
    return np.pad(array, widths, constant_values=value)


def _compute_scores(network: UNet, pixels: NDArray[np.uint8], settings: UNetSettings) -> Tensor:
    """Return class scores float32 (B, K, h, w) of pixels uint8 (B, h, w, 3)."""
    device = next(network.parameters()).device
    x = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)  # (B, h, w, 3) -> (B, 3, h, w)
    x = ((x.float() - _GREY) / 64).contiguous(memory_format=torch.channels_last)
    dtype: torch.dtype = getattr(torch, settings.precision)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        scores: Tensor = network(x)
    return scores.float()


def segmentation_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice of (B, K, h, w) scores over labelled pixels.

    The Dice term is 1 minus the mean over foreground classes of 2·Σp·y / (Σp + Σy), with sums over
    the batch, so that rare classes weigh as much as common ones (Milletari, Navab, Ahmadi 2016,
    section 3).
    """
    is_labelled = labels != VOID
    total = F.cross_entropy(scores, labels, ignore_index=VOID, reduction="sum")
    p = scores.softmax(dim=1) * is_labelled[:, None]
    y = F.one_hot(labels.clamp(min=0), scores.shape[1]).movedim(-1, 1) * is_labelled[:, None]
    overlap, sizes = (t.sum(dim=(0, 2, 3))[1:] for t in (p * y, p + y))
    dice = 2 * overlap / sizes.clamp(min=1)
    return total / is_labelled.sum().clamp(min=1) + 1 - dice.mean()
