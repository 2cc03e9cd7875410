"""Offline evaluation reports."""

import argparse
import sys

from segrec_batch import console, storage
from segrec_batch.decode import shapes_of_size
from segrec_batch.evaluate.segmentation import run as segmentation
from segrec_batch.evaluate.segmentation.study import Settings
from segrec_batch.train.augment import KINDS
from segrec_batch.train.run import DEFAULT_LAYERS, DEFAULT_SIZE
from segrec_batch.train.run import Settings as Training
from segrec_batch.train.sample import Sampling

EXAMPLES = """\
examples:
  # a model on labelled pictures
  python jobs/evaluate.py segmentation --images data/val/images --masks data/val/masks \\
      --classes classes.json --model models/streets --report reports/streets
  # fitted here, on labelled pictures of which whole groups are held out; and what other splits leak
  python jobs/evaluate.py segmentation --images data/images --masks data/masks \\
      --classes classes.json --train --backbone-weights imagenet --report reports/splits
  # fitted here, judged on pictures given apart
  python jobs/evaluate.py segmentation --images data/train/images --masks data/train/masks \\
      --test-images data/val/images --test-masks data/val/masks \\
      --classes classes.json --train --report reports/val
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=form)
    reports = parser.add_subparsers(required=True, metavar="REPORT")
    about = (
        "compare class maps with labels: IoU, precision, recall, F1 per class, and where it fails"
    )
    command = reports.add_parser(
        "segmentation", help=about, description=about, epilog=EXAMPLES, formatter_class=form
    )
    _add_segmentation(command)
    command.set_defaults(run=segmentation_report)
    arguments = parser.parse_args()
    if bool(arguments.test_images) != bool(arguments.test_masks):
        parser.error("--test-images and --test-masks go together")
    return arguments


def _add_segmentation(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--images", required=True, metavar="URI", help="folder of pictures (local or s3://)")
    add("--masks", required=True, metavar="URI", help="folder of PNG masks with the same stems")
    add("--classes", required=True, metavar="JSON", help="class names and their mask values")
    judged = command.add_mutually_exclusive_group(required=True)
    judged.add_argument("--model", default="", help="model bundle made by jobs/train.py")
    judged.add_argument("--train", action="store_true", help="fit models on the labelled pictures")
    add("--report", required=True, metavar="DIR", help="folder for report.html and its figures")
    add("--test-images", default="", metavar="URI", help="with --train: judge on these")
    add("--test-masks", default="", metavar="URI", help="their masks")
    add(
        "--groups",
        default="auto",
        choices=("auto", "folder", "prefix", "none"),
        help="what must not straddle a split: see jobs/train.py --help (default: auto)",
    )
    fit = command.add_argument_group("fitting, with --train (see jobs/train.py --help)")
    add = fit.add_argument
    add("--backbone-weights", default="imagenet", metavar="SPEC")
    add("--layers", nargs="+", default=[DEFAULT_LAYERS], metavar="A,B")
    add("--C", nargs="+", type=float, default=list(Training.c), metavar="C")
    add("--input-size", type=int, default=DEFAULT_SIZE, metavar="SIZE")
    add("--positions", type=int, default=Sampling.positions)
    add("--augment", nargs="*", default=[], choices=KINDS)
    add = command.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--seed", type=int, default=0, help="of splits, training and bootstrap (default: 0)")


def segmentation_report(a: argparse.Namespace) -> None:
    """Write the report and print its first table."""
    training = Training(
        layers=tuple(a.layers),
        c=tuple(a.C),
        shapes=shapes_of_size(a.input_size),
        sampling=Sampling(a.positions, tuple(a.augment)),
    )
    settings = Settings(
        images=a.images,
        masks=a.masks,
        classes=a.classes,
        model=a.model,
        test_images=a.test_images,
        test_masks=a.test_masks,
        weights=a.backbone_weights,
        training=training,
        groups=a.groups,
        device=a.device,
        seed=a.seed,
    )
    report = segmentation.segmentation_report(settings)
    if report.notice:
        console.say(f"warning: {report.notice}")
    report.write(a.report)
    console.show(segmentation.headline(report))
    print(f"written to {storage.absolute(storage.join(a.report, 'report.html'))}")


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(console.run_command(lambda: arguments.run(arguments)))
