"""pool5 of ResNet-50 of the foreground alone, with a category, after Waqas 2023; compare by L2.

The model's classes are what is localised (section 4.1): pixels of the background are painted white,
the image is made grey (section 3) and resized to 224 × 224, and ResNet-50 sees it (section 4.3).
An image without any foreground is seen as a whole: alone on a white canvas all such would be
equal. Under `category=class` they compete with each other only, as `background`.

Arguments: `weights` as in `operators.networks`; `grey`, yes (default) or no;
`category`, to which a search can be narrowed: `class` (default), that which fills most of the
foreground, or `folder`, told from the feature by a linear classifier that is fitted on the names of
the folders that the index's images lie in (section 4.2 has an EfficientNetV2-L there).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, chosen
from segrec_batch.descriptors.operators import networks
from segrec_batch.descriptors.operators.networks import RESNET50

_LABELLED = 20_000  # images at most, on which the classifier of folders is fitted
_CLASSIFIER = "categories."  # prefix of its tensors
_LUMA = (0.299, 0.587, 0.114)  # of grey in ITU-R BT.601


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """ResNet-50's weights and, for folders, the classifier's `categories.weights` (K, C) and
    `categories.bias` (K,). Settings: `categories`, their names, and of folders the `accuracy` of
    cross-validation. Raises InputError, ModelError.
    """
    given = chosen(arguments, weights="imagenet", grey="yes", category="class")
    for name, known in (("grey", ("yes", "no")), ("category", ("class", "folder"))):
        if given[name] not in known:
            raise InputError(f"{name}={given[name]}; there are {' and '.join(known)}")
    settings, state = networks.fitted(RESNET50, given["weights"])
    found, tensors = _categories(given["category"], samples)
    return Parameters({**settings, "grey": given["grey"] == "yes", **found}, {**state, **tensors})


def _categories(category: str, samples: Samples) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if category == "class":
        return {"category": category, "categories": list(samples.classes)}, {}
    from segrec_batch.training.categories import fit_categories  # scikit-learn

    found = fit_categories(*samples.labelled(_LABELLED))
    settings = {"category": category, "categories": list(found.names), "accuracy": found.accuracy}
    return settings, {
        f"{_CLASSIFIER}weights": found.weights,
        f"{_CLASSIFIER}bias": found.bias,
    }


class Descriptor:
    """The vector of the foreground, values 0 or above, and the category."""

    length = RESNET50.length
    reads_pixels = True
    on_device = True

    def __init__(
        self, parameters: Parameters, classes: int, device: str, precision: str = "float32"
    ) -> None:
        self._settings, self._device = parameters.settings, device
        state = {n: t for n, t in parameters.tensors.items() if not n.startswith(_CLASSIFIER)}
        self._network = networks.Network(RESNET50, state, precision, device)
        if self._settings["category"] == "folder":
            self._weights = parameters.tensors[f"{_CLASSIFIER}weights"].astype(np.float64)
            self._bias = parameters.tensors[f"{_CLASSIFIER}bias"].astype(np.float64)

    def __call__(self, batch: ImageBatch) -> Described:
        """Describe batch."""
        labels = torch.from_numpy(batch.labels).to(self._device)
        images = painted(networks.as_images(batch.pixels, self._device), labels)
        if self._settings["grey"]:
            images = grey(images)
        return Described(self._network(images), self._names(batch))

    def _names(self, batch: ImageBatch) -> Sequence[str]:
        if self._settings["category"] == "folder":
            found = (batch.feature @ self._weights.T + self._bias).argmax(axis=1)
        else:
            found = dominant(batch.counts)
        return [self._settings["categories"][k] for k in found]


def painted(images: Tensor, labels: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1]: white where `labels` (B, H, W) are 0, unless all are."""
    outside = (labels == 0) & (labels != 0).any(dim=(1, 2), keepdim=True)
    return torch.where(outside[:, None], torch.ones((), device=images.device), images)


def grey(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) with their luma in each of the three channels."""
    luma = torch.tensor(_LUMA, device=images.device)[:, None, None]
    return (images * luma).sum(dim=1, keepdim=True).expand_as(images)


def dominant(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of cells (B, K) the foreground class that has most, the first of equals; 0 if none has any.

    As `dominant_class` of the index.
    """
    foreground = counts[:, 1:]
    largest: NDArray[np.int64] = foreground.argmax(axis=1) + 1
    return np.where(foreground.any(axis=1), largest, 0)
