"""Principal components of the square root of the feature, at unit length; compare by cosine.

The dot product of square roots of values ≥ 0 is the Hellinger kernel: a few large values do not
dominate it (Arandjelović and Zisserman 2012, section 3). A value below 0, which a backbone without
a final ReLU can give, becomes −√|x|. The rooted features of all images of the index are centred and
projected on their first principal components, see `pca`. Euclidean distance, cosine and dot product
of unit vectors rank alike.

Augmentation (`operators.augmentation`) then moves a vector towards its nearest ones in a reference
set: images of the index whose vectors are part of the parameters. So the vector of an image depends
on the image and the bundle alone, whichever images the index holds by then.

Arguments: `dimension`, the number of components (default: 64); `augment`, the rounds of
augmentation, 0 (default), 1 or 2; `reference`, the greatest number of reference images (default:
100000), drawn by a hash of their bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError, ModelError
from segrec_batch.descriptors import (
    Described,
    ImageBatch,
    Parameters,
    Samples,
    parse_arguments,
    parse_integers,
)
from segrec_batch.descriptors.operators.augmentation import Reference, Rows, augment, unit
from segrec_batch.descriptors.operators.projection import Projection, fit_projection

REFERENCE_HASHES = "reference.hashes"
"""Name of the tensor (R, 16) uint8: the MD5 of `content_hash` of the reference images."""
_REFERENCE = "reference.{}"  # tensor (R, d) float16: their vectors after so many rounds


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Compute the projection and the reference set. Raises InputError.

    The tensors are those of `fit_projection`, and for each round `reference.0` (R, d) float16, the
    vectors of the reference images, `reference.1`, the same after a round, and `reference.hashes`
    (R, 16) uint8.
    """
    values = parse_arguments(arguments, dimension="64", augment="0", reference="100000")
    if values["augment"] not in ("0", "1", "2"):
        raise InputError(f"augment={values['augment']}; the rounds are 0, 1 or 2")
    rounds = int(values.pop("augment"))
    if "reference" in arguments and not rounds:
        raise InputError("reference=… is for augment=1 or augment=2")
    numbers = parse_integers(values, dimension=64, reference=100_000)
    projection = fit_projection(samples.compute_moments(signed_root), numbers["dimension"])
    if not rounds:
        return projection
    settings = {**projection.settings, "augment": rounds, "reference": numbers["reference"]}
    tensors = _reference(Projection(projection.tensors), rounds, numbers["reference"], samples)
    return Parameters(settings, {**projection.tensors, **tensors})


def _reference(
    project: Projection, rounds: int, count: int, samples: Samples
) -> dict[str, NDArray[Any]]:
    vectors, hashes = [], []
    for features, contents in samples.draw_features(count):
        rows = unit(project(signed_root(features))).astype(np.float16)
        defined = np.isfinite(rows).all(axis=1)
        vectors.append(rows[defined])
        hashes.append(contents[defined])
    references: list[Reference] = [np.concatenate(vectors)]
    for _ in range(1, rounds):
        after = samples.map_slices(_augmented, references, len(references[0]))
        references.append(np.concatenate(list(after)))
    names = [_REFERENCE.format(level) for level in range(rounds)]
    return {REFERENCE_HASHES: np.concatenate(hashes), **dict(zip(names, references, strict=True))}


def _augmented(references: Sequence[Reference], rows: slice) -> Reference:
    vectors = unit(references[0][rows].astype(np.float64))
    return augment(vectors, references).astype(np.float16)


def signed_root(features: NDArray[np.floating[Any]]) -> Rows:
    """Return sign(x) √|x| of each value."""
    x = features.astype(np.float64)
    return np.asarray(np.copysign(np.sqrt(np.abs(x)), x))


class Descriptor:
    """Vector (d,) of length 1, undefined for an image at the mean of the index."""

    reads_pixels = False
    on_device = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._projection = Projection(parameters.tensors)
        rounds = int(parameters.settings.get("augment", 0))
        self._references = [parameters.tensors[_REFERENCE.format(i)] for i in range(rounds)]
        self.length = self._projection.length
        shapes = {(reference.shape, reference.dtype.name) for reference in self._references}
        rows = len(self._references[0]) if rounds else 0
        if rounds and (not rows or shapes != {((rows, self.length), "float16")}):
            raise ModelError("descriptor root-pca has a damaged reference set: add it again")

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images."""
        vectors = unit(self._projection(signed_root(images.feature)))
        return Described(augment(vectors, self._references).astype(np.float32))
