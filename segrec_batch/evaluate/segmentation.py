"""How well a model segments labelled pictures: counts of pixels, and the figures that follow."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch import __version__
from segrec_batch.decode import fit
from segrec_batch.errors import InputError
from segrec_batch.model.segmenter import Segmenter
from segrec_batch.train.labelled import VOID, Classes, LabelledImage, fingerprint

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ClassScores:
    """Figures of one class, None where they are not defined (the class is absent).

    With tp, fp, fn pixels: precision tp/(tp+fp), recall tp/(tp+fn), f1 2tp/(2tp+fp+fn), iou
    tp/(tp+fp+fn).
    """

    iou: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    labelled_pixels: int
    predicted_pixels: int


def class_scores(confusion: Counts, k: int) -> ClassScores:
    """The figures of class k from a confusion matrix, rows true, columns predicted."""
    tp, labelled, predicted = (
        int(n) for n in (confusion[k, k], confusion[k].sum(), confusion[:, k].sum())
    )
    if labelled == 0:
        return ClassScores(None, None, None, None, 0, predicted)
    return ClassScores(
        iou=tp / (labelled + predicted - tp),
        precision=tp / predicted if predicted else None,
        recall=tp / labelled,
        f1=2 * tp / (labelled + predicted),
        labelled_pixels=labelled,
        predicted_pixels=predicted,
    )


def count_pixels(truth: NDArray[np.int16], predicted: NDArray[np.uint8], n: int) -> Counts:
    """The (n, n) confusion matrix of two class maps of one shape; void pixels do not count."""
    known = truth != VOID
    pairs = truth[known].astype(np.int64) * n + predicted[known]
    return np.bincount(pairs, minlength=n * n).reshape(n, n)


def evaluate(
    segmenter: Segmenter,
    images: Sequence[LabelledImage],
    classes: Classes,
    track: Callable[[Sequence[LabelledImage]], Iterator[LabelledImage]],
) -> dict[str, Any]:
    """Segment labelled pictures at their original resolution and compare: `metrics.json`.

    Raises InputError if the model's classes are not those of the labels.
    """
    spec = segmenter.model.spec
    if spec.classes != classes.names:
        raise InputError(f"the model knows {spec.classes}, the classes file {classes.names}")
    n = len(spec.all_classes)
    confusion = np.zeros((n, n), np.int64)
    for item in track(images):
        image, labels = item.load(classes)
        predicted = segmenter(fit(image, spec.shapes)[None]).mask(0, labels.shape)
        confusion += count_pixels(classes.to_classes(labels), predicted, n)
    return {
        "kind": "segmentation",
        "code_version": __version__,
        "model_id": segmenter.model.model_id,
        "backbone_weights": spec.weights,
        "backbone_trained": spec.trained,
        "data": {"fingerprint": fingerprint(images, classes), "images": len(images)},
        "ties": "of equal scores the class that comes first, background before all",
        **metrics(confusion, spec.all_classes),
    }


def metrics(confusion: Counts, names: Sequence[str]) -> dict[str, Any]:
    """All figures that follow from a confusion matrix; `names` has the background first.

    `mean` is over the foreground classes that occur. `majority` is what calling every pixel the
    commonest class would reach.
    """
    scores = {name: vars(class_scores(confusion, k)) for k, name in enumerate(names)}
    foreground = [scores[name] for name in names[1:]]
    total = int(confusion.sum())
    commonest = int(confusion.sum(axis=1).argmax())
    share = int(confusion[commonest].sum()) / total if total else None
    return {
        "classes": {name: scores[name] for name in names[1:]},
        "background": scores[names[0]],
        "mean": {
            m: _mean([s[m] for s in foreground]) for m in ("iou", "precision", "recall", "f1")
        },
        "pixel_accuracy": int(np.trace(confusion)) / total if total else None,
        "majority": {"class": names[commonest], "pixel_accuracy": share, "iou": share},
        "confusion": {"classes": list(names), "pixels": confusion.tolist()},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
