"""Linear SVM, logistic regression, random forest and k-NN on the same features.

Source: Abdullah 2026, table 2. All four methods learn from the same positions and score the cells
of the grid on which coverage σ is defined. Half of the positions are drawn per mask value, so every
classifier overrates rare classes. All four are corrected by offsets per class (see
`choose_offsets`), chosen on the same held-out groups. Each method has one output per component (see
`Components`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from segrec_batch.common.errors import InputError
from segrec_batch.images.decode import Shape, fit
from segrec_batch.labels.labelled import Classes
from segrec_batch.model.backbones import BACKBONES, Tap
from segrec_batch.training.rivals.base import ClassMap, class_map
from segrec_batch.training.sampling import Samples, cell_features
from segrec_batch.training.svm import Scaler
from segrec_batch.training.validation import Components, choose_offsets, fit_all, split_groups

Features = NDArray[np.floating]  # (n, D)
Targets = NDArray[np.int64]  # (n,), numbers of components
Scores = NDArray[np.float32]  # (n, K) of classes
Scorer = Callable[[Features], Scores]

_LOWEST = 1e-3  # lower bound of probabilities before the logarithm
_BLOCK = 512  # positions scored at a time


def fit_linear(
    x: Features, targets: Targets, components: Components, loss: str, c: float
) -> Scorer:
    """Fit linear models; a class scores the decision value of its best component.

    Args:
        loss, c: see `fit_svm`.
    """
    fitted = fit_all(x, targets, len(components.classes), c, loss)
    return lambda features: components.class_scores(fitted.decision(features))


def fit_forest(
    x: Features, targets: Targets, components: Components, trees: int, leaf: int, seed: int
) -> Scorer:
    """Fit a random forest; a class scores the log of its components' summed probability.

    Args:
        leaf: minimum number of positions in a leaf; bounds the size of the trees.
    """
    fitted = RandomForestClassifier(trees, min_samples_leaf=leaf, n_jobs=-1, random_state=seed)
    fitted.fit(x.astype(np.float32), targets)
    classes = np.array(components.classes)[fitted.classes_]
    is_member = classes[:, None] == np.arange(max(components.classes) + 1)  # (M, K)
    return lambda features: components.exclude_unseen(
        _log(fitted.predict_proba(features.astype(np.float32)) @ is_member)
    )


def fit_neighbours(x: Features, targets: Targets, components: Components, k: int) -> Scorer:
    """Fit k-NN; a class scores the log of its share among the k nearest positions.

    The distance is Euclidean on standardised features, computed as matrix products of blocks.
    """
    scaler = Scaler.of(x)
    rows = torch.from_numpy(scaler.transform(x))
    classes = torch.tensor(components.classes)
    votes = F.one_hot(classes[targets], max(components.classes) + 1).float()  # (n, K)
    nearest = partial(_nearest, rows, rows.square().sum(dim=1), min(k, len(x)))

    def score(features: Features) -> Scores:
        blocks = torch.from_numpy(scaler.transform(features)).split(_BLOCK)
        shares = torch.cat([votes[nearest(block)].mean(dim=1) for block in blocks])
        return components.exclude_unseen(_log(shares.numpy()))

    return score


def _nearest(rows: torch.Tensor, squares: torch.Tensor, k: int, x: torch.Tensor) -> torch.Tensor:
    # |x - r|² - |x|²: the omitted term is the same for all rows r
    distance = torch.addmm(squares, x, rows.T, alpha=-2)
    return distance.topk(k, largest=False).indices


def _log(probabilities: NDArray[np.floating]) -> Scores:
    logs: Scores = np.log(np.maximum(probabilities, _LOWEST)).astype(np.float32)
    return logs


Rows = NDArray[np.int64]
Fit = Callable[[Rows], Scorer]


@dataclass(frozen=True)
class ClassicalSettings:
    """Parameters of the four methods and the maximum number of positions each learns from.

    Attributes:
        c: regularisation of the SVM and the logistic regression, see `fit_svm`; scikit-learn's
            default.
        leaf: minimum number of positions in a leaf of a tree.
        neighbours: k of k-NN.
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
class CellClassifier:
    """A fitted method that scores cells, with its offsets per class and its settings."""

    score: Scorer
    offsets: NDArray[np.float32]
    settings: Mapping[str, Any]

    def __call__(self, features: Features) -> Scores:
        """Return class scores (n, K) of features (n, D), offsets included."""
        return self.score(features) + self.offsets


@dataclass(frozen=True)
class ClassicalMethods:
    """Fitted methods by name that share one forward pass of the backbone."""

    fitted: Mapping[str, CellClassifier]
    taps: Sequence[Tap]
    feature_maps: Callable[[NDArray[np.uint8]], Mapping[str, Tensor]]
    shapes: Sequence[Shape]

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """Settings of each method, by name."""
        return {name: fitted.settings for name, fitted in self.fitted.items()}

    def __call__(self, image: Image.Image) -> dict[str, ClassMap]:
        """Return the class map of an RGB image by each method: scores are resized, then argmax."""
        maps = self.feature_maps(fit(image, self.shapes)[None])
        h, w = maps[BACKBONES[self.taps[0].backbone].feature_layer].shape[-2:]
        features = cell_features(maps, self.taps, np.arange(h * w), (h, w)).half().cpu().numpy()
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
) -> ClassicalMethods:
    """Fit `svm`, `logistic regression`, `random forest` and `k-NN` on sampled positions.

    Each method is fitted twice: without the held-out groups, on which its offsets are chosen, and
    then on all positions.

    Args:
        samples: positions with the features of `taps`.

    Raises:
        InputError: there are fewer than two groups.
    """
    settings = settings or ClassicalSettings()
    train, held_out = _hold_out(samples, classes)
    fitted = {}
    for name, (fit_rows, limit, parameters) in _list_methods(samples, classes, settings).items():
        rng = np.random.default_rng(settings.seed)
        trial = fit_rows(_draw_at_most(limit, train, rng))
        offsets = _choose_offsets(trial, samples, classes, _draw_at_most(limit, held_out, rng))
        rows = _draw_at_most(limit, np.arange(len(samples.values)), rng)
        parameters |= {"positions": len(rows), "seed": settings.seed, "offsets": offsets.tolist()}
        fitted[name] = CellClassifier(fit_rows(rows), offsets, parameters)
    return ClassicalMethods(fitted, taps, feature_maps, shapes)


def _list_methods(
    samples: Samples, classes: Classes, settings: ClassicalSettings
) -> dict[str, tuple[Fit, int, dict[str, Any]]]:
    """Return for each method its fit function, its maximum number of rows and its parameters."""
    s = settings
    components = Components.of(samples.values, classes)

    def bind(fit: Callable[..., Scorer], **parameters: Any) -> Fit:
        return lambda rows: fit(
            samples.features[rows],
            components.targets(samples.values[rows]),
            components,
            **parameters,
        )

    svm = bind(fit_linear, loss="squared_hinge", c=s.c)
    logistic = bind(fit_linear, loss="log_loss", c=s.c)
    forest = bind(fit_forest, trees=s.trees, leaf=s.leaf, seed=s.seed)
    neighbours = bind(fit_neighbours, k=s.neighbours)
    return {
        "svm": (svm, s.linear_positions, {"c": s.c}),
        "logistic regression": (logistic, s.linear_positions, {"c": s.c}),
        "random forest": (forest, s.forest_positions, {"trees": s.trees, "leaf": s.leaf}),
        "k-NN": (neighbours, s.neighbour_positions, {"k": s.neighbours}),
    }


def _hold_out(samples: Samples, classes: Classes) -> tuple[Rows, Rows]:
    """Return rows (train, test) of the first fold that has the most classes on both sides."""
    if len(set(samples.groups)) < 2:
        raise InputError("offsets of classes need labelled images of at least two groups")
    labels = classes.to_classes(samples.values)
    folds = split_groups(samples.groups)
    return max(folds, key=lambda rows: len(set(labels[rows[0]]) & set(labels[rows[1]])))


def _draw_at_most(limit: int, rows: Rows, rng: np.random.Generator) -> Rows:
    return np.sort(rng.choice(rows, limit, replace=False)) if len(rows) > limit else rows


def _choose_offsets(
    score: Scorer, samples: Samples, classes: Classes, rows: Rows
) -> NDArray[np.float32]:
    """Return offsets chosen on some rows; 0 for a class that does not occur in them."""
    labels = classes.to_classes(samples.values[rows]).astype(np.int64)
    offsets = choose_offsets(score(samples.features[rows]), labels, samples.weights[rows])
    offsets[~np.isin(np.arange(len(offsets)), labels)] = 0
    return offsets
