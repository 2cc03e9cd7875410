"""Fit the segmentation model: backbone features of labelled images, a linear SVM on top."""

import argparse
import logging
import sys

from segrec_batch.cli.places import check_bundle_place, check_places
from segrec_batch.cli.training_options import (
    add_training_arguments,
    training_engine,
    training_settings,
)
from segrec_batch.common import console, logs
from segrec_batch.labels.labelled import load_classes, pair_images
from segrec_batch.model.engines import report_engine
from segrec_batch.model.weights import load_weights
from segrec_batch.sources import storage
from segrec_batch.training.trainer import train

log = logging.getLogger("segrec_batch.jobs")

EXAMPLES = """\
examples:
  python jobs/train.py --images data/images --masks data/masks --classes classes.json \\
      --output models/streets
  # weights of your own, several layers and C to choose from, flipped copies
  python jobs/train.py --images s3://bucket/images --masks s3://bucket/masks \\
      --classes s3://bucket/classes.json --output s3://bucket/model \\
      --backbone-weights vgg16.safetensors --layers conv5_3 conv4_3,conv5_3 --C 0.3 1 3 \\
      --augment flip

classes.json maps class names to mask values, void to "ignore"; the rest, if any, is background:
  {"car": [8], "person": [9], "tree": [5], "ignore": [11]}

A mask has the path of its image, below --masks, or at least its name, whatever the extension. It is
a PNG, TIFF or BMP of one channel. Images without a mask are not used, and counted.
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", required=True, metavar="URI", help="folder of images (local or s3://)")
    add(
        "--masks",
        required=True,
        metavar="URI",
        help="folder of masks named like the images",
    )
    add("--classes", required=True, metavar="JSON", help="class names and their mask values")
    add("--output", required=True, metavar="MODEL", help="folder for the model bundle")
    add_training_arguments(parser)
    return parser.parse_args()


def main(a: argparse.Namespace) -> None:
    """Run the job."""
    inputs = ("images", "masks", "classes", "backbone_weights")
    check_places({"--output": a.output}, {f"--{n.replace('_', '-')}": vars(a)[n] for n in inputs})
    check_bundle_place(a.output)
    classes = load_classes(a.classes)
    images = pair_images(a.images, a.masks, a.groups)
    engine = training_engine(a, len(images))
    report_engine(engine)
    settings = training_settings(a, engine)
    weights = load_weights(a.backbone_weights, settings.backbone)
    groups = len({item.group for item in images})
    log.info(f"{len(images)} labelled images in {groups} groups")
    model = train(images, classes, weights, settings)
    model.save(a.output)
    if model.spec.notice:
        log.warning(model.spec.notice)
    console.show_line(f"model {model.model_id} written to {storage.absolute(a.output)}")


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
