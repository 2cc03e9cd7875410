"""Functions behind `segrec evaluate`."""

import datetime as dt
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from segrec_batch.api.reports import check_place, choose_groups, write_report
from segrec_batch.api.train import (
    TrainingParameters,
    check_layers,
    choose_training_engine,
    complete,
    training_settings,
)
from segrec_batch.common.errors import InputError

if TYPE_CHECKING:
    from segrec_batch.evaluation.report import Report
    from segrec_batch.evaluation.retrieval.masks import Masks
    from segrec_batch.evaluation.retrieval.truth import Folders, Pairs

log = logging.getLogger(__name__)

RIVALS = ("classical", "unet", "mask-rcnn")
WINDOWS = ((0.05, 1), (0.1, 1), (0.2, 1), (0.29, 0.96), (0.4, 1))  # σ
EPSILONS = (0.1, 0.3, 0.5, 0.9, 1.5)  # semantic distances


def evaluate_segmentation(
    images: str,
    masks: str,
    classes: str,
    *,
    model: str = "",
    report: str | None = None,
    test_images: str = "",
    test_masks: str = "",
    rivals: Sequence[str] = RIVALS,
    unet_epochs: int = 40,
    mask_rcnn_weights: str | None = None,
    **training: Unpack[TrainingParameters],
) -> "Report":
    """Compare class maps with labels, of `model` or of models fitted here beside their rivals.

    Args:
        images: folder of labelled images.
        masks: folder of their masks.
        classes: JSON file of class names and their mask values.
        model: model bundle; "" fits models on `images`.
        report: folder to write the report to; None writes nothing.
        test_images: images to judge on in place of a part of `images`.
        test_masks: their masks.
        rivals: methods to compare with: classical, unet, mask-rcnn.
        unet_epochs: passes of the U-Net over the images.
        mask_rcnn_weights: state dict of Mask R-CNN, or `download`; without, it is not run.
        **training: see `TrainingParameters`.
    """
    from segrec_batch.evaluation.segmentation.report import segmentation_report
    from segrec_batch.evaluation.segmentation.rivals import RivalSettings
    from segrec_batch.evaluation.segmentation.study import Settings
    from segrec_batch.model.engines import report_engine
    from segrec_batch.model.spec import read_spec
    from segrec_batch.training.rivals.mask_rcnn import MaskRcnnSettings
    from segrec_batch.training.rivals.unet import UNetSettings

    check_place(report)
    options = complete(training)
    if model:
        options["backbone"] = read_spec(model)[0].backbone
    else:
        check_layers(options)
    others = RivalSettings(
        chosen=() if model else tuple(rivals),
        unet=UNetSettings(epochs=unet_epochs),
        mask_rcnn=MaskRcnnSettings(weights=mask_rcnn_weights),
        seed=options["seed"],
        device=options["device"],
    )
    engine = choose_training_engine(options)
    report_engine(engine)
    settings = Settings(
        images=images,
        masks=masks,
        classes=classes,
        model=model,
        test_images=test_images,
        test_masks=test_masks,
        weights=options["backbone_weights"],
        training=training_settings(options, engine),
        groups=options["groups"],
        engine=engine,
        seed=options["seed"],
    )
    return write_report(segmentation_report(settings, others.rivals()), report)


def evaluate_retrieval(
    index: str,
    labels: str = "folder",
    *,
    report: str | None = None,
    version: int | None = None,
    pairs: str | None = None,
    masks: str | None = None,
    classes: str | None = None,
    window: tuple[float, float] = (0.29, 0.96),
    methods: Sequence[str] = ("all",),
    sigma: Sequence[tuple[float, float]] = WINDOWS,
    epsilon: Sequence[float] = EPSILONS,
    queries: int = 1000,
    feedback_rounds: int = 3,
    seed: int = 0,
    images_roots: Sequence[str] = (),
) -> "Report":
    """Measure how well the methods of an index find relevant images.

    Args:
        index: an index or a query cache.
        labels: relevance by `folder`, by `csv` pairs, or by dominant class of label `masks`.
        report: folder to write the report to; None writes nothing.
        version: snapshot of the index; None is the newest.
        pairs: CSV file with the columns query,relevant[,class], for `csv`.
        masks: folder of masks, for `masks`.
        classes: JSON file of classes, for `masks`.
        window: share that the dominant class has to fill, for `masks`.
        methods: names of methods; `all` stands for those of the index.
        sigma: windows of coverage to filter by.
        epsilon: semantic distances to filter by.
        queries: number of query images at most, drawn at random.
        feedback_rounds: rounds of simulated relevance feedback.
        seed: of the draw and the bootstrap.
        images_roots: folders that images are shown from; by default those of the index.
    """
    from segrec_batch.evaluation.retrieval.report import retrieval_report
    from segrec_batch.evaluation.retrieval.run import RetrievalOptions

    check_place(report)
    settings = RetrievalOptions(
        index=index,
        truth=_truth(labels, pairs, masks, classes, window),
        methods=tuple(methods),
        windows=tuple(sigma),
        epsilons=tuple(epsilon),
        queries=queries,
        seed=seed,
        version=version,
        feedback_rounds=feedback_rounds,
        images_roots=tuple(images_roots),
    )
    return write_report(retrieval_report(settings), report)


def _truth(
    labels: str,
    pairs: str | None,
    masks: str | None,
    classes: str | None,
    window: tuple[float, float],
) -> "Folders | Pairs | Masks":
    from segrec_batch.evaluation.retrieval.truth import Pairs

    if labels != "csv":
        return choose_groups(labels, masks, classes, window, "folder, csv or masks")
    if not pairs:
        raise InputError("labels csv need pairs")
    return Pairs(pairs)


def evaluate_drift(
    index: str,
    *,
    report: str | None = None,
    before: int | dt.datetime | None = None,
    after: int | None = None,
    golden: str | None = None,
    golden_size: int = 200,
    k: int = 10,
    fail_over: str | None = None,
    seed: int = 0,
) -> "Report":
    """Compare two snapshots of an index.

    Args:
        index: folder of the index.
        report: folder to write the report to; None writes nothing.
        before: a version, or a time: the version of then; None is the one before `after`.
        after: a version; None is the newest.
        golden: file of image_ids or URIs whose features and recommendations are compared.
        golden_size: number of images without `golden`.
        k: number of recommendations compared.
        fail_over: limits that the report marks, a share for all measures or NAME=SHARE,…; see
            `check_drift`
        seed: of the bootstrap.
    """
    from segrec_batch.evaluation.drift.comparison import Limits, Settings
    from segrec_batch.evaluation.drift.report import drift_report

    check_place(report)
    limits = Limits.parse(fail_over) if fail_over else None
    settings = Settings(index, before, after, golden, golden_size, k, limits, seed)
    return write_report(drift_report(settings), report)


def check_drift(report: "Report", fail_over: str) -> None:
    """Raise DriftError if a measure of a report of `evaluate_drift` is above a limit."""
    from segrec_batch.evaluation.drift.comparison import Limits

    if report.details["from"]["images"]:
        Limits.parse(fail_over).check(report.estimates)
    else:
        log.info("nothing was indexed before: there is no drift to judge")


def compare_reports(
    reports: Sequence[str],
    *,
    report: str | None = None,
    names: Sequence[str] = (),
    method: Sequence[str] = (),
    seed: int = 0,
) -> "Report":
    """Put two or more reports of one kind side by side.

    Args:
        reports: folders of reports, or their metrics.json; the first is the base.
        report: folder to write the report to; None writes nothing.
        names: names of the reports; by default A, B, …
        method: of each report the one method to compare; by default all.
        seed: of the bootstrap.
    """
    from segrec_batch.evaluation.categories.figures import evaluate as evaluate_category_counts
    from segrec_batch.evaluation.compare.report import compare_report
    from segrec_batch.evaluation.compare.reports import Settings
    from segrec_batch.evaluation.drift.figures import evaluate as evaluate_drift_counts
    from segrec_batch.evaluation.retrieval.measures import evaluate as evaluate_retrieval_counts
    from segrec_batch.evaluation.segmentation.figures import (
        evaluate as evaluate_segmentation_counts,
    )

    check_place(report)
    evaluators = {
        "segmentation": evaluate_segmentation_counts,
        "retrieval": evaluate_retrieval_counts,
        "categories": evaluate_category_counts,
        "drift": evaluate_drift_counts,
    }
    return write_report(compare_report(Settings(reports, names, method, seed), evaluators), report)
