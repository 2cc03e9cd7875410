"""Function behind `segrec train`."""

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from segrec_batch.common.errors import InputError

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model
    from segrec_batch.model.engines import EngineChoice
    from segrec_batch.training.trainer import Settings

log = logging.getLogger(__name__)

Size = int | tuple[int, int]


class TrainingParameters(TypedDict, total=False):
    """Choices of training; `DEFAULTS` has the default of each.

    Attributes:
        backbone: network of the features, a name in `segrec_batch.model.backbones.BACKBONES`.
        backbone_weights: `imagenet`, another name of torchvision's weights, a state dict (path or
            URI), or `random:SEED`; see `segrec_batch.model.weights.load_weights`.
        layers: comma-separated layers of the backbone for the SVM; of several sets cross-validation
            takes the best; empty for the default layers of the backbone.
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

    backbone: str
    backbone_weights: str
    layers: Sequence[str]
    c: Sequence[float]
    input_size: Size
    positions: int
    augment: Sequence[str]
    copies: int
    groups: str
    minmax: bool
    engine: str
    precision: str
    device: str
    seed: int


DEFAULTS: TrainingParameters = {
    "backbone": "vgg16",
    "backbone_weights": "imagenet",
    "layers": (),
    "c": (0.03, 0.1, 1.0),
    "input_size": 624,
    "positions": 1000,
    "augment": (),
    "copies": 1,
    "groups": "auto",
    "minmax": True,
    "engine": "auto",
    "precision": "auto",
    "device": "auto",
    "seed": 0,
}


def train(
    images: str,
    masks: str,
    classes: str,
    output: str | None = None,
    **training: Unpack[TrainingParameters],
) -> "Model":
    """Fit the segmentation model: backbone features of labelled images, a linear SVM on top.

    Args:
        images: folder of images.
        masks: folder of masks with the names of the images.
        classes: JSON file of class names and their mask values.
        output: folder to save the bundle in; None saves nothing.
        **training: see `TrainingParameters`.
    """
    from segrec_batch.labels.labelled import load_classes, pair_images
    from segrec_batch.model.engines import report_engine
    from segrec_batch.model.weights import load_weights
    from segrec_batch.training.trainer import train as fit

    if output is not None:
        check_bundle_place(output)
    options = complete(training)
    check_layers(options)
    of_classes, labelled = load_classes(classes), pair_images(images, masks, options["groups"])
    engine = choose_training_engine(options, len(labelled))
    report_engine(engine)
    settings = training_settings(options, engine)
    weights = load_weights(options["backbone_weights"], settings.backbone)
    count = len({item.group for item in labelled})
    log.info(f"{len(labelled)} labelled images in {count} groups")
    model = fit(labelled, of_classes, weights, settings)
    if output is not None:
        model.save(output)
    if model.spec.notice:
        log.warning(model.spec.notice)
    return model


def complete(training: TrainingParameters) -> TrainingParameters:
    """Return parameters with defaults for those that are missing. Raises TypeError for others."""
    if unknown := training.keys() - DEFAULTS.keys():
        raise TypeError(f"no parameter {', '.join(sorted(unknown))} of training")
    return {**DEFAULTS, **training}


def check_layers(options: TrainingParameters) -> None:
    """Raise ModelError for an unknown backbone or layer, before anything is read or downloaded."""
    from segrec_batch.model.backbones import Tap, find_backbone

    backbone = find_backbone(options["backbone"])
    for layers in options["layers"]:
        for text in layers.split(","):
            Tap.parse(text, backbone)


def choose_training_engine(options: TrainingParameters, images: int = 0) -> "EngineChoice":
    """Choose the engine of the backbone; many images are worth a calibration."""
    from segrec_batch.model.backbones import find_backbone
    from segrec_batch.model.device import resolve_device
    from segrec_batch.model.engine_choice import choose_engine

    height, width = max(_shapes(options))
    work = images * (1 + len(options["augment"]) * options["copies"]) * height * width
    device, backbone = resolve_device(options["device"]), find_backbone(options["backbone"])
    return choose_engine(options["engine"], options["precision"], device, work, backbone)


def training_settings(options: TrainingParameters, engine: "EngineChoice") -> "Settings":
    """Return settings of the trainer from complete parameters."""
    from segrec_batch.model.backbones import find_backbone
    from segrec_batch.training.sampling import Sampling
    from segrec_batch.training.trainer import Settings

    backbone = find_backbone(options["backbone"])
    kinds = tuple(options["augment"])
    return Settings(
        layers=tuple(options["layers"]) or (backbone.default_layers,),
        c=tuple(options["c"]),
        shapes=_shapes(options),
        minmax=options["minmax"],
        sampling=Sampling(options["positions"], kinds, options["copies"], options["seed"]),
        engine=engine,
        backbone=backbone,
    )


def _shapes(options: TrainingParameters) -> tuple[tuple[int, int], ...]:
    from segrec_batch.images.decode import shapes_of_size
    from segrec_batch.model.backbones import find_backbone

    size = options["input_size"]
    if not isinstance(size, int):
        return (size,)
    return shapes_of_size(size, find_backbone(options["backbone"]).stride)


def check_bundle_place(output: str) -> None:
    """Raise InputError for a folder that holds anything but a model bundle."""
    from segrec_batch.model.spec import BUNDLE_FILE
    from segrec_batch.sources import storage
    from segrec_batch.sources.strict_json import read_json

    way_out = "give a new or empty folder as --output"
    storage.refuse_foreign_files(
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
