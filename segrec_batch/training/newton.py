"""Regularised linear classifiers, solved to their optimum by Newton's method.

Each class k has its own problem, as in `LinearSVC` and liblinear: w minimises

    F(w) = ½‖w‖² + C Σ_i ℓ(y_i f(x_i)),  f(x) = w·(x, 1),  y_i = +1 in class k, else -1.

The last element of w is the intercept. All classes are solved at once, because the products with
the features, which take the time, then read the features once for all classes. The step of each
iteration solves H s = -∇F by conjugate gradients (Hessian H = I + C Xᵀ diag(ℓ'') X, never
computed), preconditioned by the second moments of a sample of rows.
"""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Loss = Callable[[Floats], tuple[Floats, Floats, Floats]]  # of margins y·f: ℓ, ℓ', ℓ''
Preconditioner = Callable[[Doubles, Doubles], Doubles]

TOLERANCE = 1e-3  # of the objective; what is left before the last step
_ITERATIONS = 100
_PRODUCTS = 50  # with the Hessian in one iteration
_FORCING = 0.3  # relative accuracy of a step; later iterations make up for it
_ROWS = 512  # rows of a product: both of its passes read them from the cache
_SAMPLE = 4  # rows of the preconditioner for each column
_CLASSES = 32  # solved at once: bounds the arrays of (n, M)

log = logging.getLogger(__name__)


def squared_hinge(margins: Floats) -> tuple[Floats, Floats, Floats]:
    """Return max(0, 1 - m)² of margins m and its first two derivatives."""
    short = np.maximum(1 - margins, 0)
    return short * short, -2 * short, 2 * (short > 0).astype(np.float32)


def log_loss(margins: Floats) -> tuple[Floats, Floats, Floats]:
    """Return log(1 + exp(-m)) of margins m and its first two derivatives."""
    miss = np.exp(-np.logaddexp(0, margins))  # probability of the other side
    return np.logaddexp(0, -margins), -miss, miss * (1 - miss)


LOSSES: dict[str, Loss] = {"squared_hinge": squared_hinge, "log_loss": log_loss}


def minimise(x: Floats, signs: Floats, c: float, loss: Loss) -> Doubles:
    """Return the weights (D, M) of M classifiers, each within 1 % of its smallest objective.

    The result is deterministic. A warning names what is left if the iterations do not suffice.

    Args:
        x: (n, D) features, the last column 1.
        signs: (n, M) of +1 and -1, the side of each row for each classifier.
        c: weight of the losses.
        loss: an entry of `LOSSES`.
    """
    precondition = _preconditioner(x)
    parts = [signs[:, i : i + _CLASSES] for i in range(0, signs.shape[1], _CLASSES)]
    return np.concatenate([_minimise(x, part, c, loss, precondition) for part in parts], axis=1)


def _minimise(
    x: Floats, signs: Floats, c: float, loss: Loss, precondition: Preconditioner
) -> Doubles:
    w = np.zeros((x.shape[1], signs.shape[1]))
    f = np.zeros(signs.shape, np.float32)
    for _ in range(_ITERATIONS):
        value, slope, curvature = loss(signs * f)
        objective = np.square(w).sum(axis=0) / 2 + c * value.sum(axis=0, dtype=np.float64)
        gradient = w + c * _backward(x, slope * signs)
        step = _solve(x, c * curvature, -gradient, precondition)
        decrement = -(gradient * step).sum(axis=0)
        along = _forward(x, step)
        length = _search(w, step, f, along, signs, c, loss)
        w += length * step
        f += length.astype(np.float32) * along
        if (decrement / 2 <= TOLERANCE * objective).all():
            return w
    left = float((decrement / 2 / objective).max())
    log.warning(
        f"a linear classifier with C = {c:g} is {left:.1%} above its optimum after {_ITERATIONS} "
        "iterations; a smaller C converges faster"
    )
    return w


def _solve(
    x: Floats,
    curvature: Floats,
    target: Doubles,
    precondition: Preconditioner,
) -> Doubles:
    """Solve (I + Xᵀ diag(curvature) X) s = target for each column by conjugate gradients."""
    mean = curvature.mean(axis=0, dtype=np.float64)
    step, residual = np.zeros_like(target), target.copy()
    direction = precondition(residual, mean)
    size = (residual * direction).sum(axis=0)
    enough = _FORCING**2 * size
    for _ in range(_PRODUCTS):
        if (size <= enough).all():
            break
        product = direction + _through(x, curvature, direction)
        length = _ratio(size, (direction * product).sum(axis=0))
        step += length * direction
        residual -= length * product
        towards = precondition(residual, mean)
        before, size = size, (residual * towards).sum(axis=0)
        direction = towards + _ratio(size, before) * direction
    return step


def _ratio(a: Doubles, b: Doubles) -> Doubles:
    """Return a / b, 0 where b is 0: a column that is solved exactly stays as it is."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _preconditioner(x: Floats) -> Preconditioner:
    """Return a function of r (D, M) and a (M,) that solves (I + a XᵀX) s = r approximately.

    XᵀX is estimated from a sample of rows; fewer rows than columns span a part of the space.
    """
    n, width = x.shape
    count = min(n, _SAMPLE * width)
    rows = x[np.sort(np.random.default_rng(0).choice(n, count, replace=False))]
    rows *= np.float32(np.sqrt(n / count))
    if count < width:
        values, left = eigh(rows @ rows.T, overwrite_a=True)
        inside = values > np.finfo(np.float32).eps * count * max(values[-1], 0)
        values = values[inside]
        vectors = rows.T @ (left[:, inside] / np.sqrt(values))
    else:
        values, vectors = eigh(rows.T @ rows, overwrite_a=True)
    spread = np.maximum(values, 0).astype(np.float64)[:, None]

    def solve(residual: Doubles, curvature: Doubles) -> Doubles:
        turned = vectors.T @ residual.astype(np.float32)
        solved = np.asarray(vectors @ (turned / (1 + spread * curvature)).astype(np.float32), float)
        return solved if count >= width else solved + residual - vectors @ turned

    return solve


def _search(
    w: Doubles, step: Doubles, f: Floats, along: Floats, signs: Floats, c: float, loss: Loss
) -> Doubles:
    """Return the length (M,) of each step that minimises the objective along it.

    The objective is convex: its slope grows along the step, and bisection finds where it is 0.
    """
    low, high = np.zeros(w.shape[1]), np.full(w.shape[1], 2.0)
    for _ in range(12):
        middle = (low + high) / 2
        _, slope, _ = loss(signs * (f + middle.astype(np.float32) * along))
        rise = ((w + middle * step) * step).sum(axis=0)
        rise += c * (slope * signs * along).sum(axis=0, dtype=np.float64)
        low, high = np.where(rise < 0, middle, low), np.where(rise < 0, high, middle)
    return low


def _forward(x: Floats, w: Doubles) -> Floats:
    """Return x @ w (n, M)."""
    return np.asarray(x @ w.astype(np.float32))


def _backward(x: Floats, a: Floats) -> Doubles:
    """Return xᵀ @ a (D, M), summed in float64 over blocks of rows."""
    out = np.zeros((x.shape[1], a.shape[1]))
    for i in range(0, len(x), _ROWS):
        out += x[i : i + _ROWS].T @ a[i : i + _ROWS]
    return out


def _through(x: Floats, curvature: Floats, w: Doubles) -> Doubles:
    """Return xᵀ diag(curvature) x @ w (D, M), reading x once."""
    out, narrow = np.zeros(w.shape), w.astype(np.float32)
    for i in range(0, len(x), _ROWS):
        rows = x[i : i + _ROWS]
        out += rows.T @ (curvature[i : i + _ROWS] * (rows @ narrow))
    return out
