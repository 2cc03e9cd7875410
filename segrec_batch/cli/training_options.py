"""Arguments of commands that train a model."""

import argparse

from segrec_batch.cli.options import add_engine_options
from segrec_batch.common import console
from segrec_batch.images.decode import Shape, shapes_of_size
from segrec_batch.model.backbones import BACKBONES, DEFAULT_BACKBONE
from segrec_batch.model.device import resolve_device
from segrec_batch.model.engines import EngineChoice, choose_engine
from segrec_batch.training.augment import KINDS
from segrec_batch.training.sampling import Sampling
from segrec_batch.training.trainer import DEFAULT_SIZE, Settings


def add_training_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """All choices of training, from the backbone's weights to the seed."""
    add = parser.add_argument
    add(
        "--backbone",
        default=DEFAULT_BACKBONE.name,
        choices=list(BACKBONES),
        help=f"network of the features (default: {DEFAULT_BACKBONE.name})",
    )
    add(
        "--backbone-weights",
        default="imagenet",
        metavar="SPEC",
        help="imagenet (downloaded once), a state dict (.pth, .safetensors; path or URI), or "
        "random:SEED for trying out (default: imagenet)",
    )
    add(
        "--layers",
        nargs="+",
        metavar="A,B",
        help="layers of the SVM, comma-separated; @N averages over N×N cells for context; "
        f"of several sets the best is chosen (default: {DEFAULT_BACKBONE.default_layers})",
    )
    add(
        "--C",
        nargs="+",
        type=_above_zero,
        default=list(Settings.c),
        metavar="C",
        help="weight of the losses against the margin; of several the best is chosen",
    )
    add(
        "--input-size",
        type=_shapes,
        default=str(DEFAULT_SIZE),
        metavar="SIZE|HxW",
        help="images are resized to about SIZE² pixels, keeping their aspect, or to HxW "
        f"(default: {DEFAULT_SIZE})",
    )
    add(
        "--positions",
        type=_positions,
        default=Sampling.positions,
        help="positions drawn per image",
    )
    add("--augment", nargs="*", default=[], choices=KINDS, help="add varied copies of images")
    add(
        "--copies",
        type=console.count,
        default=1,
        metavar="N",
        help="copies by each augmentation (default: 1)",
    )
    add(
        "--groups",
        default="auto",
        choices=("auto", "folder", "prefix", "none"),
        help="what must not straddle a split: images of a folder, of a name without its "
        "trailing number (video frames), or none (default: the first that gives two groups)",
    )
    add("--no-minmax", action="store_true", help="divide pixels by 255 in place of min–max scaling")
    add_engine_options(parser)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--seed", type=int, default=0)


def training_engine(a: argparse.Namespace, images: int = 0) -> EngineChoice:
    """Choose the engine that these arguments ask for; many images are worth a calibration.

    Raises DeviceError, EngineError.
    """
    height, width = max(a.input_size)
    variants = 1 + len(a.augment) * a.copies
    work = images * variants * height * width
    backbone = BACKBONES[a.backbone]
    return choose_engine(a.engine, a.precision, resolve_device(a.device), work, backbone)


def training_settings(a: argparse.Namespace, engine: EngineChoice) -> Settings:
    """Return the settings that these arguments ask for."""
    backbone = BACKBONES[a.backbone]
    return Settings(
        layers=tuple(a.layers or [backbone.default_layers]),
        c=tuple(a.C),
        shapes=a.input_size,
        minmax=not a.no_minmax,
        sampling=Sampling(a.positions, tuple(a.augment), a.copies, a.seed),
        engine=engine,
        backbone=backbone,
    )


def _shapes(text: str) -> tuple[Shape, ...]:
    """`SIZE` → shapes of about SIZE² pixels for all aspect ratios; `HxW` → that shape alone."""
    height, x, width = text.partition("x")
    try:
        sides = (int(height), int(width)) if x else (int(height),)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither SIZE nor HEIGHTxWIDTH") from None
    if min(sides) < 32 or max(sides) > 4096:
        raise argparse.ArgumentTypeError(f"{text!r}: sides from 32 to 4096 pixels, please")
    return (sides,) if len(sides) == 2 else shapes_of_size(sides[0], DEFAULT_BACKBONE.stride)


def _positions(text: str) -> int:
    if int(text) < 20:
        raise argparse.ArgumentTypeError(f"{text} is less than 20")
    return int(text)


def _above_zero(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)
