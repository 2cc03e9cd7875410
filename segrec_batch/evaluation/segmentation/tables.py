"""Tables and plots of the segmentation page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segrec_batch.evaluation import plots
from segrec_batch.evaluation.items import Plot, Table
from segrec_batch.evaluation.segmentation.counts import SEGREC, Confusion, Tally
from segrec_batch.evaluation.segmentation.coverage import calibration
from segrec_batch.evaluation.segmentation.judge import DOMINANT, LEAKS, PIXELS, is_fitted, leak_key
from segrec_batch.evaluation.segmentation.ratios import MEAN, RATIOS
from segrec_batch.evaluation.segmentation.weakness import BRIGHTNESS, SIZES, overlap
from segrec_batch.evaluation.statistics import Estimate, Key

WORDS = {
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "accuracy": "accuracy",
    "pixel_accuracy": "pixel accuracy",
}
Row = list[Estimate | str]
SETTINGS = {PIXELS: "by pixels", DOMINANT: "by the dominant class of an image"}


@dataclass(frozen=True)
class Figures:
    """The figures of a report by key, those of one split first of all.

    names: of the classes, background first. main: the split that the page is about.
    """

    by_key: Mapping[Key, Estimate]
    names: Sequence[str]
    main: str

    def get(
        self,
        name: str,
        cls: str = "",
        setting: str = PIXELS,
        method: str = SEGREC,
        split: str | None = None,
    ) -> Estimate:
        """One of them, by default of the proposed method on the main split."""
        key = Key(name, method, self.main if split is None else split, setting, cls)
        return self.by_key.get(key, Estimate(key, None, None, None, 0))

    @property
    def classes(self) -> list[str]:
        """The foreground classes."""
        return list(self.names[1:])

    def methods(self, split: str) -> list[str]:
        """Those that were judged on a split."""
        return list(dict.fromkeys(k.method for k in self.by_key if k.split == split and k.method))


def class_table(figures: Figures, setting: str) -> Table:
    """Class × ratio."""
    rows: list[Row] = [
        [cls, *(figures.get(ratio, cls, setting) for ratio in RATIOS)]
        for cls in (*figures.classes, MEAN, figures.names[0])
    ]
    header = ("class", *(WORDS[r] for r in RATIOS))
    caption = f"The proposed method, {SETTINGS[setting]}"
    return Table(caption, header, rows, figures.main)


def iou_plot(figures: Figures) -> Plot:
    """IoU of each class."""
    rows = {
        cls: {words: figures.get("iou", cls, setting) for setting, words in SETTINGS.items()}
        for cls in (*figures.classes, MEAN)
    }
    said = "; ".join(f"{cls} {_short(row[SETTINGS[PIXELS]])}" for cls, row in rows.items())
    return Plot(
        "IoU of each class", plots.dot_plot(rows, "IoU"), f"By pixels: {said}", figures.main
    )


def confusion_plot(figures: Figures, confusion: Confusion, setting: str) -> Plot:
    """A confusion matrix (K, K), each row divided by its sum."""
    counts = confusion.astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    svg = plots.heat_map(shares, figures.names, figures.names, "by the labels", "by the model")
    hit = ", ".join(
        f"{name} {share:.2f}"
        for name, share in zip(figures.names, np.diag(shares), strict=True)
        if not np.isnan(share)
    )
    caption = f"Confusion matrix, {SETTINGS[setting]}, rows sum to 1"
    return Plot(caption, svg, f"On the diagonal: {hit}", figures.main)


def method_table(figures: Figures, setting: str) -> Table:
    """Method × ratio, means over the classes, as in tables 2 and 3 of Abdullah 2026."""
    ratios = ("precision", "accuracy", "recall", "f1", "iou")
    rows: list[Row] = [
        [
            method,
            *(figures.get(r, MEAN, setting, method=method) for r in ratios),
            figures.get("pixel_accuracy", setting=setting, method=method),
        ]
        for method in figures.methods(figures.main)
    ]
    header = ("method", *(WORDS[r] for r in ratios), _whole(setting))
    caption = f"Methods {SETTINGS[setting]}, mean of the classes"
    return Table(caption, header, rows, figures.main)


def method_plot(figures: Figures) -> Plot:
    """Mean IoU and mean F1 of the methods."""
    rows = {
        method: {f"mean {WORDS[r]}": figures.get(r, MEAN, method=method) for r in ("iou", "f1")}
        for method in figures.methods(figures.main)
    }
    said = "; ".join(f"{name} {_short(row['mean IoU'])}" for name, row in rows.items())
    svg = plots.dot_plot(rows, "mean of the classes, by pixels")
    return Plot("Methods side by side", svg, f"Mean IoU: {said}", figures.main)


def split_table(figures: Figures, splits: Sequence[str], setting: str) -> Table:
    """Method and split × the figures that leaks are stated for."""
    rows: list[Row] = [
        [
            f"{method}, {split}",
            *(figures.get(r, c, setting, method=method, split=split) for r, c in LEAKS),
        ]
        for method in _fitted(figures)
        for split in splits
    ]
    header = ("method, split", *_leak_words(setting))
    caption = f"The same judged images, {SETTINGS[setting]}"
    return Table(caption, header, rows, ", ".join(splits))


def leak_table(figures: Figures, splits: Sequence[str], setting: str) -> Table:
    """What a split that is not by groups adds."""
    rows: list[Row] = []
    for method in _fitted(figures):
        for split in splits:
            keys = [leak_key(Key(r, method, split, setting, c)) for r, c in LEAKS]
            found = [figures.by_key.get(k) for k in keys]
            if all(found):
                rows.append([f"{method}, {keys[0].split}", *(e for e in found if e)])
    header = ("method, difference", *_leak_words(setting))
    return Table(f"The leak, {SETTINGS[setting]}", header, rows, ", ".join(splits))


def leak_plot(figures: Figures, splits: Sequence[str]) -> Plot:
    """Mean IoU of each method on each split."""
    rows = {
        method: {s: figures.get("iou", MEAN, method=method, split=s) for s in splits}
        for method in _fitted(figures)
    }
    said = "; ".join(
        f"{method}: " + ", ".join(f"{split} {_short(e)}" for split, e in row.items())
        for method, row in rows.items()
    )
    svg = plots.dot_plot(rows, "mean IoU, by pixels")
    return Plot("Mean IoU by split", svg, said, ", ".join(splits))


def coverage_table(figures: Figures) -> Table:
    """Errors of coverage by class."""
    rows: list[Row] = [
        [cls, *(figures.get(n, cls, "") for n in ("coverage_error", "coverage_bias"))]
        for cls in (*figures.classes, MEAN, figures.names[0])
    ]
    header = ("class", "mean |σ̂ − σ|", "mean σ̂ − σ")
    return Table("Error and bias of coverage", header, rows, figures.main)


def calibration_plots(figures: Figures, tally: Tally) -> list[Plot]:
    """σ against σ̂ for each class that occurs."""
    found = []
    for k, cls in enumerate(figures.names[1:], start=1):
        bins = calibration(tally, k)
        if not bins:
            continue
        ours, labels, _ = (np.array(column) for column in zip(*bins, strict=True))
        top = 1.05 * float(max(ours.max(), labels.max()))
        svg = plots.line_plot(
            {cls: plots.Line(ours, labels)}, "mean σ̂ of the bin", "mean σ by the labels",
            diagonal=True, x_range=(0, top), y_range=(0, top),
        )  # fmt: skip
        said = ", ".join(f"{x:.3f} → {y:.3f}" for x, y, _ in bins)
        found.append(Plot(f"Calibration of σ: {cls}", svg, f"σ̂ → σ: {said}", figures.main))
    return found


def weak_table(figures: Figures, caption: str, settings: Sequence[str], ratio: str) -> Table:
    """Condition × class."""
    columns = (*figures.classes, MEAN)
    rows: list[Row] = [[s, *(figures.get(ratio, cls, s) for cls in columns)] for s in settings]
    title = WORDS[ratio][0].upper() + WORDS[ratio][1:]
    return Table(f"{title} {caption}", ("images", *columns), rows, figures.main)


def weak_tables(figures: Figures) -> list[Table]:
    """IoU and recall by size, brightness and number of classes."""
    overlaps = [overlap(n) for n in range(1, len(figures.names))]
    return [
        weak_table(figures, caption, settings, ratio)
        for caption, settings in (
            ("by size of the object (terciles of σ, class by class)", SIZES),
            ("by brightness of the image (terciles of luminance)", BRIGHTNESS),
            ("by number of classes in the image", overlaps),
        )
        for ratio in ("iou", "recall")
    ]


def _fitted(figures: Figures) -> list[str]:
    return [m for m in figures.methods(figures.main) if is_fitted(m)]


def _leak_words(setting: str) -> list[str]:
    return [f"{cls} {WORDS[ratio]}" if cls else _whole(setting) for ratio, cls in LEAKS]


def _whole(setting: str) -> str:
    return "pixel accuracy" if setting == PIXELS else "images right"


def _short(estimate: Estimate) -> str:
    return "absent" if estimate.value is None else f"{estimate.value:.2f}"
