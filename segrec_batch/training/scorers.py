"""What the SVM and its rivals say of cells: scores of classes, from features.

Each function fits one method on features (n, D) and the components that the positions train, see
`Components`: one output per mask value, since a mixed class such as the background need not fit
behind one hyperplane.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from segrec_batch.training.svm import Scaler
from segrec_batch.training.tune import Components, fit_all

Features = NDArray[np.float16]  # (n, D)
Targets = NDArray[np.int64]  # (n,), numbers of components
Scores = NDArray[np.float32]  # (n, K) of classes
Scorer = Callable[[Features], Scores]

_LOWEST = 1e-3  # a probability; no logarithm of less
_BLOCK = 512  # queries at a time


def linear(
    x: Features, targets: Targets, components: Components, loss: str, c: float, seed: int
) -> Scorer:
    """Decision values of the best component of a class; see `fit_svm` for `loss` and `c`."""
    fitted = fit_all(x, targets, len(components.classes), c, seed, loss)
    return lambda features: components.class_scores(fitted.decision(features))


def forest(
    x: Features, targets: Targets, components: Components, trees: int, leaf: int, seed: int
) -> Scorer:
    """Logarithms of a random forest's probabilities, which are summed over a class's components.

    leaf: the fewest positions in a leaf, which bounds the size of the trees.
    """
    fitted = RandomForestClassifier(trees, min_samples_leaf=leaf, n_jobs=-1, random_state=seed)
    fitted.fit(x.astype(np.float32), targets)
    owners = np.array(components.classes)[fitted.classes_]
    member = owners[:, None] == np.arange(max(components.classes) + 1)  # (M, K)
    return lambda features: components.bar_unseen(
        _log(fitted.predict_proba(features.astype(np.float32)) @ member)
    )


def neighbours(x: Features, targets: Targets, components: Components, k: int) -> Scorer:
    """Logarithms of the shares of the classes among the k nearest positions by Euclidean distance
    of standardised features; brute force, as a matrix product block by block.
    """
    scaler = Scaler.of(x)
    rows = torch.from_numpy(scaler.transform(x))
    classes = torch.tensor(components.classes)
    votes = F.one_hot(classes[targets], max(components.classes) + 1).float()  # (n, K)
    nearest = partial(_nearest, rows, rows.square().sum(dim=1), min(k, len(x)))

    def score(features: Features) -> Scores:
        blocks = torch.from_numpy(scaler.transform(features)).split(_BLOCK)
        shares = torch.cat([votes[nearest(block)].mean(dim=1) for block in blocks])
        return components.bar_unseen(_log(shares.numpy()))

    return score


def _nearest(rows: torch.Tensor, squares: torch.Tensor, k: int, x: torch.Tensor) -> torch.Tensor:
    # |x - r|² less |x|², which is the same for all rows r
    distance = torch.addmm(squares, x, rows.T, alpha=-2)
    return distance.topk(k, largest=False).indices


def _log(probabilities: NDArray[np.floating]) -> Scores:
    logs: Scores = np.log(np.maximum(probabilities, _LOWEST)).astype(np.float32)
    return logs
