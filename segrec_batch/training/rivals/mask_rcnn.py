"""Mask R-CNN of torchvision (He et al. 2017) on ResNet-50 with FPN, fine-tuned on class maps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import InputError, ModelError
from segrec_batch.images.decode import Shape
from segrec_batch.labels.labelled import Classes, LabelledImage
from segrec_batch.model.device import resolve_device
from segrec_batch.model.head import resize
from segrec_batch.model.weights import download, read_state
from segrec_batch.training.rivals.base import ClassMap, NotRun, seed_torch, shrink, shrink_both

NAME = "Mask R-CNN"
_PREDICTORS = (  # layers that depend on the number of classes; they are trained from scratch
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
)

Example = tuple[Tensor, dict[str, Tensor]]  # pixels (3, h, w) in [0, 1], target


@dataclass(frozen=True)
class MaskRcnnSettings:
    """Parameters of the fine-tuning.

    Attributes:
        weights: path or URI of a state dict of `maskrcnn_resnet50_fpn` (.pth, .safetensors), or
            `download` for torchvision's weights.
        min_size: pixels to which the short side of an image is scaled; the long side gets at most
            twice that.
        min_pixels: minimum size of an object in training.
        score: minimum score of an object in a prediction.
        rate: highest learning rate of SGD.
    """

    weights: str | None = None
    min_size: int = 480
    min_pixels: int = 100
    score: float = 0.5
    epochs: int = 10
    batch: int = 2
    rate: float = 0.005
    seed: int = 0
    device: str = "auto"

    @property
    def max_size(self) -> int:
        """Maximum pixels of the long side."""
        return 2 * self.min_size


class FittedMaskRcnn:
    """A fine-tuned Mask R-CNN with its settings and its training loss at each step."""

    def __init__(
        self, network: nn.Module, settings: MaskRcnnSettings, losses: Sequence[float]
    ) -> None:
        self.network = network.eval()
        self.losses = losses
        self._settings = settings

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """Settings by name of the method."""
        return {NAME: asdict(self._settings)}

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> dict[str, ClassMap]:
        """Return the class map of an RGB image; objects are painted in ascending order of score."""
        device = next(self.network.parameters()).device
        pixels = _to_tensor(shrink(image, self._settings.max_size)).to(device)
        (objects,) = self.network([pixels])
        labels = paint_objects(objects, (image.height, image.width), self._settings.score)
        return {NAME: ClassMap(labels, None)}


def paint_objects(
    objects: Mapping[str, Tensor], size: Shape, min_score: float
) -> NDArray[np.uint8]:
    """Return the class map of `size` of the objects with at least `min_score`, best on top.

    Args:
        objects: `scores` and `labels` (n,), `masks` (n, 1, h, w) in [0, 1], which are resized
            bilinearly.
    """
    canvas = torch.zeros(size, dtype=torch.uint8, device=objects["masks"].device)
    for i in objects["scores"].argsort(stable=True):
        if objects["scores"][i] >= min_score:
            mask = resize(objects["masks"][i][None], size)[0, 0]
            canvas[mask >= 0.5] = objects["labels"][i].to(torch.uint8)
    return canvas.cpu().numpy()


def fit_mask_rcnn(
    images: Sequence[LabelledImage], classes: Classes, settings: MaskRcnnSettings | None = None
) -> FittedMaskRcnn:
    """Fine-tune on the connected regions of the classes, see `connected_instances`.

    Raises:
        NotRun: no weights are given, or the loss diverges.
        ModelError: the weights are not those of a Mask R-CNN.
        InputError: there are no images.
        DeviceError: the device is missing.
    """
    settings = settings or MaskRcnnSettings()
    if not images:
        raise InputError(f"{NAME}: no labelled images to train on")
    state = load_state(settings.weights)
    device = resolve_device(settings.device)
    with seed_torch(settings.seed, device):
        network = build_network(state, len(classes.names) + 1, settings).to(device)
        losses = _train(network, images, classes, settings)
    return FittedMaskRcnn(network, settings, losses)


def load_state(weights: str | None) -> dict[str, Tensor]:
    """Return the state dict named by `MaskRcnnSettings.weights`. Raises NotRun, ModelError."""
    if weights is None:
        raise NotRun("no weights: give --mask-rcnn-weights PATH, or download")
    if weights == "download":
        from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

        return download(MaskRCNN_ResNet50_FPN_Weights.DEFAULT, "Mask R-CNN")
    return read_state(weights, "Mask R-CNN weights")


def build_network(
    state: Mapping[str, Tensor], classes: int, settings: MaskRcnnSettings
) -> nn.Module:
    """Build a Mask R-CNN for `classes` classes, background included, from weights for others.

    The last layers of the box and mask heads are initialised at random.

    Raises:
        ModelError: other tensors are missing, unexpected or of another shape.
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    # torchvision's weights were trained with eps 0
    norm = partial(FrozenBatchNorm2d, eps=0.0)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm)
    network: nn.Module = MaskRCNN(
        backbone, classes, min_size=settings.min_size, max_size=settings.max_size
    )
    initial = {n: t for n, t in network.state_dict().items() if n.startswith(_PREDICTORS)}
    loaded = {n: t for n, t in state.items() if not n.startswith(_PREDICTORS)}
    try:  # torchvision's file has older names, which its modules translate
        names = network.load_state_dict({**loaded, **initial}, strict=False)
    except RuntimeError as error:
        raise ModelError(f"not weights of maskrcnn_resnet50_fpn: {error}") from error
    # counters of unfrozen batch normalisation do not affect the result
    unexpected = {n for n in names.unexpected_keys if not n.endswith(".num_batches_tracked")}
    for problem, names_ in (
        ("is missing", set(names.missing_keys)),
        ("is not expected", unexpected),
    ):
        if names_:
            raise ModelError(f"not weights of maskrcnn_resnet50_fpn: {min(names_)} {problem}")
    return network


def _train(
    network: nn.Module,
    images: Sequence[LabelledImage],
    classes: Classes,
    settings: MaskRcnnSettings,
) -> list[float]:
    steps = settings.epochs * -(-len(images) // settings.batch)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, settings.rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.rate, total_steps=steps, cycle_momentum=False
    )
    device = trained[0].device
    losses: list[float] = []
    network.train()
    with ProgressMeter(f"{NAME} training", steps) as meter:
        for batch in _batches(images, classes, settings):
            pixels = [x.to(device) for x, _ in batch]
            targets = [{k: v.to(device) for k, v in target.items()} for _, target in batch]
            loss = sum(network(pixels, targets).values())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(_check_finite(loss.item(), len(losses)))
            meter.advance()
    return losses


def _check_finite(loss: float, step: int) -> float:
    if not np.isfinite(loss):
        raise NotRun(f"the loss is {loss} after {step} steps: try a lower learning rate")
    return loss


def _batches(
    images: Sequence[LabelledImage], classes: Classes, settings: MaskRcnnSettings
) -> Iterator[list[Example]]:
    """Yield batches; each epoch has all images in a new order, half of them mirrored."""
    rng = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(order), settings.batch):
            chosen = order[start : start + settings.batch]
            yield [_load_example(images[i], classes, settings, rng.choice([-1, 1])) for i in chosen]


def _load_example(
    item: LabelledImage, classes: Classes, settings: MaskRcnnSettings, step: int
) -> Example:
    pixels, values = shrink_both(*item.load(classes), settings.max_size)
    labels = classes.to_classes(values)[:, ::step]
    objects = connected_instances(labels, len(classes.names), settings.min_pixels)
    target = {
        "labels": torch.from_numpy(objects.labels),
        "boxes": torch.from_numpy(objects.boxes),
        "masks": torch.from_numpy(objects.masks.astype(np.uint8)),
    }
    return _to_tensor(pixels[:, ::step]), target


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 (h, w, 3) to float32 (3, h, w) in [0, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class Instances:
    """The n objects of an image.

    Attributes:
        labels: (n,) int64 classes, from 1.
        boxes: (n, 4) float32, x0, y0, x1, y1 in pixels; x1 and y1 are exclusive.
        masks: (n, H, W) bool.
    """

    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_]


def connected_instances(labels: NDArray[np.int16], classes: int, min_pixels: int) -> Instances:
    """Return the 4-connected regions of at least `min_pixels` in a class map (H, W).

    Classes 1 to `classes` are taken in order; void pixels belong to no region.
    """
    object_classes, boxes, masks = [], [], []
    for k in range(1, classes + 1):
        regions, _ = ndimage.label(labels == k)
        sizes = np.bincount(regions.ravel())
        for i, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
            if sizes[i] >= min_pixels:
                object_classes.append(k)
                boxes.append((columns.start, rows.start, columns.stop, rows.stop))
                masks.append(regions == i)
    return Instances(
        np.array(object_classes, np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(masks, np.bool_).reshape(-1, *labels.shape),
    )
