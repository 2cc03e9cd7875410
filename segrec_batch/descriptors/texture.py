"""Texture: Tamura's features, busyness, local patterns and binary wavelets of the grey image.

The vector has eight blocks, 1,044 values of the whole image:

    directionality, contrast, coarseness, busyness    1 each
    lbp                                               59
    ltp                                               2 × 59: upper, lower
    ltrp                                              13 × 59
    wavelet                                           3 levels × 4 sub-bands × 8 states

With `colour=yes` the last block also has the wavelets of the red, green and blue plane, 4 × 96
values, 1,332 in all.

Shares are stored as roots, so that their Euclidean distance is the Hellinger distance, which
frequent patterns do not dominate. Blocks have different units: each block is divided by the root of
the sum of its variances over sample images, so that each adds 2 to the mean squared distance of two
samples.

The features are those of a paper on retrieval with semantic features and relevance feedback; each
operator names the publication of its formula.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import (
    Described,
    ImageBatch,
    Parameters,
    Samples,
    parse_arguments,
    parse_integers,
)
from segrec_batch.descriptors.operators import (
    binary_patterns,
    binary_wavelet,
    ngtdm,
    tamura,
    tetra_patterns,
)
from segrec_batch.descriptors.operators.grey import Grey, luma

Values = NDArray[np.float64]

_GREY_BLOCKS = {
    "directionality": 1,
    "contrast": 1,
    "coarseness": 1,
    "busyness": 1,
    "lbp": binary_patterns.BINS,
    "ltp": 2 * binary_patterns.BINS,
    "ltrp": tetra_patterns.PATTERNS * binary_patterns.BINS,
    "wavelet": binary_wavelet.LEVELS * len(binary_wavelet.SubBands._fields) * binary_wavelet.STATES,
}


def blocks(colour: bool) -> dict[str, int]:
    """Return the number of values of each block by name."""
    planes = 4 if colour else 1  # grey, red, green, blue
    return {**_GREY_BLOCKS, "wavelet": planes * _GREY_BLOCKS["wavelet"]}


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Compute the mean of each value and the spread of each block over sample images.

    Arguments: `threshold` of the local ternary pattern, 1 to 255 grey levels (default 5); `images`,
    number of samples (default 512); `colour`, no (default) or yes. Tensors: `mean` (length,) and
    `spread` (8,), float64.

    Raises:
        InputError: an argument is unknown or out of range, or samples do not differ in a block.
    """
    texts = parse_arguments(arguments, threshold="5", images="512", colour="no")
    colour = texts.pop("colour")
    if colour not in ("yes", "no"):
        raise InputError(f"colour={colour}; known are yes and no")
    values = parse_integers(texts, threshold=5, images=512)
    threshold = values["threshold"]
    if threshold > 255:
        raise InputError(f"threshold={threshold} is more than 255, the highest grey level")
    settings = {"threshold": threshold, **({"colour": True} if colour == "yes" else {})}
    images = samples.draw_images(values["images"])
    vectors = [raw_vectors(batch.pixels, threshold, colour == "yes") for batch in images]
    sizes = blocks(colour == "yes")
    raw = np.concatenate([np.empty((0, sum(sizes.values()))), *vectors])
    return Parameters(settings, {"spread": _spread(raw, sizes), "mean": raw.mean(axis=0)})


def _spread(raw: Values, sizes: Mapping[str, int]) -> Values:
    parts = np.split(raw, np.cumsum(list(sizes.values()))[:-1], axis=1)
    for name, part in zip(sizes, parts, strict=True):
        if (part == part[:1]).all():  # exact, unlike the variance
            raise InputError(f"{len(raw)} sample images do not differ in {name}: index more")
    return np.array([np.sqrt(part.var(axis=0).sum()) for part in parts])


def raw_vectors(pixels: NDArray[np.uint8], threshold: int, colour: bool) -> Values:
    """Return the blocks (B, length) of images (B, H, W, 3) in their own units.

    All but the first four values are roots of shares, 0 to 1. Busyness b is stored as b / (1 + b),
    0 to 1, because b is unbounded.
    """
    grey = luma(pixels)
    vectors = []
    for i in range(len(pixels)):  # one image at a time fits into the cache
        one = grey[i : i + 1]
        planes = [one, *np.moveaxis(pixels[i : i + 1], -1, 0)] if colour else [one]
        vectors.append(_raw_vector(one, planes, threshold))
    return np.array(vectors)


def _raw_vector(grey: Grey, planes: Sequence[Grey], threshold: int) -> Values:
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
        *(binary_wavelet.wavelet_histograms(plane) for plane in planes),
    ]
    return np.concatenate([*perceived, *(np.sqrt(share).ravel() for share in shares)])


class Descriptor:
    """Vectors (B, length) of images with sides of at least 8 pixels."""

    reads_pixels = True
    on_device = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._threshold = int(parameters.settings["threshold"])
        self._colour = bool(parameters.settings.get("colour", False))
        sizes = list(blocks(self._colour).values())
        self._mean = parameters.tensors["mean"]
        self._spread = np.repeat(parameters.tensors["spread"], sizes)
        self.length = sum(sizes)

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images."""
        raw = raw_vectors(images.pixels, self._threshold, self._colour)
        return Described(((raw - self._mean) / self._spread).astype(np.float32))
