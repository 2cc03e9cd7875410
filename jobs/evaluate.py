"""Offline evaluation reports."""

import argparse
import json
import sys
from typing import Any

from segrec_batch import console, storage
from segrec_batch.evaluate.segmentation import evaluate
from segrec_batch.model.bundle import load_model
from segrec_batch.model.segmenter import Segmenter
from segrec_batch.train.labelled import load_classes, pair

EXAMPLES = """\
examples:
  python jobs/evaluate.py segmentation --images data/val/images --masks data/val/masks \\
      --classes classes.json --model models/streets --report reports/streets
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=form)
    reports = parser.add_subparsers(required=True, metavar="REPORT")
    about = "compare a model's class maps with labels: IoU, precision, recall, F1 per class"
    segmentation = reports.add_parser(
        "segmentation", help=about, description=about, epilog=EXAMPLES, formatter_class=form
    )
    add = segmentation.add_argument
    add("--images", required=True, metavar="URI", help="folder of pictures (local or s3://)")
    add("--masks", required=True, metavar="URI", help="folder of PNG masks with the same stems")
    add("--classes", required=True, metavar="JSON", help="class names and their mask values")
    add("--model", required=True, metavar="MODEL", help="model bundle made by jobs/train.py")
    add("--report", required=True, metavar="DIR", help="folder for metrics.json")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    segmentation.set_defaults(run=segmentation_report)
    return parser.parse_args()


def segmentation_report(a: argparse.Namespace) -> None:
    """Write `metrics.json` and print its table."""
    classes = load_classes(a.classes)
    images = pair(a.images, a.masks)
    model = load_model(a.model)
    if model.spec.notice:
        console.say(f"warning: {model.spec.notice}")
    segmenter = Segmenter(model, a.device)
    console.say(f"{len(images)} labelled pictures, on {segmenter.device}")
    found = evaluate(segmenter, images, classes, lambda i: console.track(i, "segmented"))
    target = storage.join(a.report, "metrics.json")
    storage.write_bytes(target, json.dumps(found, indent=2).encode() + b"\n")
    _print_scores(found)
    print(f"written to {storage.absolute(target)}")


def _print_scores(found: dict[str, Any]) -> None:
    columns = ("iou", "precision", "recall", "f1")
    lines = {**found["classes"], "mean": found["mean"], "background": found["background"]}
    rows = [[name, *(_figure(scores[c]) for c in columns)] for name, scores in lines.items()]
    print(console.table("segmentation, pixels", ("class", *columns), rows), end="")
    majority = found["majority"]
    print(
        f"pixel accuracy {_figure(found['pixel_accuracy'])}; "
        f"all {majority['class']}: {_figure(majority['pixel_accuracy'])}"
    )


def _figure(value: float | None) -> str:
    return "absent" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(console.run_command(lambda: arguments.run(arguments)))
