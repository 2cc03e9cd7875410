"""Texture: Tamura's features, busyness, local patterns and binary wavelets of the grey image.

The vector has eight blocks, 1044 values of the whole image:

    directionality, contrast, coarseness, busyness    1 each
    lbp                                               59
    ltp                                               2 × 59: upper, lower
    ltrp                                              13 × 59
    wavelet                                           3 levels × 4 sub-bands × 8 states

Shares are stored as roots, so that their Euclidean distance is the Hellinger distance, which
frequent patterns do not dominate. Blocks have different units: each block is divided by the root of
the sum of its variances over sample images, so that each adds 2 to the mean squared distance of two
samples.

The features are those of a paper on retrieval with semantic features and relevance feedback; each
operator names the publication of its formula.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_integers
from segrec_batch.descriptors.operators import (
    binary_patterns,
    binary_wavelet,
    ngtdm,
    tamura,
    tetra_patterns,
)
from segrec_batch.descriptors.operators.grey import Grey, luma

Values = NDArray[np.float64]

BLOCKS = {
    "directionality": 1,
    "contrast": 1,
    "coarseness": 1,
    "busyness": 1,
    "lbp": binary_patterns.BINS,
    "ltp": 2 * binary_patterns.BINS,
    "ltrp": tetra_patterns.PATTERNS * binary_patterns.BINS,
    "wavelet": binary_wavelet.LEVELS * len(binary_wavelet.SubBands._fields) * binary_wavelet.STATES,
}


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Compute the mean of each value and the spread of each block over sample images.

    Arguments: `threshold` of the local ternary pattern, 1 to 255 grey levels (default 5); `images`,
    number of samples (default 512). Tensors: `mean` (1044,) and `spread` (8,), float64.

    Raises:
        InputError: an argument is unknown or out of range, or samples do not differ in a block.
    """
    values = parse_integers(arguments, threshold=5, images=512)
    threshold = values["threshold"]
    if threshold > 255:
        raise InputError(f"threshold={threshold} is more than 255, the highest grey level")
    images = samples.draw_images(values["images"])
    vectors = [raw_vectors(luma(batch.pixels), threshold) for batch in images]
    raw = np.concatenate([np.empty((0, Descriptor.length)), *vectors])
    tensors = {"spread": _spread(raw), "mean": raw.mean(axis=0)}
    return Parameters({"threshold": threshold}, tensors)


def _spread(raw: Values) -> Values:
    ends = np.cumsum(list(BLOCKS.values()))
    blocks = np.split(raw, ends[:-1], axis=1)
    for name, block in zip(BLOCKS, blocks, strict=True):
        if (block == block[:1]).all():  # exact, unlike the variance
            raise InputError(f"{len(raw)} sample images do not differ in {name}: index more")
    return np.array([np.sqrt(block.var(axis=0).sum()) for block in blocks])


def raw_vectors(grey: Grey, threshold: int) -> Values:
    """Return the blocks (B, 1044) of grey images (B, H, W) in their own units.

    All but the first four values are roots of shares, 0 to 1. Busyness b is stored as b / (1 + b),
    0 to 1, because b is unbounded.
    """
    images = (grey[i : i + 1] for i in range(len(grey)))  # one image at a time fits into the cache
    return np.array([_raw_vector(image, threshold) for image in images])


def _raw_vector(grey: Grey, threshold: int) -> Values:
    codes = [binary_patterns.lbp(grey), *binary_patterns.ltp(grey, threshold)]
    busyness = ngtdm.busyness(grey)
    perceived = [
        tamura.directionality(grey),
        tamura.contrast(grey),
        tamura.coarseness(grey),
        1 - 1 / (1 + busyness),
    ]
    shares = [
        *(binary_patterns.uniform_histograms(pattern) for pattern in codes),
        tetra_patterns.tetra_histograms(grey),
        binary_wavelet.wavelet_histograms(grey),
    ]
    return np.concatenate([*perceived, *(np.sqrt(share).ravel() for share in shares)])


class Descriptor:
    """Vectors (B, 1044) of images with sides of at least 8 pixels."""

    length = sum(BLOCKS.values())
    reads_pixels = True
    on_device = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._threshold = int(parameters.settings["threshold"])
        self._mean = parameters.tensors["mean"]
        self._spread = np.repeat(parameters.tensors["spread"], list(BLOCKS.values()))

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images."""
        raw = raw_vectors(luma(images.pixels), self._threshold)
        return Described(((raw - self._mean) / self._spread).astype(np.float32))
