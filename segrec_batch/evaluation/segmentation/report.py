"""The segmentation report: settings → metric values and page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from segrec_batch.evaluation import plots
from segrec_batch.evaluation.figures import Figures, Names, by
from segrec_batch.evaluation.items import Gallery, Lead, Plot, Section, Table, Text, figure
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.segmentation import figures as metrics
from segrec_batch.evaluation.segmentation.counts import (
    SEGREC,
    Confusion,
    MethodCounts,
    class_names,
    counts_by_method,
    counts_table,
    shares,
)
from segrec_batch.evaluation.segmentation.gallery import galleries
from segrec_batch.evaluation.segmentation.study import (
    Rival,
    Settings,
    labelled_images,
    run_study,
)
from segrec_batch.evaluation.statistics import Estimate
from segrec_batch.labels.labelled import fingerprint, load_classes

TIES = (
    "of equal scores the first class, background before all others; of equally large dominant "
    "classes the first"
)
_SPLITS = {
    metrics.SEPARATE: "Test images were supplied separately; overlap with the training images was "
    "not checked.",
    metrics.GROUPED: "Whole groups of images were held out, so that the model was trained on "
    "nothing like the test images. These are the values to rely on.",
    metrics.RANDOM: "As many training images were drawn at random from all images but the test "
    "images. Neighbours of the test images, such as the next frames of a video, are among them.",
    metrics.AUGMENTED_FIRST: "Like random, with augmented copies of the test images among the "
    "training images, as in an evaluation that augments before it splits (Abdullah 2026, section "
    "3).",
}
_SETTINGS = {metrics.PIXELS: "by pixels", metrics.DOMINANT: "by the dominant class of an image"}
_ACCURACY = {metrics.PIXELS: "pixel accuracy", metrics.DOMINANT: "images right"}
_WORDS = {"iou": "IoU", "f1": "F1"}


def segmentation_report(settings: Settings, rivals: Sequence[Rival] = ()) -> Report:
    """Train and evaluate as the settings request. Raises InputError, ModelError, DeviceError."""
    classes = load_classes(settings.classes)
    images, test = labelled_images(settings)
    study = run_study(settings, images, test, classes, rivals)
    counts = counts_table(study.rows, classes.names)
    values = metrics.estimates(counts, settings.seed)
    model = study.main.model
    spec = model.spec
    tallies = list(counts_by_method(counts))
    main = next(tally for tally in tallies if tally.method == SEGREC)
    images_shown = galleries(
        main, study.main.images, classes, study.method(study.main), spec.colours
    )
    figures = Figures(values, method=SEGREC, split=main.split, setting=metrics.PIXELS)
    names = class_names(counts)
    confusion: dict[str, dict[str, Mapping[str, Any]]] = {}
    for tally in tallies:
        confusion.setdefault(tally.split, {})[tally.method] = {
            metrics.PIXELS: tally.confusion.sum(axis=0).tolist(),
            metrics.DOMINANT: metrics.dominant(tally.confusion).sum(axis=0).tolist(),
        }
    return Report(
        title="Segmentation quality",
        provenance=Provenance(
            kind="segmentation",
            data=fingerprint([*images, *test], classes),
            ties=TIES,
            seed=settings.seed,
            model_id=model.model_id,
            weights=spec.weights,
        ),
        estimates=values,
        counts=counts,
        sections=list(sections(figures, names, main, images_shown)),
        lead=lead(figures, names, main),
        details={
            "classes": names,
            "confusion": confusion,
            "calibration": {c: metrics.calibration(main, k) for k, c in enumerate(names) if k},
            "methods": study.methods,
        },
        not_run=study.not_run,
        notice=spec.notice,
    )


def lead(f: Figures, names: Sequence[str], main: MethodCounts) -> Lead:
    """Return the first screen of the page."""
    common = names[metrics.majority(main.confusion)]
    baseline = f.get(name="pixel_accuracy", method=metrics.majority_name(common))
    iou = f.get(name="iou", cls=metrics.MEAN)
    known = {c: e.value for c in names[1:] if (e := f.get(name="iou", cls=c)).value is not None}
    order = sorted(known, key=lambda c: -known[c])
    extremes = f" It is best for {order[0]} and worst for {order[-1]}." if len(order) > 1 else ""
    answer = (
        f"On {len(main.images)} test images the model reaches a mean IoU of {_short(iou)} over "
        f"{len(known)} classes.{extremes} {_SPLITS[main.split]}"
    )
    numbers = [
        ("Mean IoU", iou, "Intersection over union by pixels, mean of the classes"),
        ("Pixel accuracy", f.get(name="pixel_accuracy"),
         f"Predicting {common} everywhere reaches {_short(baseline)}"),
        ("Coverage error", f.get(name="coverage_error", cls=metrics.MEAN, setting=""),
         "Mean |σ̂ − σ|: error of the class shares that queries filter by"),
    ]  # fmt: skip
    series: Names = {w: {"name": "iou", "setting": s} for s, w in _SETTINGS.items()}
    plot = f.dot_plot("IoU of each class", "IoU", by("cls", (*names[1:], metrics.MEAN)), series)
    return Lead("How well does the model segment labelled images?", answer, numbers, plot)


def sections(
    f: Figures, names: Sequence[str], main: MethodCounts, images: Sequence[Gallery]
) -> Iterator[Section]:
    """Yield the sections of the page; sections without content are left out."""
    splits = f.distinct("split", name="iou")
    yield Section("Classes", list(_classes(f, names, main)))
    yield Section("Methods", list(_methods(f)))
    if len(splits) > 1:
        yield Section("Splits and leak", list(_leak(f, splits)))
    yield Section("Coverage", list(_coverage(f, names, main)))
    if images:
        yield Section("Images", list(images))
    yield Section("Weaknesses", list(_weaknesses(f, names)))


def _classes(f: Figures, names: Sequence[str], main: MethodCounts) -> Iterator[Text | Table | Plot]:
    yield Text(
        "IoU is Σ intersection / Σ union over all images, at the resolution of each image. "
        "Accuracy is that of one class against the rest, which is high for every rare class. "
        "The mean is over the foreground classes that have labels. The intervals assume "
        "independent images; for frames of one video they are too narrow."
    )
    rows = by("cls", (*names[1:], metrics.MEAN, names[0]))
    for setting, words in _SETTINGS.items():
        columns: Names = {_WORDS.get(r, r): {"name": r, "setting": setting} for r in metrics.RATIOS}
        yield f.table(f"The proposed method, {words}", "class", rows, columns)
    yield _confusion(names, main.confusion.sum(axis=0), metrics.PIXELS)
    yield _confusion(names, metrics.dominant(main.confusion).sum(axis=0), metrics.DOMINANT)


def _confusion(names: Sequence[str], confusion: Confusion, setting: str) -> Plot:
    parts = shares(confusion)
    diagonal = ", ".join(
        f"{name} {part:.2f}"
        for name, part in zip(names, np.diag(parts), strict=True)
        if not np.isnan(part)
    )
    return Plot(
        f"Confusion matrix, {_SETTINGS[setting]}, rows sum to 1",
        plots.heat_map(parts, names, names, "by the labels", "by the model"),
        f"Diagonal: {diagonal}",
    )


def _methods(f: Figures) -> Iterator[Text | Table | Plot]:
    yield Text(
        "Means over the classes, with the columns of tables 2 and 3 of Abdullah 2026. The "
        "accuracies of that paper are of one label per image; the second table is the nearest one."
    )
    rows = by("method", f.distinct("method", split=f.defaults["split"]))
    for setting, words in _SETTINGS.items():
        columns: Names = {
            **{
                _WORDS.get(r, r): {"name": r, "cls": metrics.MEAN, "setting": setting}
                for r in ("precision", "accuracy", "recall", "f1", "iou")
            },
            _ACCURACY[setting]: {"name": "pixel_accuracy", "setting": setting},
        }
        yield f.table(f"Methods {words}, mean of the classes", "method", rows, columns)
    series: Names = {f"mean {_WORDS[r]}": {"name": r, "cls": metrics.MEAN} for r in ("iou", "f1")}
    yield f.dot_plot("Methods, by pixels", "mean of the classes", rows, series)


def _leak(f: Figures, splits: Sequence[str]) -> Iterator[Text | Table | Plot]:
    for split in splits:
        yield Text(f"{split[0].upper()}{split[1:]}: {_SPLITS[split]}")
    yield Text(
        "All splits are tested on the same images. Their difference is the leak: the apparent gain "
        "from training on near copies of the test images. Intervals are of paired resamples."
    )
    methods = [m for m in f.distinct("method", split=splits[0]) if metrics.is_fitted(m)]
    changes = [f"{split} − {metrics.GROUPED}" for split in splits[1:]]
    for setting, words in _SETTINGS.items():
        for caption, corner, some, prefix in (
            (f"The same test images, {words}, mean of the classes", "method, split", splits, ""),
            (f"The leak, {words}, mean of the classes", "method, difference", changes, "leak_"),
        ):
            rows: Names = {
                f"{m}, {s}": {"method": m, "split": s}
                for m in methods
                for s in some
                if m in f.distinct("method", split=s)
            }
            columns: Names = {
                _WORDS.get(name, _ACCURACY[setting]): {
                    "name": prefix + name, "cls": cls, "setting": setting,
                }
                for name, cls in metrics.LEAKS
            }  # fmt: skip
            yield f.table(caption, corner, rows, columns)
    yield f.dot_plot(
        "Mean IoU by split", "mean IoU, by pixels", by("method", methods),
        {s: {"split": s, "name": "iou", "cls": metrics.MEAN} for s in splits},
    )  # fmt: skip


def _coverage(
    f: Figures, names: Sequence[str], main: MethodCounts
) -> Iterator[Text | Table | Plot]:
    yield Text(
        "σ is the share of a class in the labelled pixels of an image; σ̂ is the share of its cells "
        "on the feature grid, which the index stores and queries filter by. The plots show bins of "
        "equally many images by σ̂; on the diagonal σ̂ is right on average."
    )
    columns: Names = {
        "mean |σ̂ − σ|": {"name": "coverage_error", "setting": ""},
        "mean σ̂ − σ": {"name": "coverage_bias", "setting": ""},
    }
    rows = by("cls", (*names[1:], metrics.MEAN, names[0]))
    yield f.table("Error and bias of coverage", "class", rows, columns)
    for k, cls in enumerate(names[1:], start=1):
        if bins := metrics.calibration(main, k):
            predicted, labels, _ = np.array(bins).T
            top = 1.05 * float(max(predicted.max(), labels.max()))
            svg = plots.line_plot(
                {cls: plots.Line(predicted, labels)}, "mean σ̂ of the bin", "mean σ by the labels",
                diagonal=True, x_range=(0, top), y_range=(0, top),
            )  # fmt: skip
            points = ", ".join(f"{x:.3f} → {y:.3f}" for x, y, _ in bins)
            yield Plot(f"Calibration of σ: {cls}", svg, f"σ̂ → σ: {points}")


def _weaknesses(f: Figures, names: Sequence[str]) -> Iterator[Text | Table]:
    yield Text(
        "The proposed method on parts of the test images. By size, each class is evaluated on the "
        "images that have it, so that false detections in other images do not count. An interval "
        "based on one image has no width."
    )
    overlaps = [metrics.overlap(n) for n in range(1, len(names))]
    for caption, settings in (
        ("by size of the object (terciles of σ, class by class)", metrics.SIZES),
        ("by brightness of the image (terciles of luminance)", metrics.BRIGHTNESS),
        ("by number of classes in the image", overlaps),
    ):
        for ratio, words in (("iou", "IoU"), ("recall", "Recall")):
            columns: Names = {c: {"name": ratio, "cls": c} for c in (*names[1:], metrics.MEAN)}
            yield f.table(f"{words} {caption}", "images", by("setting", settings), columns)


def _short(estimate: Estimate) -> str:
    return figure(estimate, interval=False)
