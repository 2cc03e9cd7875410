"""Linear SVMs on raw features: standardisation, fitting, and folding into plain weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from segrec_batch.common.errors import InputError
from segrec_batch.training.newton import LOSSES, minimise

_ROWS = 20_000  # rows converted to float32 at a time


@dataclass(frozen=True)
class LinearSvm:
    """One-vs-rest SVMs on raw features: weights (M, D) and bias (M,), float32."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def decision(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return decision values w·x + b (n, M) of features (n, D) (Abdullah 2026, eq. 4)."""
        parts = [
            features[i : i + _ROWS].astype(np.float32) @ self.weights.T + self.bias
            for i in range(0, len(features), _ROWS)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Scaler:
    """Standardisation of features, divided by √D so that C does not depend on the width D."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "Scaler":
        """Compute means and deviations of the columns; a constant column becomes zero.

        Raises:
            InputError: a feature is not finite.
        """
        total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for i in range(0, len(features), _ROWS):
            part = features[i : i + _ROWS].astype(np.float64)
            total += part.sum(axis=0)
            squares += np.square(part).sum(axis=0)
        if not np.isfinite(squares).all():
            raise InputError(
                "features of the backbone are not finite in float16: "
                "check that --backbone-weights are those of this backbone"
            )
        mean = total / len(features)
        deviation = np.sqrt(np.maximum(squares / len(features) - np.square(mean), 0))
        return cls(mean, np.maximum(deviation, 1e-3) * np.sqrt(features.shape[1]))

    def transform(
        self, features: NDArray[np.floating], intercept: bool = False
    ) -> NDArray[np.float32]:
        """Return standardised float32 features (n, D).

        Args:
            intercept: add a column of ones at the end.
        """
        n, width = features.shape
        mean, scale = self.mean.astype(np.float32), self.scale.astype(np.float32)
        out = np.ones((n, width + intercept), np.float32)
        for i in range(0, n, _ROWS):
            part = out[i : i + _ROWS, :width]
            part[:] = features[i : i + _ROWS]
            part -= mean
            part /= scale
        return out


def fit_svm(
    features: NDArray[np.floating],
    targets: NDArray[np.int64],
    c: float,
    loss: str = "squared_hinge",
) -> LinearSvm:
    """Fit one-vs-rest linear SVMs for targets 0..M-1 (M ≥ 2), deterministically.

    The objective on the standardised features is that of `LinearSVC(C=c)`, intercept included, and
    each SVM is within 1 % of its least value.

    Args:
        c: weight of the losses against the margin, as in `LinearSVC`.
        loss: `squared_hinge`, or `log_loss` for logistic regressions, whose decision values are
            log-odds.
    """
    scaler = Scaler.of(features)
    sides = np.where(targets[:, None] == np.arange(targets.max() + 1), 1, -1).astype(np.float32)
    if sides.shape[1] == 2:  # the two are opposite
        sides = sides[:, 1:]
    solved = minimise(scaler.transform(features, intercept=True), sides, c, LOSSES[loss]).T
    if len(solved) == 1:
        solved = np.concatenate([-solved, solved])
    weights = solved[:, :-1] / scaler.scale
    bias = solved[:, -1] - weights @ scaler.mean
    return LinearSvm(weights.astype(np.float32), bias.astype(np.float32))


Floats = NDArray[np.float64]


def fit_marked_svm(
    vectors: Floats, positive: NDArray[np.bool_], weights: Floats, c: float
) -> tuple[Floats, float]:
    """Fit a linear SVM between positive and negative vectors and return w (D,) and b.

    w·x + b is above 0 on the positive side. libsvm solves it without random numbers.

    Args:
        vectors: (n, D); at least one is positive and one negative.
        positive: (n,).
        weights: (n,) factors of `c` for each vector.
    """
    fitted = SVC(kernel="linear", C=c).fit(vectors, positive, sample_weight=weights)
    return np.asarray(fitted.coef_[0], np.float64), float(fitted.intercept_[0])
