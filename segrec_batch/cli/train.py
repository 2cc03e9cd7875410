"""`segrec train`: fit the segmentation model."""

import argparse
import textwrap
from typing import TYPE_CHECKING, cast

from segrec_batch.api.train import DEFAULTS, Size, TrainingParameters, train
from segrec_batch.cli.options import add_engine, add_labelled_images, amount, set_up
from segrec_batch.cli.output import check_places
from segrec_batch.common import console

if TYPE_CHECKING:
    from segrec_batch.model.backbones import BackboneSpec

_DESCRIPTION = (
    "Fit the segmentation model: backbone features of labelled images, a linear SVM on top."
)
_EXAMPLES = """\
examples:
  segrec train --images data/images --masks data/masks --classes classes.json \\
      --output models/streets
  # own weights, several layers and C to choose from, flipped copies
  segrec train --images s3://bucket/images --masks s3://bucket/masks \\
      --classes s3://bucket/classes.json --output s3://bucket/model \\
      --backbone-weights vgg16.safetensors --layers conv5_3 conv4_3,conv5_3 --C 0.03 0.1 \\
      --augment flip
  # another network, with other weights of torchvision
  segrec train --images data/images --masks data/masks --classes classes.json \\
      --output models/resnet --backbone resnet50 --backbone-weights IMAGENET1K_V2

classes.json maps class names to mask values, void to "ignore"; the rest, if any, is background:
  {"car": [8], "person": [9], "tree": [5], "ignore": [11]}

A mask has the path of its image, below --masks, or at least its name, whatever the extension. It is
a PNG, TIFF or BMP of one channel. Images without a mask are not used, and counted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    storage = parser.add_argument_group("storage")
    add_labelled_images(storage)
    storage.add_argument("--output", required=True, metavar="MODEL", help="folder for the bundle")
    add_training(parser)
    set_up(parser, run, _DESCRIPTION, _EXAMPLES)


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add all choices of training, from the backbone's weights to the seed."""
    from segrec_batch.model.backbones import BACKBONES
    from segrec_batch.training.augment import KINDS

    default = DEFAULTS
    add = parser.add_argument_group("model and training").add_argument
    network = BACKBONES[default["backbone"]]
    add(
        "--backbone",
        default=network.name,
        choices=list(BACKBONES),
        help="network of the features: VGG runs in ncnn and torch, the others in torch "
        "(default: %(default)s)",
    )
    add(
        "--backbone-weights",
        default=default["backbone_weights"],
        metavar="SPEC",
        help="imagenet, which is torchvision's IMAGENET1K_V1, or another name of torchvision's "
        "weights of the backbone (downloaded once); a state dict (.pth, .safetensors; path or "
        "URI); or random:SEED for trying out (default: imagenet)",
    )
    add(
        "--layers",
        nargs="+",
        default=list(default["layers"]),
        metavar="A,B",
        help="layers of the SVM, comma-separated, of those below; @N averages over N×N cells for "
        "context; of several sets the best is chosen (default: that of the backbone)",
    )
    add(
        "--C",
        dest="c",
        nargs="+",
        type=amount,
        default=list(default["c"]),
        metavar="C",
        help="weight of the losses against the margin; of several the best is chosen (default: "
        f"{' '.join(map('{:g}'.format, default['c']))})",
    )
    add(
        "--input-size",
        type=_size,
        default=default["input_size"],
        metavar="SIZE|HxW",
        help="images are resized to about SIZE² pixels, keeping their aspect, or to HxW "
        f"(default: {default['input_size']})",
    )
    add(
        "--positions",
        type=_positions,
        default=default["positions"],
        metavar="N",
        help=f"positions drawn per image (default: {default['positions']})",
    )
    add("--augment", nargs="*", default=[], choices=KINDS, help="add varied copies of images")
    add(
        "--copies",
        type=console.count,
        default=default["copies"],
        metavar="N",
        help="copies by each augmentation (default: 1)",
    )
    add(
        "--groups",
        default=default["groups"],
        choices=("auto", "folder", "prefix", "none"),
        help="images that stay on one side of a split: of a folder, of a name without its trailing "
        "number (video frames), or none (default: the first that gives two groups)",
    )
    add(
        "--no-minmax",
        dest="minmax",
        action="store_false",
        help="divide pixels by 255 in place of min–max scaling",
    )
    add("--seed", type=int, default=0, help="of the sampling (default: 0)")
    execution = parser.add_argument_group("execution")
    add_engine(execution)
    execution.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    networks = "\n".join(map(_describe_layers, BACKBONES.values()))
    parser.add_argument_group("layers by backbone", networks)


def _describe_layers(backbone: "BackboneSpec") -> str:
    lines = textwrap.wrap(", ".join(backbone.layers), 80)
    lines.append(f"default: {backbone.default_layers}")
    return textwrap.indent("\n".join([f"{backbone.name}:", *lines]), "  ").removeprefix("  ")


def run(a: argparse.Namespace) -> None:
    """Run the command."""
    from segrec_batch.sources import storage

    inputs = ("images", "masks", "classes", "backbone_weights")
    check_places({"--output": a.output}, {f"--{n.replace('_', '-')}": vars(a)[n] for n in inputs})
    model = train(a.images, a.masks, a.classes, a.output, **training_parameters(a))
    console.show_line(f"model {model.model_id} written to {storage.absolute(a.output)}")


def training_parameters(a: argparse.Namespace) -> TrainingParameters:
    """Return the parameters that the options of `add_training` name."""
    return cast(TrainingParameters, {name: vars(a)[name] for name in DEFAULTS})


def _size(text: str) -> Size:
    """Parse `SIZE`, for shapes of about SIZE² pixels, or `HxW`, for this shape alone."""
    height, x, width = text.partition("x")
    try:
        sides = (int(height), int(width)) if x else (int(height), int(height))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither SIZE nor HEIGHTxWIDTH") from None
    if min(sides) < 32 or max(sides) > 4096:
        raise argparse.ArgumentTypeError(f"{text!r}: sides from 32 to 4096 pixels, please")
    return sides if x else sides[0]


def _positions(text: str) -> int:
    if int(text) < 20:
        raise argparse.ArgumentTypeError(f"{text} is less than 20")
    return int(text)
