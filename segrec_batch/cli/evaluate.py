"""`segrec evaluate`: write an evaluation report, a page to look at and its values for programs."""

import argparse
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from segrec_batch.api import evaluate as api
from segrec_batch.cli import categories
from segrec_batch.cli.options import (
    HelpFormatter,
    add_dominant_class,
    add_images_roots,
    add_index,
    add_labelled_images,
    add_version,
    check_dominant_class,
    defaults,
    describe,
    names,
    numbers,
    set_up,
    usage_error,
    version_or_time,
    windows,
)
from segrec_batch.cli.output import check_places
from segrec_batch.cli.train import add_training, training_parameters
from segrec_batch.common import console

if TYPE_CHECKING:
    from segrec_batch.evaluation.report import Report

log = logging.getLogger(__name__)

_DESCRIPTION = "Write an evaluation report: a page to look at, and its values for programs."
_SEGMENTATION = """\
examples:
  # a model on labelled images
  segrec evaluate segmentation --images data/val/images --masks data/val/masks \\
      --classes classes.json --model models/streets --report reports/streets
  # fitted here, beside rival methods, with whole groups held out, and on splits that leak
  segrec evaluate segmentation --images data/images --masks data/masks \\
      --classes classes.json --train --backbone-weights imagenet --report reports/splits
  # fitted here, evaluated on other images
  segrec evaluate segmentation --images data/train/images --masks data/train/masks \\
      --test-images data/val/images --test-masks data/val/masks \\
      --classes classes.json --train --report reports/val
"""
_RETRIEVAL = """\
examples:
  # images of one folder are relevant to each other
  segrec evaluate retrieval --index s3://bucket/index --labels folder --report reports/folders
  # pairs: a CSV file, query,relevant[,class]; images by image_id, URI or the end of one
  segrec evaluate retrieval --index INDEX --labels csv --pairs pairs.csv \\
      --methods pearson,region --report reports/pairs
  # the same dominant class, where it fills 5 to 96 % of the image by its label mask
  segrec evaluate retrieval --index INDEX --labels masks --masks data/masks \\
      --classes classes.json --window 0.05 0.96 --report reports/sigma
"""
_DRIFT = """\
examples:
  # the last commit; for cron: exit code 1 if any measure of drift is above 0.2
  segrec evaluate drift --index s3://bucket/index --fail-over 0.2 --report reports/tonight
  segrec evaluate drift --index INDEX --from 12 --to 14 --golden golden.csv \\
      --fail-over failures=0.01,overlap=0.3 --report reports/week
  # all commits since a time (UTC)
  segrec evaluate drift --index INDEX --from 2026-11-22T00:00Z --report reports/today
"""
_COMPARE = """\
examples:
  segrec evaluate compare reports/before reports/after --names before,after \\
      --report reports/change
"""
_CLASS_MAPS = "compare class maps with labels, and with rival methods"
_METHODS = "measure how well the methods of an index find relevant images"
_INPUTS = (
    "images", "masks", "classes", "model", "test_images", "test_masks", "backbone_weights",
    "mask_rcnn_weights", "index", "pairs", "golden",
)  # fmt: skip
METHODS = "pearson, cosine, euclidean, region, sign-bits, histogram, pearson+iou, random"
MEASURES = "failures, gone, coverage, features, overlap"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    others = _RETRIEVAL, categories.EXAMPLES, _DRIFT, _COMPARE
    rest = "".join(text.partition("\n")[2] for text in others)
    describe(parser, _DESCRIPTION, _SEGMENTATION + rest)
    reports = parser.add_subparsers(required=True, metavar="REPORT")
    for name, summary, examples, add, run in (
        ("segmentation", _CLASS_MAPS, _SEGMENTATION, _add_segmentation, _segmentation),
        ("retrieval", _METHODS, _RETRIEVAL, _add_retrieval, _retrieval),
        ("categories", categories.SUMMARY, categories.EXAMPLES, categories.add, categories.run),
        ("drift", "compare two snapshots of an index", _DRIFT, _add_drift, _drift),
        ("compare", "put reports of one kind side by side", _COMPARE, _add_compare, _compare),
    ):
        one = reports.add_parser(name, help=summary, formatter_class=HelpFormatter)
        add(one)
        one.add_argument_group("output").add_argument(
            "--report", required=True, metavar="DIR", help="folder for report.html and its figures"
        )
        text = f"{summary[0].upper()}{summary[1:]}."
        set_up(one, lambda a, run=run: _run(a, run), text, examples)  # type: ignore[misc]


def _run(a: argparse.Namespace, make: "Callable[[argparse.Namespace], Report]") -> None:
    from segrec_batch.sources import storage

    inputs = {f"--{name.replace('_', '-')}": vars(a).get(name) for name in _INPUTS}
    inputs |= {uri: uri for uri in vars(a).get("reports", ())}
    check_places({"--report": a.report}, inputs)
    report = make(a)
    if report.notice:
        log.warning(report.notice)
    for method, reason in report.not_run.items():
        log.info(f"not run: {method}: {reason}")
    table = report.headline
    console.show(console.table(table.caption, table.header, table.texts(interval=False)))
    console.show_line(f"written to {storage.join(storage.absolute(a.report), 'report.html')}")
    if vars(a).get("fail_over"):
        api.check_drift(report, a.fail_over)


def _add_segmentation(parser: argparse.ArgumentParser) -> None:
    default = defaults(api.evaluate_segmentation)
    storage = parser.add_argument_group("storage")
    add_labelled_images(storage)
    model = storage.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", default="", help="model bundle made by segrec train")
    model.add_argument("--train", action="store_true", help="fit models on the labelled images")
    add = parser.add_argument_group("fitting, with --train").add_argument
    add("--test-images", default="", metavar="URI", help="evaluate on these images instead")
    add("--test-masks", default="", metavar="URI", help="their masks")
    add(
        "--rivals",
        type=names,
        default=default["rivals"],
        metavar="A,B",
        help="methods to compare with, '' for none: classical (SVM, logistic regression, random "
        "forest, k-NN on the same features), unet, mask-rcnn (default: "
        f"{','.join(default['rivals'])})",
    )
    add(
        "--unet-epochs",
        type=console.count,
        default=default["unet_epochs"],
        metavar="N",
        help="passes (default: %(default)s)",
    )
    add(
        "--mask-rcnn-weights",
        metavar="SPEC",
        help="state dict of torchvision's maskrcnn_resnet50_fpn (path or URI), or download; "
        "without, it is not run",
    )
    add_training(parser)


def _segmentation(a: argparse.Namespace) -> "Report":
    if bool(a.test_images) != bool(a.test_masks):
        usage_error(a, "--test-images and --test-masks go together")
    options = {name: vars(a)[name] for name in defaults(api.evaluate_segmentation)}
    folders = a.images, a.masks, a.classes
    return api.evaluate_segmentation(*folders, **options, **training_parameters(a))


def _add_retrieval(parser: argparse.ArgumentParser) -> None:
    from segrec_batch.search.filters import VECTOR_METRICS

    default = defaults(api.evaluate_retrieval)
    storage = parser.add_argument_group("storage")
    add_index(storage, "an index, or a query cache")
    add_version(storage)
    add_images_roots(storage, "show images")
    relevance = parser.add_argument_group("relevant images")
    add = relevance.add_argument
    add(
        "--labels",
        required=True,
        choices=("folder", "csv", "masks"),
        help="relevant are images of the same folder; pairs in a CSV file; or those with the same "
        "dominant class, by label masks",
    )
    add("--pairs", metavar="CSV", help="with csv: columns query,relevant[,class]")
    add_dominant_class(relevance, default["window"])
    add = parser.add_argument_group("methods and filters").add_argument
    add(
        "--methods",
        type=names,
        default=default["methods"],
        metavar="A,B",
        help=f"of {METHODS}; a descriptor of the index, by Euclidean distance; "
        f"DESCRIPTOR-METRIC, METRIC of {', '.join(VECTOR_METRICS)}; METHOD+expandN; all stands for "
        "the first and for each descriptor as its paper compares it (default: all)",
    )
    add(
        "--sigma",
        type=windows,
        default=default["sigma"],
        metavar="LOW-HIGH,…",
        help="σ windows to filter by, '' for none (default: "
        f"{','.join('{:g}-{:g}'.format(*w) for w in default['sigma'])})",
    )
    add(
        "--epsilon",
        type=numbers,
        default=default["epsilon"],
        metavar="E,…",
        help="semantic distances to filter by, '' for none "
        f"(default: {','.join(map('{:g}'.format, default['epsilon']))})",
    )
    add(
        "--queries",
        type=console.count,
        default=default["queries"],
        metavar="N",
        help="ask for at most so many images, drawn at random (default: %(default)s)",
    )
    add(
        "--feedback-rounds",
        type=int,
        default=default["feedback_rounds"],
        metavar="N",
        help="rounds of marks by simulated users; 0: none (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of the draw and the bootstrap (default: 0)")


def _retrieval(a: argparse.Namespace) -> "Report":
    if a.labels == "csv" and not a.pairs:
        usage_error(a, "--labels csv needs --pairs")
    check_dominant_class(a)
    options = {name: vars(a)[name] for name in defaults(api.evaluate_retrieval)}
    return api.evaluate_retrieval(a.index, a.labels, **options)


def _add_drift(parser: argparse.ArgumentParser) -> None:
    default = defaults(api.evaluate_drift)
    add_index(parser.add_argument_group("storage"))
    add = parser.add_argument_group("comparison").add_argument
    add(
        "--from",
        type=version_or_time,
        dest="before",
        metavar="VERSION",
        help="or a time, 2026-11-22T00:00Z: the version of then (default: the one before --to)",
    )
    add("--to", type=int, dest="after", metavar="VERSION", help="default: the newest")
    add(
        "--golden",
        metavar="FILE",
        help="image_ids or URIs (.txt, .csv, .parquet) whose features and recommendations are "
        "compared (default: some of both snapshots)",
    )
    add(
        "--golden-size",
        type=console.count,
        default=default["golden_size"],
        metavar="N",
        help="without --golden so many images (default: %(default)s)",
    )
    add("-k", type=console.count, default=default["k"], help="results (default: %(default)s)")
    add(
        "--fail-over",
        metavar="LIMIT",
        help="exit code 1 if a measure of drift is above: a share for all of "
        f"{MEASURES}, or NAME=SHARE,…",
    )
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def _drift(a: argparse.Namespace) -> "Report":
    return api.evaluate_drift(a.index, **{n: vars(a)[n] for n in defaults(api.evaluate_drift)})


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("comparison").add_argument
    add("reports", nargs="+", metavar="REPORT", help="folders of reports, or their metrics.json")
    add("--names", type=names, default=(), metavar="A,B", help="their names (default: A,B…)")
    add(
        "--method",
        type=names,
        default=(),
        metavar="A,B",
        help="of each report the one method to compare (default: all methods, each with itself)",
    )
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def _compare(a: argparse.Namespace) -> "Report":
    options = {name: vars(a)[name] for name in defaults(api.compare_reports)}
    return api.compare_reports(a.reports, **options)
