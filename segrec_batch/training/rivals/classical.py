"""The SVM and its rivals on the same features: logistic regression, random forest, k-NN.

Abdullah 2026, table 2. All four learn from the same positions and score the same cells: those of
the stride-16 grid, on which coverage σ is defined. Positions are drawn half by mask value, so every
classifier overrates rare classes; all four get the same cure, offsets per class (see
`choose_offsets`) from the same held-out groups.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segrec_batch.common.errors import InputError
from segrec_batch.images.decode import Shape, fit
from segrec_batch.labels.labelled import Classes
from segrec_batch.model.architecture import DEEPEST, Tap
from segrec_batch.training import scorers
from segrec_batch.training.methods import ClassMap
from segrec_batch.training.rivals.deep import class_map
from segrec_batch.training.sample import Samples, cell_features
from segrec_batch.training.scorers import Features, Scorer, Scores
from segrec_batch.training.tune import Components, choose_offsets, split_groups

Rows = NDArray[np.int64]
Fit = Callable[[Rows], Scorer]


@dataclass(frozen=True)
class ClassicalSettings:
    """Choices of the four methods, and from how many positions each learns at most.

    c: of the SVM and the logistic regression, see `fit_svm`. leaf: the fewest positions in a leaf
    of a tree. neighbours: the k of k-NN.
    """

    c: float = 1.0
    linear_positions: int = 120_000
    trees: int = 100
    leaf: int = 5
    forest_positions: int = 20_000
    neighbours: int = 15
    neighbour_positions: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """A method that scores cells; `settings` says how it was made."""

    score: Scorer
    offsets: NDArray[np.float32]
    settings: Mapping[str, Any]

    def __call__(self, features: Features) -> Scores:
        """(n, D) → class scores (n, K), offsets added."""
        return self.score(features) + self.offsets


@dataclass(frozen=True)
class Classical:
    """Fitted methods, by name, behind one pass of the backbone."""

    fitted: Mapping[str, Fitted]
    taps: Sequence[Tap]
    feature_maps: Callable[[NDArray[np.uint8]], Mapping[str, Tensor]]
    shapes: Sequence[Shape]

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """What a report says of each method."""
        return {name: fitted.settings for name, fitted in self.fitted.items()}

    def __call__(self, image: Image.Image) -> dict[str, ClassMap]:
        """The class map of an RGB image for each method; scores are resized, then argmax."""
        maps = self.feature_maps(fit(image, self.shapes)[None])
        h, w = maps[DEEPEST].shape[-2:]
        read = cell_features(maps, self.taps, np.arange(h * w), (h, w))
        features = read.half().cpu().numpy()
        return {
            name: _class_map(fitted(features), (h, w), image)
            for name, fitted in self.fitted.items()
        }


def _class_map(scores: Scores, grid: Shape, image: Image.Image) -> ClassMap:
    cells = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    on_grid = torch.from_numpy(scores.T.reshape(1, -1, *grid))  # (h·w, K) -> (1, K, h, w)
    return ClassMap(class_map(on_grid, image), cells.astype(np.int64))


def fit_classical(
    samples: Samples,
    taps: Sequence[Tap],
    feature_maps: Callable[[NDArray[np.uint8]], Mapping[str, Tensor]],
    shapes: Sequence[Shape],
    classes: Classes,
    settings: ClassicalSettings | None = None,
) -> Classical:
    """Fit `svm`, `logistic regression`, `random forest` and `k-NN` on sampled positions, whose
    features are those of `taps`.

    Each is fitted twice: without the held-out groups, on which its offsets are chosen, and then on
    all. Raises InputError if there are less than two groups.
    """
    settings = settings or ClassicalSettings()
    train, held_out = _hold_out(samples, classes)
    fitted = {}
    for name, (fit_rows, bound, said) in _methods(samples, classes, settings).items():
        rng = np.random.default_rng(settings.seed)
        trial = fit_rows(_at_most(bound, train, rng))
        offsets = _offsets(trial, samples, classes, _at_most(bound, held_out, rng))
        rows = _at_most(bound, np.arange(len(samples.values)), rng)
        said |= {"positions": len(rows), "seed": settings.seed, "offsets": offsets.tolist()}
        fitted[name] = Fitted(fit_rows(rows), offsets, said)
    return Classical(fitted, taps, feature_maps, shapes)


def _methods(
    samples: Samples, classes: Classes, settings: ClassicalSettings
) -> dict[str, tuple[Fit, int, dict[str, Any]]]:
    """How each method is fitted on rows, its bound on them, and what to say of it."""
    s = settings
    components = Components.of(samples.values, classes)

    def on(fit: Callable[..., Scorer], **choices: Any) -> Fit:
        return lambda rows: fit(
            samples.features[rows], components.targets(samples.values[rows]), components, **choices
        )

    svm = on(scorers.linear, loss="hinge", c=s.c, seed=s.seed)
    logistic = on(scorers.linear, loss="log_loss", c=s.c, seed=s.seed)
    forest = on(scorers.forest, trees=s.trees, leaf=s.leaf, seed=s.seed)
    neighbours = on(scorers.neighbours, k=s.neighbours)
    return {
        "svm": (svm, s.linear_positions, {"c": s.c}),
        "logistic regression": (logistic, s.linear_positions, {"c": s.c}),
        "random forest": (forest, s.forest_positions, {"trees": s.trees, "leaf": s.leaf}),
        "k-NN": (neighbours, s.neighbour_positions, {"k": s.neighbours}),
    }


def _hold_out(samples: Samples, classes: Classes) -> tuple[Rows, Rows]:
    """Rows (train, test) of the first fold of groups with the most classes on both sides."""
    if len(set(samples.groups)) < 2:
        raise InputError("offsets of classes need labelled images of at least two groups")
    labels = classes.to_classes(samples.values)
    folds = split_groups(samples.groups)
    return max(folds, key=lambda rows: len(set(labels[rows[0]]) & set(labels[rows[1]])))


def _at_most(bound: int, rows: Rows, rng: np.random.Generator) -> Rows:
    return np.sort(rng.choice(rows, bound, replace=False)) if len(rows) > bound else rows


def _offsets(score: Scorer, samples: Samples, classes: Classes, rows: Rows) -> NDArray[np.float32]:
    """Chosen on some rows; 0 for a class that is not among them."""
    labels = classes.to_classes(samples.values[rows]).astype(np.int64)
    offsets = choose_offsets(score(samples.features[rows]), labels, samples.weights[rows])
    offsets[~np.isin(np.arange(len(offsets)), labels)] = 0
    return offsets
