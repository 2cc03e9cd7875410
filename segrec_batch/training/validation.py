"""Selection of taps, C and class offsets by grouped cross-validation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from segrec_batch.labels.labelled import Classes
from segrec_batch.model.backbones import Tap
from segrec_batch.training.sampling import Samples
from segrec_batch.training.svm import LinearSvm, fit_svm

MAX_FOLDS = 5
CV_ROWS = 120_000  # maximum positions in cross-validation; the final fit takes all
LOWEST = float(np.finfo(np.float16).min)  # score of a class without any position; it never wins
_RARE = 50  # background mask values with fewer positions share one SVM


Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # row numbers: train, test


@dataclass(frozen=True)
class Components:
    """Assignment of mask values to SVMs and of SVMs to classes.

    There is one SVM per mask value, so that the parts of a mixed class such as the background (sky,
    road, building…) need not fit behind one hyperplane.

    Attributes:
        of_value: SVM of each mask value.
        classes: class of each SVM. If every position has a class, one SVM without a mask value
            represents the background, so that every class has at least one.
    """

    of_value: Mapping[int, int]
    classes: tuple[int, ...]

    @classmethod
    def of(cls, values: NDArray[np.int16], classes: Classes) -> "Components":
        """Assign the mask values of sampled positions; rare background values share one SVM."""
        of_value: dict[int, int] = {}
        component_classes: list[int] = []
        rare: int | None = None
        for value, count in zip(*np.unique(values, return_counts=True), strict=True):
            k = classes.class_of(int(value))
            is_rare = k == 0 and count < _RARE
            if is_rare and rare is not None:
                of_value[int(value)] = rare
                continue
            if is_rare:
                rare = len(component_classes)
            of_value[int(value)] = len(component_classes)
            component_classes.append(k)
        if 0 not in component_classes:
            component_classes.append(0)
        return cls(of_value, tuple(component_classes))

    def targets(self, values: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return the SVM numbers (n,) of mask values (n,)."""
        table = np.zeros(max(self.of_value) + 1, np.int64)
        for value, component in self.of_value.items():
            table[value] = component
        return table[values]

    def exclude_unseen(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return class scores (n, K) in which a class without any mask value never wins."""
        trained = {self.classes[component] for component in self.of_value.values()}
        unseen = [k for k in range(scores.shape[1]) if k not in trained]
        scores[:, unseen] = LOWEST
        return scores

    def class_scores(self, decision: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return class scores (n, K): the highest decision value (n, M) among a class's SVMs."""
        components = np.array(self.classes)
        classes = range(components.max() + 1)
        return np.stack([decision[:, components == k].max(axis=1) for k in classes], axis=1)


@dataclass(frozen=True)
class HeadCandidate:
    """Taps and C that cross-validation evaluates."""

    taps: tuple[Tap, ...]
    c: float

    def __str__(self) -> str:
        return f"{','.join(map(str, self.taps))} C={self.c:g}"


@dataclass(frozen=True)
class Validation:
    """Result of cross-validation of one candidate on held-out groups.

    Attributes:
        iou: (K,) per class with offsets, background first; NaN for a class that does not occur.
        offsets: (K,) added to class scores; chosen on the same positions as `iou`.
        accuracy: weighted share of correct positions.
    """

    candidate: HeadCandidate
    iou: NDArray[np.float64]
    offsets: NDArray[np.float32]
    accuracy: float

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the foreground classes."""
        return float(np.nanmean(self.iou[1:]))


def cross_validate(
    samples: Samples,
    taps: Sequence[Tap],
    candidates: Sequence[HeadCandidate],
    components: Components,
    classes: Classes,
    seed: int,
) -> Iterator[Validation]:
    """Evaluate each candidate on groups that its SVMs were not fitted on."""
    rows = _draw_rows(len(samples.values), seed)
    values, weights = samples.values[rows], samples.weights[rows]
    labels = classes.to_classes(values).astype(np.int64)
    targets = components.targets(values)
    folds = split_groups(samples.groups[rows])
    evaluable = find_evaluable_classes(labels, folds)
    for candidate in candidates:
        x = samples.columns(taps, candidate.taps)[rows]
        scores = np.empty((len(x), max(components.classes) + 1), np.float32)
        for train, test in folds:
            svm = fit_all(x[train], targets[train], len(components.classes), candidate.c)
            scores[test] = components.class_scores(svm.decision(x[test]))
        offsets = choose_offsets(scores, labels, weights, evaluable)
        confusion = weighted_confusion(scores + offsets, labels, weights)
        accuracy = float(np.trace(confusion) / confusion.sum())
        yield Validation(candidate, iou(confusion), offsets, accuracy)


def _draw_rows(n: int, seed: int) -> NDArray[np.int64]:
    if n <= CV_ROWS:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, CV_ROWS, replace=False))


def split_groups(groups: NDArray[np.object_]) -> list[Fold]:
    """Return row numbers (train, test) of up to 5 folds; no group is on both sides."""
    folds = min(MAX_FOLDS, len(set(groups)))
    return list(GroupKFold(folds).split(groups, groups=groups))


def find_evaluable_classes(labels: NDArray[np.int64], folds: Sequence[Fold]) -> list[int]:
    """Return the foreground classes that at least two folds hold out.

    If only one fold has a class, the SVMs evaluated on it were fitted without that class.
    """
    held_out = [set(np.unique(labels[test]).tolist()) for _, test in folds]
    foreground = set().union(*held_out) - {0}
    return sorted(k for k in foreground if sum(k in classes for classes in held_out) > 1)


def fit_all(
    x: NDArray[np.floating],
    targets: NDArray[np.int64],
    n: int,
    c: float,
    loss: str = "squared_hinge",
) -> LinearSvm:
    """Fit SVMs for n targets; a target that does not occur scores lowest."""
    present, compact = np.unique(targets, return_inverse=True)
    weights = np.zeros((n, x.shape[1]), np.float32)
    bias = np.full(n, LOWEST, np.float32)
    bias[present] = 0
    if len(present) > 1:
        svm = fit_svm(x, compact, c, loss)
        weights[present], bias[present] = svm.weights, svm.bias
    return LinearSvm(weights, bias)


def weighted_confusion(
    scores: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return estimated cells (K, K) by true class (row) and predicted class (column)."""
    k = scores.shape[1]
    cells = np.bincount(labels * k + scores.argmax(axis=1), weights, minlength=k * k)
    return np.asarray(cells.reshape(k, k), np.float64)


def iou(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return IoU per class; NaN for a class in neither labels nor predictions."""
    correct = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - correct
    undefined = np.full(len(correct), np.nan)
    return np.asarray(np.divide(correct, union, out=undefined, where=union > 0))


def choose_offsets(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    classes: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Return offsets (K,) of class scores that maximise the mean IoU of the foreground classes.

    Training positions are drawn by class, so the SVMs overrate rare classes; offsets correct that.
    The search is a coordinate ascent over a narrowing grid.

    Args:
        classes: foreground classes to adjust (default: all); other offsets stay 0.
    """
    k = scores.shape[1]
    offsets = np.zeros(k, np.float32)

    def measure(trial: NDArray[np.float32]) -> float:
        return float(np.nanmean(iou(weighted_confusion(scores + trial, labels, weights))[1:]))

    best = measure(offsets)
    for reach in (2.0, 0.5, 0.125):
        for i in range(1, k) if classes is None else classes:
            spread = (scores[:, i] - np.delete(scores, i, axis=1).max(axis=1)).std()
            for step in np.linspace(-reach, reach, 17) * spread:
                trial = offsets.copy()
                trial[i] += step
                if (value := measure(trial)) > best:
                    best, offsets = value, trial
    return offsets
