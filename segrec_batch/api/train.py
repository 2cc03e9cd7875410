"""Function behind `segrec train`."""

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segrec_batch.common.errors import InputError

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model
    from segrec_batch.model.engines import EngineChoice
    from segrec_batch.training.trainer import Settings

log = logging.getLogger(__name__)

Size = int | tuple[int, int]


def train(
    images: str,
    masks: str,
    classes: str,
    output: str | None = None,
    *,
    backbone: str = "vgg16",
    backbone_weights: str = "imagenet",
    layers: Sequence[str] = (),
    c: Sequence[float] = (1.0, 3.0),
    input_size: Size = 624,
    positions: int = 1000,
    augment: Sequence[str] = (),
    copies: int = 1,
    groups: str = "auto",
    minmax: bool = True,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
) -> "Model":
    """Fit the segmentation model: backbone features of labelled images, a linear SVM on top.

    Args:
        images: folder of images.
        masks: folder of masks with the names of the images.
        classes: JSON file of class names and their mask values.
        output: folder to save the bundle in; None saves nothing.
        backbone: name of the network of the features.
        backbone_weights: `imagenet`, a state dict, or `random:SEED`.
        layers: comma-separated layers of the SVM; of several sets cross-validation takes the best;
            empty for those of the backbone.
        c: weight of the losses against the margin; of several cross-validation takes the best.
        input_size: images are resized to about SIZE² pixels, or to (height, width).
        positions: positions drawn per image.
        augment: kinds of varied copies: flip, rotate, crop, zoom, scale.
        copies: copies of an image by each kind.
        groups: images that stay in one fold: auto, folder, prefix or none.
        minmax: scale pixels of each image by its minimum and maximum, not by 255.
        engine: auto, ncnn or torch.
        precision: auto, float32 or bfloat16.
        device: auto, cpu, cuda or cuda:N.
        seed: of the sampling.
    """
    from segrec_batch.labels.labelled import load_classes, pair_images
        from segrec_batch.model.engines import report_engine
    from segrec_batch.model.weights import load_weights
    from segrec_batch.training.trainer import train as fit

    if output is not None:
        check_bundle_place(output)
    of_classes, labelled = load_classes(classes), pair_images(images, masks, groups)
    size = max(_shapes(input_size, backbone))
    work = len(labelled) * (1 + len(augment) * copies) * size[0] * size[1]
    choice = choose_device_engine(engine, precision, device, backbone, work)
    report_engine(choice)
    settings = training_settings(backbone, layers, c, input_size, positions, augment, copies, minmax, seed, choice
    )
    weights = load_weights(backbone_weights, settings.backbone)
    count = len({item.group for item in labelled})
    log.info(f"{len(labelled)} labelled images in {count} groups")
    model = fit(labelled, of_classes, weights, settings)
    if output is not None:
        model.save(output)
    return model


def check_bundle_place(output: str) -> None:
    """Raise InputError for a folder that holds anything but a model bundle."""
    from segrec_batch.model.spec import BUNDLE_FILE
    from segrec_batch.sources import storage
    from segrec_batch.sources.strict_json import read_json

    way_out = "give a new or empty folder as --output"
    storage.refuse_strangers(
        output, lambda path: bool(re.fullmatch(BUNDLE_FILE, path)), "a model bundle", way_out
    )
    try:
        is_bundle = "model_id" in read_json(storage.join(output, "model.json"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError):
        is_bundle = False
    if not is_bundle:
        raise InputError(f"{output} holds a model.json that is no model bundle's; {way_out}")


def choose_device_engine(
    engine: str, precision: str, device: str, backbone: str, work: float = 0.0
) -> "EngineChoice":
    """Choose engine and precision for a device, `auto` included; `work` in pixels."""
    from segrec_batch.model.backbones import BACKBONES
    from segrec_batch.model.device import resolve_device
    from segrec_batch.model.engines import choose_engine

    return choose_engine(engine, precision, resolve_device(device), work, BACKBONES[backbone])


def _shapes(input_size: Size, backbone: str) -> tuple[tuple[int, int], ...]:
    from segrec_batch.images.decode import shapes_of_size
    from segrec_batch.model.backbones import BACKBONES

    if not isinstance(input_size, int):
        return (input_size,)
    return shapes_of_size(input_size, BACKBONES[backbone].stride)


def training_settings(
    backbone: str,
    layers: Sequence[str],
    c: Sequence[float],
    input_size: Size,
    positions: int,
    augment: Sequence[str],
    copies: int,
    minmax: bool,
    seed: int,
    engine: "EngineChoice",
) -> "Settings":
    """Return settings of training from the parameters of `train`."""
    from segrec_batch.model.backbones import BACKBONES
    from segrec_batch.training.trainer import Settings
    from segrec_batch.training.sampling import Sampling

    sampling = Sampling(positions, tuple(augment), copies, seed)
    of_backbone = BACKBONES[backbone]
    chosen = tuple(layers) or (of_backbone.default_layers,)
    shapes = _shapes(input_size, backbone)
    return Settings(chosen, tuple(c), shapes, minmax, sampling, engine, of_backbone)
