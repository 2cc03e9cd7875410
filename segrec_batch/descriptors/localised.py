"""pool5 of ResNet-50 of the foreground alone, with a category, after Waqas 2023; compare by L2.

The classes of the model localise the foreground (section 4.1). Background pixels are painted white,
the image is converted to grey (section 3), resized to 224 × 224 and passed to ResNet-50 (section
4.3). An image without foreground is used whole, since white images would all be equal; with
`category=class` its category is `background`.

Arguments: `weights`, see `operators.networks`; `grey`, yes (default) or no; `category`, by which a
search can be restricted: `class` (default), the class that fills most of the foreground, or
`folder`, predicted from the feature by a linear classifier fitted on the folders of the index's
images (section 4.2 uses an EfficientNetV2-L).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_arguments
from segrec_batch.descriptors.operators import networks
from segrec_batch.descriptors.operators.networks import RESNET50

_LABELLED = 20_000  # maximum number of images for the classifier of folders
_CLASSIFIER = "categories."  # prefix of the classifier's tensors
_LUMA = (0.299, 0.587, 0.114)  # of grey in ITU-R BT.601


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Load the weights of ResNet-50 and fit the classifier of folders for `category=folder`.

    The classifier has the tensors `categories.weights` (K, C) and `categories.bias` (K,). Settings
    are `categories`, their names, and for folders the cross-validated `accuracy`.

    Raises:
        InputError, ModelError.
    """
    values = parse_arguments(arguments, weights="imagenet", grey="yes", category="class")
    for name, choices in (("grey", ("yes", "no")), ("category", ("class", "folder"))):
        if values[name] not in choices:
            raise InputError(f"{name}={values[name]}; known are {' and '.join(choices)}")
    settings, state = networks.load_weights(RESNET50, values["weights"])
    categories, tensors = _fit_categories(values["category"], samples)
    return Parameters(
        {**settings, "grey": values["grey"] == "yes", **categories}, {**state, **tensors}
    )


def _fit_categories(
    category: str, samples: Samples
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if category == "class":
        return {"category": category, "categories": list(samples.classes)}, {}
    from segrec_batch.training.categories import fit_categories  # scikit-learn

    fitted = fit_categories(*samples.read_labelled_features(_LABELLED))
    settings = {"category": category, "categories": list(fitted.names), "accuracy": fitted.accuracy}
    return settings, {
        f"{_CLASSIFIER}weights": fitted.weights,
        f"{_CLASSIFIER}bias": fitted.bias,
    }


class Descriptor:
    """Vector of the foreground, values ≥ 0, and category."""

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
        """Return vectors and categories of images."""
        labels = torch.from_numpy(batch.labels).to(self._device)
        images = paint_background_white(networks.as_images(batch.pixels, self._device), labels)
        if self._settings["grey"]:
            images = to_grey(images)
        return Described(self._network(images), self._names(batch))

    def _names(self, batch: ImageBatch) -> Sequence[str]:
        if self._settings["category"] == "folder":
            labels = (batch.feature @ self._weights.T + self._bias).argmax(axis=1)
        else:
            labels = dominant_classes(batch.counts)
        return [self._settings["categories"][k] for k in labels]


def paint_background_white(images: Tensor, labels: Tensor) -> Tensor:
    """Paint images (B, 3, H, W) white where labels (B, H, W) are 0, unless all labels are 0."""
    outside = (labels == 0) & (labels != 0).any(dim=(1, 2), keepdim=True)
    return torch.where(outside[:, None], torch.ones((), device=images.device), images)


def to_grey(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) with their luma in all three channels."""
    luma = torch.tensor(_LUMA, device=images.device)[:, None, None]
    return (images * luma).sum(dim=1, keepdim=True).expand_as(images)


def dominant_classes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the foreground class with the most cells (B, K); ties go to the first; 0 if none.

    The rule is that of `dominant_class` in the index.
    """
    foreground = counts[:, 1:]
    largest: NDArray[np.int64] = foreground.argmax(axis=1) + 1
    return np.where(foreground.any(axis=1), largest, 0)
