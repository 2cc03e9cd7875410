"""Offline evaluation reports: a page to look at, and its figures for programs."""

import argparse
import datetime as dt
import logging
import sys

from segrec_batch.cli.options import add_images_root
from segrec_batch.cli.places import check_places
from segrec_batch.cli.training_options import (
    add_training_arguments,
    training_engine,
    training_settings,
)
from segrec_batch.common import console, logs
from segrec_batch.evaluation.compare.report import compare_report
from segrec_batch.evaluation.compare.reports import Settings as Compare
from segrec_batch.evaluation.drift.figures import MEASURES
from segrec_batch.evaluation.drift.figures import judge as judge_drift
from segrec_batch.evaluation.drift.limits import Limits
from segrec_batch.evaluation.drift.report import Settings as Drift
from segrec_batch.evaluation.drift.report import drift_report
from segrec_batch.evaluation.report import Report, check_report_place
from segrec_batch.evaluation.retrieval.masks import Masks
from segrec_batch.evaluation.retrieval.measures import judge as judge_retrieval
from segrec_batch.evaluation.retrieval.methods import BASE_METHODS
from segrec_batch.evaluation.retrieval.report import retrieval_report
from segrec_batch.evaluation.retrieval.run import RetrievalOptions
from segrec_batch.evaluation.retrieval.settings import EPSILONS, PAPER_WINDOW, WINDOWS
from segrec_batch.evaluation.retrieval.truth import Folders, Pairs
from segrec_batch.evaluation.segmentation.judge import judge as judge_segmentation
from segrec_batch.evaluation.segmentation.rivals import RIVALS, RivalSettings
from segrec_batch.evaluation.segmentation.run import segmentation_report
from segrec_batch.evaluation.segmentation.study import Settings as Segmentation
from segrec_batch.model.engines import report_engine
from segrec_batch.search.methods import OF_VECTORS
from segrec_batch.sources import storage
from segrec_batch.training.rivals.mask_rcnn import MaskRcnnSettings
from segrec_batch.training.rivals.unet import UNetSettings

log = logging.getLogger("segrec_batch.jobs")

SEGMENTATION = """\
examples:
  # a model on labelled images
  python jobs/evaluate.py segmentation --images data/val/images --masks data/val/masks \\
      --classes classes.json --model models/streets --report reports/streets
  # fitted here, beside its rivals, whole groups of images held out; and how other splits leak
  python jobs/evaluate.py segmentation --images data/images --masks data/masks \\
      --classes classes.json --train --backbone-weights imagenet --report reports/splits
  # fitted here, judged on images given apart
  python jobs/evaluate.py segmentation --images data/train/images --masks data/train/masks \\
      --test-images data/val/images --test-masks data/val/masks \\
      --classes classes.json --train --report reports/val
"""
RETRIEVAL = """\
examples:
  # images of one folder are relevant to each other
  python jobs/evaluate.py retrieval --index s3://bucket/index --labels folder --report reports/found
  # pairs: a CSV file, query,relevant[,class]; images by image_id, URI or the end of one
  python jobs/evaluate.py retrieval --index INDEX --labels csv --pairs pairs.csv \\
      --methods pearson,region --report reports/pairs
  # the same dominant class, where it fills 5 to 96 % of the image by its label mask
  python jobs/evaluate.py retrieval --index INDEX --labels masks --masks data/masks \\
      --classes classes.json --window 0.05 0.96 --report reports/sigma
"""
DRIFT = """\
examples:
  # what the last commit changed; for cron: exit code 1 if any measure of drift is above 0.2
  python jobs/evaluate.py drift --index s3://bucket/index --fail-over 0.2 --report reports/tonight
  python jobs/evaluate.py drift --index INDEX --from 12 --to 14 --golden golden.csv \\
      --fail-over failures=0.01,overlap=0.3 --report reports/week
  # all that was committed since a time (UTC), by however many commits
  python jobs/evaluate.py drift --index INDEX --from 2026-11-22T00:00Z --report reports/today
"""
COMPARE = """\
examples:
  python jobs/evaluate.py compare reports/before reports/after --names before,after \\
      --report reports/change
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    every = "\n".join([SEGMENTATION, *(t.partition("\n")[2] for t in (RETRIEVAL, DRIFT, COMPARE))])
    parser = argparse.ArgumentParser(description=__doc__, epilog=every, formatter_class=form)
    reports = parser.add_subparsers(required=True, metavar="REPORT")
    for name, about, examples, add_arguments, run in (
        ("segmentation", _SEGMENTATION, SEGMENTATION, _segmentation_arguments, segmentation),
        ("retrieval", _RETRIEVAL, RETRIEVAL, _retrieval_arguments, retrieval),
        ("drift", _DRIFT, DRIFT, _drift_arguments, drift_between),
        ("compare", _COMPARE, COMPARE, _compare_arguments, compare_reports),
    ):
        command = reports.add_parser(
            name, help=about, description=about, epilog=examples, formatter_class=form
        )
        add_arguments(command)
        command.add_argument(
            "--report", required=True, metavar="DIR", help="folder for report.html and its figures"
        )
        command.set_defaults(run=run, command=command)
    return parser.parse_args()


_SEGMENTATION = (
    "compare class maps with labels: per class, beside rival methods, and where it is weak"
)
_RETRIEVAL = "how well the methods of an index find what is relevant"
_DRIFT = "what changed between two snapshots of an index"
_COMPARE = "two or more reports of one kind side by side"


def _segmentation_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--images", required=True, metavar="URI", help="folder of images (local or s3://)")
    add(
        "--masks",
        required=True,
        metavar="URI",
        help="folder of masks named like the images",
    )
    add("--classes", required=True, metavar="JSON", help="class names and their mask values")
    judged = command.add_mutually_exclusive_group(required=True)
    judged.add_argument("--model", default="", help="model bundle made by jobs/train.py")
    judged.add_argument("--train", action="store_true", help="fit models on the labelled images")
    fit = command.add_argument_group("fitting, with --train")
    add = fit.add_argument
    add(
        "--test-images", default="", metavar="URI", help="judge on these, not on a part of --images"
    )
    add("--test-masks", default="", metavar="URI", help="their masks")
    add(
        "--rivals",
        type=_names,
        default=RIVALS,
        metavar="A,B",
        help="what to compare with, '' for nothing: classical (SVM, logistic regression, random "
        f"forest, k-NN on the same features), unet, mask-rcnn (default: {','.join(RIVALS)})",
    )
    add(
        "--unet-epochs",
        type=console.count,
        default=UNetSettings.epochs,
        metavar="N",
        help=f"passes over the images (default: {UNetSettings.epochs})",
    )
    add(
        "--mask-rcnn-weights",
        metavar="SPEC",
        help="state dict of torchvision's maskrcnn_resnet50_fpn (path or URI), or download; "
        "without, it is not run",
    )
    add_training_arguments(fit)


def segmentation(a: argparse.Namespace) -> None:
    """Judge class maps."""
    if bool(a.test_images) != bool(a.test_masks):
        a.command.error("--test-images and --test-masks go together")
    rivals = RivalSettings(
        chosen=a.rivals if a.train else (),
        unet=UNetSettings(epochs=a.unet_epochs),
        mask_rcnn=MaskRcnnSettings(weights=a.mask_rcnn_weights),
        seed=a.seed,
        device=a.device,
    )
    engine = training_engine(a)
    report_engine(engine)
    settings = Segmentation(
        images=a.images,
        masks=a.masks,
        classes=a.classes,
        model=a.model,
        test_images=a.test_images,
        test_masks=a.test_masks,
        weights=a.backbone_weights,
        training=training_settings(a, engine),
        groups=a.groups,
        engine=engine,
        seed=a.seed,
    )
    _write(segmentation_report(settings, rivals.rivals()), a.report)


def _retrieval_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--index", required=True, metavar="URI", help="an index, or a query cache")
    add("--version", type=int, metavar="N", help="snapshot of the index (default: the newest)")
    add(
        "--labels",
        required=True,
        choices=("folder", "csv", "masks"),
        help="relevant are images of the same folder; pairs in a CSV file; or those with the same "
        "dominant class, by label masks",
    )
    add("--pairs", metavar="CSV", help="with csv: columns query,relevant[,class]")
    add("--masks", metavar="URI", help="with masks: folder of masks named like the images")
    add("--classes", metavar="JSON", help="with masks: class names and their mask values")
    add(
        "--window",
        nargs=2,
        type=float,
        default=PAPER_WINDOW,
        metavar=("LOW", "HIGH"),
        help="with masks: share that the dominant class has to fill (default: 0.29 0.96)",
    )
    add(
        "--methods",
        type=_names,
        default=RetrievalOptions.methods,
        metavar="A,B",
        help=f"of {', '.join(BASE_METHODS)}; a descriptor of the index, by Euclidean distance; "
        f"DESCRIPTOR-METRIC, METRIC of {', '.join(OF_VECTORS)}; all stands for the first and for "
        "each descriptor as its paper compares it (default: all)",
    )
    add(
        "--sigma",
        type=_windows,
        default=WINDOWS,
        metavar="LOW-HIGH,…",
        help="σ windows to filter by, '' for none (default: "
        f"{','.join('{:g}-{:g}'.format(*w) for w in WINDOWS)})",
    )
    add(
        "--epsilon",
        type=_figures,
        default=EPSILONS,
        metavar="E,…",
        help="semantic distances to filter by, '' for none "
        f"(default: {','.join(map('{:g}'.format, EPSILONS))})",
    )
    add(
        "--queries",
        type=console.count,
        default=RetrievalOptions.queries,
        metavar="N",
        help=f"greatest number of queries, drawn at random (default: {RetrievalOptions.queries})",
    )
    add(
        "--feedback-rounds",
        type=int,
        default=RetrievalOptions.feedback_rounds,
        metavar="N",
        help="how often simulated users mark the next ten images; 0: not at all "
        f"(default: {RetrievalOptions.feedback_rounds})",
    )
    add("--seed", type=int, default=0, help="of the draw and the bootstrap (default: 0)")
    add_images_root(command, "show images")


def retrieval(a: argparse.Namespace) -> None:
    """Judge what an index answers."""
    asked = RetrievalOptions(
        index=a.index,
        truth=_truth(a),
        methods=a.methods,
        windows=a.sigma,
        epsilons=a.epsilon,
        queries=a.queries,
        seed=a.seed,
        version=a.version,
        feedback_rounds=a.feedback_rounds,
        images_roots=tuple(a.images_roots),
    )
    _write(retrieval_report(asked), a.report)


def _truth(a: argparse.Namespace) -> Folders | Pairs | Masks:
    if a.labels == "csv":
        if not a.pairs:
            a.command.error("--labels csv needs --pairs")
        return Pairs(a.pairs)
    if a.labels == "masks":
        if not (a.masks and a.classes):
            a.command.error("--labels masks needs --masks and --classes")
        return Masks(a.masks, a.classes, tuple(a.window))
    return Folders()


def _drift_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--index", required=True, metavar="URI", help="folder of the index (local or s3://)")
    add(
        "--from",
        type=_version_or_time,
        dest="before",
        metavar="VERSION",
        help="or a time, 2026-11-22T00:00Z: the version of then (default: the one before --to)",
    )
    add("--to", type=int, dest="after", metavar="VERSION", help="default: the newest")
    add(
        "--golden",
        metavar="FILE",
        help="image_ids or URIs (.txt, .csv, .parquet) whose features and answers are compared "
        "(default: some that both snapshots have)",
    )
    add(
        "--golden-size",
        type=console.count,
        default=Drift.golden_size,
        metavar="N",
        help=f"without --golden so many images (default: {Drift.golden_size})",
    )
    add("-k", type=console.count, default=Drift.k, help="length of the answers compared")
    add(
        "--fail-over",
        metavar="LIMIT",
        help="exit code 1 if a measure of drift is above: a share for all of "
        f"{', '.join(MEASURES)}, or NAME=SHARE,…",
    )
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def drift_between(a: argparse.Namespace) -> None:
    """Judge what changed, then whether that is too much."""
    limits = Limits.parse(a.fail_over) if a.fail_over else None
    settings = Drift(
        index=a.index,
        before=a.before,
        after=a.after,
        golden=a.golden,
        golden_size=a.golden_size,
        k=a.k,
        limits=limits,
        seed=a.seed,
    )
    report = drift_report(settings)
    _write(report, a.report)
    if limits and not report.details["from"]["images"]:
        log.info("nothing was indexed before: there is no drift to judge")
    elif limits:
        limits.check(report.estimates)


def _compare_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("reports", nargs="+", metavar="REPORT", help="folders of reports, or their metrics.json")
    add("--names", type=_names, default=(), metavar="A,B", help="what to call them (default: A,B…)")
    add(
        "--method",
        type=_names,
        default=(),
        metavar="A,B",
        help="of each report the one method to compare (default: all methods, each with itself)",
    )
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def compare_reports(a: argparse.Namespace) -> None:
    """Put reports side by side."""
    settings = Compare(a.reports, a.names, a.method, a.seed)
    judges = {
        "segmentation": judge_segmentation,
        "retrieval": judge_retrieval,
        "drift": judge_drift,
    }
    _write(compare_report(settings, judges), a.report)


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def _version_or_time(text: str) -> int | dt.datetime:
    if text.isdigit():
        return int(text)
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a version nor a time") from None
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)


def _figures(text: str) -> tuple[float, ...]:
    return tuple(map(float, _names(text)))


def _windows(text: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [tuple(map(float, window.split("-"))) for window in _names(text)]
        return tuple((low, high) for low, high in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give LOW-HIGH, …") from None


def _write(report: Report, folder: str) -> None:
    report.write(folder)
    if report.notice:
        log.warning(report.notice)
    for method, reason in report.not_run.items():
        log.info(f"not run: {method}: {reason}")
    shown = report.headline
    console.show(console.table(shown.caption, shown.header, shown.texts(interval=False)))
    console.show_line(f"written to {storage.join(storage.absolute(folder), 'report.html')}")


_INPUTS = (
    "images", "masks", "classes", "model", "test_images", "test_masks", "backbone_weights",
    "mask_rcnn_weights", "index", "pairs", "golden",
)  # fmt: skip


def main(a: argparse.Namespace) -> None:
    """Run a command."""
    inputs = {f"--{name.replace('_', '-')}": vars(a).get(name) for name in _INPUTS}
    inputs |= dict(zip(vars(a).get("reports", ()), vars(a).get("reports", ()), strict=True))
    check_places({"--report": a.report}, inputs)
    check_report_place(a.report)
    a.run(a)


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
