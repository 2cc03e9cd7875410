"""Fitting the linear SVM (scikit-learn) and folding it into plain weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

_ROWS = 20_000  # converted to float32 at a time


@dataclass(frozen=True)
class LinearSvm:
    """One-vs-rest SVMs on raw features: `weights` (M, D), `bias` (M,), float32."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def decision(self, features: NDArray[np.float16]) -> NDArray[np.float32]:
        """Decision values w·x + b (Abdullah 2026, eq. 4): (n, D) → (n, M)."""
        parts = [
            features[i : i + _ROWS].astype(np.float32) @ self.weights.T + self.bias
            for i in range(0, len(features), _ROWS)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Scaler:
    """Standardises features, then divides by √D, so that C means the same for any width."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float16]) -> "Scaler":
        """From the columns' means and deviations; a constant column is left at zero."""
        total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for i in range(0, len(features), _ROWS):
            part = features[i : i + _ROWS].astype(np.float64)
            total += part.sum(axis=0)
            squares += np.square(part).sum(axis=0)
        mean = total / len(features)
        deviation = np.sqrt(np.maximum(squares / len(features) - np.square(mean), 0))
        return cls(mean, np.maximum(deviation, 1e-3) * np.sqrt(features.shape[1]))

    def transform(self, features: NDArray[np.float16]) -> NDArray[np.float32]:
        """(n, D) float16 → float32."""
        out = np.empty(features.shape, np.float32)
        for i in range(0, len(features), _ROWS):
            out[i : i + _ROWS] = (features[i : i + _ROWS] - self.mean) / self.scale
        return out


def fit_svm(
    features: NDArray[np.float16],
    targets: NDArray[np.int64],
    c: float,
    seed: int,
    loss: str = "hinge",
    epochs: int = 5,
) -> LinearSvm:
    """Hinge-loss SVMs, one against the rest for each target 0..M-1 (M ≥ 2).

    `c` weighs the losses against the margin as in `LinearSVC`; the solver is averaged stochastic
    gradient descent, which reaches the same objective in a few passes over dense features. With
    `loss` "log_loss" they are logistic regressions, and decision values are log-odds.
    """
    scaler = Scaler.of(features)
    sgd = SGDClassifier(
        loss=loss,
        alpha=1 / (c * len(features)),
        max_iter=epochs,
        tol=None,
        average=True,
        random_state=seed,
        n_jobs=-1,
    )
    sgd.fit(scaler.transform(features), targets)
    coef, intercept = sgd.coef_, sgd.intercept_
    if len(sgd.classes_) == 2:  # scikit-learn keeps one SVM of the two
        coef, intercept = np.concatenate([-coef, coef]), np.concatenate([-intercept, intercept])
    weights = coef / scaler.scale
    bias = intercept - weights @ scaler.mean
    return LinearSvm(weights.astype(np.float32), bias.astype(np.float32))
