"""Tests of the linear classifiers against liblinear: objectives, determinism, decision values."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from segrec_batch.common.errors import InputError
from segrec_batch.training.svm import LinearSvm, Scaler, fit_svm
from tests.support.builders import quick

Targets = NDArray[np.int64]
Features = NDArray[np.float16]


def _draw(n: int, width: int, classes: int, noise: float, seed: int) -> tuple[Features, Targets]:
    """Return correlated features with a constant column, and targets of unequal frequency."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, width)) / np.arange(1, width + 1)
    features = np.maximum(factors @ rng.normal(size=(width, width)), -0.5)
    features[:, 0] = 0.3
    scores = features @ rng.normal(size=(width, classes))
    scores = scores / scores.std() + noise * rng.gumbel(size=scores.shape) - np.arange(classes)
    targets = scores.argmax(axis=1)
    targets[:classes] = np.arange(classes)
    return features.astype(np.float16), targets


def _losses(margins: NDArray[np.float64], loss: str) -> NDArray[np.float64]:
    if loss == "log_loss":
        return np.logaddexp(0, -margins)
    return np.square(np.maximum(1 - margins, 0))


def _objectives(
    svm: LinearSvm, features: Features, targets: Targets, c: float, loss: str
) -> NDArray[np.float64]:
    """Return the objective of each SVM, its intercept included, on standardised features."""
    scaler = Scaler.of(features)
    weights = svm.weights * scaler.scale
    bias = svm.bias + svm.weights @ scaler.mean
    decision = scaler.transform(features) @ weights.T + bias
    signs = np.where(targets[:, None] == np.arange(len(bias)), 1, -1)
    penalty = (np.square(weights).sum(axis=1) + np.square(bias)) / 2
    return np.asarray(penalty + c * _losses(signs * decision, loss).sum(axis=0))


def _liblinear(features: Features, targets: Targets, c: float, loss: str) -> LinearSvm:
    """Return scikit-learn's solution of each class against the rest, folded like ours."""
    scaler = Scaler.of(features)
    x = scaler.transform(features).astype(np.float64)
    model = (
        LogisticRegression(C=c, solver="liblinear", tol=1e-6, max_iter=10_000)
        if loss == "log_loss"
        else LinearSVC(C=c, dual=False, tol=1e-6, max_iter=10_000)
    )
    rows = []
    for k in range(targets.max() + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model.fit(x, targets == k)
        rows.append(np.append(model.coef_[0], model.intercept_))
    solved = np.array(rows)
    weights = solved[:, :-1] / scaler.scale
    bias = solved[:, -1] - weights @ scaler.mean
    return LinearSvm(weights.astype(np.float32), bias.astype(np.float32))


@pytest.mark.parametrize("loss", ["squared_hinge", "log_loss"])
@given(
    n=st.integers(30, 400),
    width=st.integers(2, 40),
    classes=st.integers(2, 5),
    noise=st.sampled_from([0.0, 0.3, 1.0]),
    c=st.floats(0.1, 10),
    seed=st.integers(0, 10**6),
)
@quick
def test_objective_is_within_one_percent_of_liblinear(
    loss: str, n: int, width: int, classes: int, noise: float, c: float, seed: int
) -> None:
    features, targets = _draw(n, width, classes, noise, seed)
    svm = fit_svm(features, targets, c, loss)
    ours = _objectives(svm, features, targets, c, loss)
    best = _objectives(_liblinear(features, targets, c, loss), features, targets, c, loss)
    assert (ours <= 1.01 * best).all()
    assert (ours >= 0.99 * best).all(), "no objective is below the least one"


@pytest.mark.parametrize("loss", ["squared_hinge", "log_loss"])
def test_labels_and_decision_values_are_those_of_liblinear(loss: str) -> None:
    features, targets = _draw(3000, 64, 6, 0.5, 1)
    ours, theirs = fit_svm(features, targets, 1.0, loss), _liblinear(features, targets, 1.0, loss)
    decision, expected = ours.decision(features), theirs.decision(features)
    assert (decision.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.99
    np.testing.assert_allclose(decision, expected, atol=0.03 * expected.std())


@pytest.mark.parametrize("loss", ["squared_hinge", "log_loss"])
def test_fewer_rows_than_columns(loss: str) -> None:
    features, targets = _draw(80, 300, 3, 0.5, 4)
    svm = fit_svm(features, targets, 1.0, loss)
    ours = _objectives(svm, features, targets, 1.0, loss)
    best = _objectives(_liblinear(features, targets, 1.0, loss), features, targets, 1.0, loss)
    np.testing.assert_allclose(ours, best, rtol=0.01)


def test_the_same_data_gives_the_same_bits() -> None:
    features, targets = _draw(900, 40, 3, 0.5, 2)
    first, second = (fit_svm(features, targets, 1.0) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.bias, second.bias)


@pytest.mark.parametrize("loss", ["squared_hinge", "log_loss"])
def test_separable_data_converges(loss: str, caplog: pytest.LogCaptureFixture) -> None:
    features = np.array([[-1, 5], [-2, 5], [1, 5], [3, 5]], np.float16)
    svm = fit_svm(features, np.array([0, 0, 1, 1]), 1000.0, loss)
    np.testing.assert_array_equal(svm.decision(features).argmax(axis=1), [0, 0, 1, 1])
    assert not caplog.records


def test_features_that_are_not_finite_are_refused() -> None:
    features, targets = _draw(50, 4, 2, 0.5, 3)
    features[7, 1] = np.inf
    with pytest.raises(InputError, match="not finite"):
        fit_svm(features, targets, 1.0)
