"""Linear SVMs: fitting by scikit-learn and folding into plain weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier
from sklearn.svm import SVC

_ROWS = 20_000  # rows converted to float32 at a time


@dataclass(frozen=True)
class LinearSvm:
    """One-vs-rest SVMs on raw features: weights (M, D) and bias (M,), float32."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def decision(self, features: NDArray[np.float16]) -> NDArray[np.float32]:
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
    def of(cls, features: NDArray[np.float16]) -> "Scaler":
        """Compute means and deviations of the columns; a constant column becomes zero."""
        total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for i in range(0, len(features), _ROWS):
            part = features[i : i + _ROWS].astype(np.float64)
            total += part.sum(axis=0)
            squares += np.square(part).sum(axis=0)
        mean = total / len(features)
        deviation = np.sqrt(np.maximum(squares / len(features) - np.square(mean), 0))
        return cls(mean, np.maximum(deviation, 1e-3) * np.sqrt(features.shape[1]))

    def transform(self, features: NDArray[np.float16]) -> NDArray[np.float32]:
        """Return standardised float32 features (n, D)."""
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
    """Fit one-vs-rest linear SVMs for targets 0..M-1 (M ≥ 2).

    The solver is averaged stochastic gradient descent, which reaches the objective of `LinearSVC`
    in a few passes over dense features.

    Args:
        c: weight of the losses against the margin, as in `LinearSVC`.
        loss: `hinge`, or `log_loss` for logistic regressions, whose decision values are log-odds.
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
    if len(sgd.classes_) == 2:  # scikit-learn fits one SVM for two classes
        coef, intercept = np.concatenate([-coef, coef]), np.concatenate([-intercept, intercept])
    weights = coef / scaler.scale
    bias = intercept - weights @ scaler.mean
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
