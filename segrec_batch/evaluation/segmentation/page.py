"""The sections of the segmentation page."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from segrec_batch.evaluation.items import Gallery, Plot, Section, Table, Text
from segrec_batch.evaluation.segmentation import tables
from segrec_batch.evaluation.segmentation.counts import SEGREC, Tally, class_names, tallies
from segrec_batch.evaluation.segmentation.judge import DOMINANT, PIXELS, dominant, majority_name
from segrec_batch.evaluation.segmentation.judge import majority as majority_class
from segrec_batch.evaluation.segmentation.splits import AUGMENTED_FIRST, GIVEN, GROUPED, RANDOM
from segrec_batch.evaluation.segmentation.tables import Figures
from segrec_batch.evaluation.statistics import Estimate

_ABOUT = {
    GIVEN: "The judged images were given apart from those that were trained on; whether they "
    "show other places is for the giver to say.",
    GROUPED: "Whole groups of images were held out, so nothing like the judged images was "
    "trained on. This is the figure to believe.",
    RANDOM: "As many images were trained on, drawn at random from all that are not judged: "
    "neighbours of the judged images, such as the next frames of a video, are among them.",
    AUGMENTED_FIRST: "As random, and augmented copies of the judged images themselves were "
    "trained on, as happens when one augments before one splits (Abdullah 2026, section 3).",
}


def figures_of(counts: pa.Table, found: Sequence[Estimate]) -> Figures:
    """The figures of a report on these counts; its main split is the first."""
    first = next(tallies(counts))
    return Figures({e.key: e for e in found}, class_names(counts), first.split)


def sections(counts: pa.Table, figures: Figures, images: Sequence[Gallery]) -> list[Section]:
    """All of the page; what there is nothing to say about is left out."""
    judged = list(tallies(counts))
    main = next(t for t in judged if t.method == SEGREC)
    splits = list(dict.fromkeys(t.split for t in judged))
    found = [
        quality(figures, main),
        Section("Methods", list(_methods(figures))),
    ]
    if len(splits) > 1:
        found.append(Section("Splits and leak", list(_leak(figures, splits))))
    found.append(coverage(figures, main))
    if images:
        found.append(Section("Images", list(images)))
    return [*found, weakness(figures)]


def quality(figures: Figures, main: Tally) -> Section:
    """How well the proposed method does."""
    commonest = figures.names[majority_class(main.confusion)]
    ours, theirs = (
        figures.get("pixel_accuracy", method=method)
        for method in (SEGREC, majority_name(commonest))
    )
    groups = f"{len(main.images)} images were judged at their own resolution. {_ABOUT[main.split]}"
    return Section(
        "Quality",
        [
            Text(groups),
            Text(
                f"Pixel accuracy {_said(ours)}; to call every pixel {commonest} would reach "
                f"{_said(theirs)}. IoU is Σ intersection / Σ union over all images; accuracy is "
                "that of one class against the rest, which is high for any rare class. The mean is "
                "over the foreground classes that have labels. The intervals take images as "
                "independent: for frames of one video they are too narrow."
            ),
            tables.class_table(figures, PIXELS),
            tables.class_table(figures, DOMINANT),
            tables.iou_plot(figures),
            tables.confusion_plot(figures, main.confusion.sum(axis=0), PIXELS),
            tables.confusion_plot(figures, dominant(main.confusion).sum(axis=0), DOMINANT),
        ],
    )


def _methods(figures: Figures) -> Iterator[Text | Table | Plot]:
    yield Text(
        "Means over the classes, in the columns of tables 2 and 3 of Abdullah 2026; its accuracies "
        "are those of one label an image, which the second table comes nearest to."
    )
    for setting in (PIXELS, DOMINANT):
        yield tables.method_table(figures, setting)
    yield tables.method_plot(figures)


def _leak(figures: Figures, splits: Sequence[str]) -> Iterator[Text | Table | Plot]:
    for split in splits:
        yield Text(f"{split[0].upper()}{split[1:]}: {_ABOUT[split]}")
    yield Text(
        "All splits are judged on the same images, so their difference is the leak: what a "
        "method seems to gain only because it was trained on near copies of what it is judged on. "
        "Intervals are of paired resamples."
    )
    for setting in (PIXELS, DOMINANT):
        yield tables.split_table(figures, splits, setting)
        yield tables.leak_table(figures, splits, setting)
    yield tables.leak_plot(figures, splits)


def coverage(figures: Figures, main: Tally) -> Section:
    """How good σ̂ is, on which queries filter."""
    text = (
        "σ is the share of a class in the labelled pixels of an image, σ̂ the share of its cells "
        "on the feature grid, which the index stores and queries filter by. In the plots images "
        "are put into bins of equally many by σ̂; on the diagonal σ̂ is right on average."
    )
    plots = tables.calibration_plots(figures, main)
    return Section("Coverage", [Text(text), tables.coverage_table(figures), *plots])


def weakness(figures: Figures) -> Section:
    """Under which conditions it does worse."""
    text = (
        "Figures of the proposed method on some of the judged images. By size each class is "
        "judged on the images that have it, so nothing is said of false alarms in others. An "
        "interval that rests on one image has no width."
    )
    return Section("Where it is weak", [Text(text), *tables.weak_tables(figures)])


def _said(estimate: Estimate) -> str:
    return "absent" if estimate.value is None else f"{estimate.value:.3f}"
