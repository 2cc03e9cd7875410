"""The SVM that tells a few marked images apart (scikit-learn)."""

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

Floats = NDArray[np.float64]


def separate(
    vectors: Floats, wanted: NDArray[np.bool_], weights: Floats, c: float
) -> tuple[Floats, float]:
    """The linear SVM between some vectors (n, D) and the others, both at least one: w (D,) and b
    of w·x + b, which is above 0 on the side of the `wanted` (n,).

    weights: (n,), by which `c` is multiplied for each. Solved by libsvm, which for so few draws
    nothing at random.
    """
    fitted = SVC(kernel="linear", C=c).fit(vectors, wanted, sample_weight=weights)
    return np.asarray(fitted.coef_[0], np.float64), float(fitted.intercept_[0])
