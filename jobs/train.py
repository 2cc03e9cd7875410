"""Fit the segmentation model: VGG-16 features of labelled pictures, a linear SVM on top."""

import argparse
import sys

from segrec_batch import console, storage
from segrec_batch.decode import Shape, shapes_of_size
from segrec_batch.model.backbone import load_weights
from segrec_batch.model.segmenter import resolve_device
from segrec_batch.model.spec import DTYPES
from segrec_batch.train.augment import KINDS
from segrec_batch.train.labelled import load_classes, pair
from segrec_batch.train.run import DEFAULT_LAYERS, DEFAULT_SIZE, Settings, train
from segrec_batch.train.sample import Sampling

EXAMPLES = """\
examples:
  python jobs/train.py --images data/images --masks data/masks --classes classes.json \\
      --output models/streets
  # weights of your own, several layers and C to choose from, flipped copies
  python jobs/train.py --images s3://bucket/images --masks s3://bucket/masks \\
      --classes s3://bucket/classes.json --output s3://bucket/model \\
      --backbone-weights vgg16.safetensors --layers conv5_3 conv4_3,conv5_3 --C 0.3 1 3 \\
      --augment flip

classes.json maps class names to mask values, void to "ignore"; the rest is background:
  {"car": [8], "person": [9], "tree": [5], "ignore": [11]}
"""


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """`SIZE` → shapes of about SIZE² pixels for all aspect ratios; `HxW` → that shape alone."""
    height, x, width = text.partition("x")
    try:
        sides = (int(height), int(width)) if x else (int(height),)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither SIZE nor HEIGHTxWIDTH") from None
    if min(sides) < 32 or max(sides) > 4096:
        raise argparse.ArgumentTypeError(f"{text!r}: sides from 32 to 4096 pixels, please")
    return (sides,) if len(sides) == 2 else shapes_of_size(sides[0])


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", required=True, metavar="URI", help="folder of pictures (local or s3://)")
    add("--masks", required=True, metavar="URI", help="folder of PNG masks with the same stems")
    add("--classes", required=True, metavar="JSON", help="class names and their mask values")
    add("--output", required=True, metavar="MODEL", help="folder for the model bundle")
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
        default=[DEFAULT_LAYERS],
        metavar="A,B",
        help="layers of the SVM, comma-separated; @N averages over N×N cells for context; "
        f"of several sets the best is chosen (default: {DEFAULT_LAYERS})",
    )
    add(
        "--C",
        nargs="+",
        type=float,
        default=list(Settings.c),
        metavar="C",
        help="weight of the losses against the margin; of several the best is chosen",
    )
    add(
        "--input-size",
        type=parse_shapes,
        default=DEFAULT_SIZE,
        metavar="SIZE|HxW",
        help="pictures are resized to about SIZE² pixels, keeping their aspect, or to HxW "
        f"(default: {DEFAULT_SIZE})",
    )
    add("--positions", type=int, default=Sampling.positions, help="positions drawn per picture")
    add("--augment", nargs="*", default=[], choices=KINDS, help="add varied copies of pictures")
    add("--copies", type=int, default=1, help="copies by each augmentation (default: 1)")
    add(
        "--groups",
        default="auto",
        choices=("auto", "folder", "prefix", "none"),
        help="what must not straddle a split: pictures of a folder, of a name without its "
        "trailing number (video frames), or none (default: the first that gives two groups)",
    )
    add("--no-minmax", action="store_true", help="divide pixels by 255 in place of min–max scaling")
    add("--dtype", default=Settings.dtype, choices=DTYPES, help="of the backbone's arithmetic")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if isinstance(arguments.input_size, int):
        arguments.input_size = shapes_of_size(arguments.input_size)
    if min(arguments.C) <= 0 or arguments.positions < 20 or arguments.copies < 1:
        parser.error("C must be positive, --positions at least 20, --copies at least 1")
    return arguments


def main(a: argparse.Namespace) -> None:
    """Run the job."""
    settings = Settings(
        layers=tuple(a.layers),
        c=tuple(a.C),
        shapes=a.input_size,
        minmax=not a.no_minmax,
        dtype=a.dtype,
        sampling=Sampling(a.positions, tuple(a.augment), a.copies, a.seed),
        device=resolve_device(a.device),
    )
    classes = load_classes(a.classes)
    images = pair(a.images, a.masks, a.groups)
    weights = load_weights(a.backbone_weights)
    groups = len({item.group for item in images})
    console.say(f"{len(images)} labelled pictures in {groups} groups, on {settings.device}")
    model = train(images, classes, weights, settings)
    model.save(a.output)
    if model.spec.notice:
        console.say(f"warning: {model.spec.notice}")
    print(f"model {model.model_id} written to {storage.absolute(a.output)}")


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(console.run_command(lambda: main(arguments)))
