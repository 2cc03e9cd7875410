"""Classification of features into named groups of images by logistic regression."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from segrec_batch.common.errors import InputError

_FOLDS = 5
_ITERATIONS = 1000


@dataclass(frozen=True)
class Categories:
    """A linear classifier of raw features: the category with the highest w·x + b.

    Attributes:
        names: the K categories.
        weights: (K, C) float32.
        bias: (K,) float32.
        accuracy: of cross-validation, in [0, 1]; None if fewer than two groups have two images.
    """

    names: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    accuracy: float | None


def fit_categories(features: NDArray[np.float32], groups: Sequence[str]) -> Categories:
    """Fit a multinomial logistic regression on standardised features.

    Args:
        features: (n, C).
        groups: (n,) group of each image.

    Raises:
        InputError: there is only one group.
    """
    names, targets = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"category=folder needs images of two folders, but all {len(targets):,} images are in "
            f"{''.join(names)!r}; use category=class"
        )
    classifier = _make_classifier().fit(features, targets)
    scaler, regression = (step for _, step in classifier.steps)
    coef, intercept = regression.coef_, regression.intercept_
    if len(names) == 2:  # scikit-learn has one row for two classes
        coef, intercept = np.concatenate([-coef, coef]), np.concatenate([-intercept, intercept])
    weights = coef / scaler.scale_
    bias = intercept - weights @ scaler.mean_
    return Categories(
        tuple(map(str, names)),
        weights.astype(np.float32),
        bias.astype(np.float32),
        _cross_validate(features, targets),
    )


def _make_classifier() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))


def _cross_validate(features: NDArray[np.float32], targets: NDArray[np.int64]) -> float | None:
    """Return the cross-validated accuracy over groups of at least two images."""
    sizes = np.bincount(targets)
    if (sizes > 1).sum() < 2:
        return None
    usable = sizes[targets] > 1
    folds = StratifiedKFold(min(_FOLDS, sizes[sizes > 1].min()), shuffle=True, random_state=0)
    scores = cross_val_score(_make_classifier(), features[usable], targets[usable], cv=folds)
    return float(scores.mean())
