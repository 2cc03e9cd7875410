"""Local descriptors of a grey image: at keypoints (SIFT, KAZE, ORB) and on a grid (HOG).

All by OpenCV with its own parameters, those of the publications, but where said.

    SIFT    Lowe, Distinctive image features from scale-invariant keypoints, IJCV 2004
    KAZE    Alcantarilla, Bartoli, Davison, KAZE features, ECCV 2012
    ORB     Rublee, Rabaud, Konolige, Bradski, ORB: an efficient alternative to SIFT or SURF,
            ICCV 2011
    HOG     Dalal, Triggs, Histograms of oriented gradients for human detection, CVPR 2005
"""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from segrec_batch.descriptors.operators.grey import luma


@dataclass(frozen=True)
class Local:
    """n local descriptors. rows, columns: (n,) int64, the pixel of each. vectors: (n, dim) float32.

    In an order that depends on the image only.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    vectors: NDArray[np.float32]


class Extractor(Protocol):
    """What finds local descriptors of `dim` values in an image, uint8 (H, W, 3) RGB."""

    dim: int

    def __call__(self, image: NDArray[np.uint8]) -> Local:
        """The local descriptors; maybe none."""


def sift(keypoints: int) -> Extractor:
    """SIFT, 128 values of 0 to 255: plain, without the square root of RootSIFT (Arandjelović 2012).

    The first octave is upscaled without OpenCV's shift of a quarter of a pixel, which would change
    with a rotation.
    """
    detector = cv2.SIFT.create(nfeatures=keypoints, enable_precise_upscale=True)
    return _AtKeypoints(detector, 128, keypoints)


def kaze(keypoints: int) -> Extractor:
    """KAZE, 64 values of a vector at unit length."""
    return _AtKeypoints(cv2.KAZE.create(), 64, keypoints)


def orb(keypoints: int) -> Extractor:
    """ORB, 256 bits as values 0 and 1, so that a mean of them is a share."""
    return _AtKeypoints(cv2.ORB.create(nfeatures=keypoints), 256, keypoints)


class _AtKeypoints:
    """At most so many keypoints, those of the largest response."""

    def __init__(self, detector: cv2.Feature2D, dim: int, keypoints: int) -> None:
        self.dim = dim
        self._detector = detector
        self._keypoints = keypoints

    def __call__(self, image: NDArray[np.uint8]) -> Local:
        found, described = self._detector.detectAndCompute(luma(image[None])[0], None)
        if not found:
            return _local(np.zeros((0, 2)), np.zeros((0, self.dim)), image)
        # of equal responses the detectors themselves keep more than they were told
        best = sorted(range(len(found)), key=lambda i: _rank(found[i]))[: self._keypoints]
        vectors = np.asarray(described)[best]
        if vectors.dtype == np.uint8:  # bits, eight in a byte
            vectors = np.unpackbits(vectors.astype(np.uint8), axis=1)
        return _local(np.array([found[i].pt for i in best]), vectors, image)


class Hog:
    """HOG of every square of `block`² cells of `cell`² pixels, a cell apart: R-HOG of section 6.

    Per cell a histogram of `bins` unsigned orientations; blocks at unit length, clipped at 0.2 and
    at unit length again (L2-Hys); Gaussian weights of σ half a block; no gamma correction. The
    values of a block go cell by cell, column by column. The pixel of a block is the one right
    below its centre.
    """

    def __init__(self, cell: int, block: int, bins: int) -> None:
        self.dim = block * block * bins
        self._cell, self._side = cell, cell * block
        size, step = (self._side, self._side), (cell, cell)
        self._hog = cv2.HOGDescriptor(
            size, size, step, step, bins, _winSigma=self._side / 2, _gammaCorrection=False
        )

    def __call__(self, image: NDArray[np.uint8]) -> Local:
        """See the class; none where the image is smaller than a block."""
        rows, columns = (
            np.arange(0, side - self._side + 1, self._cell) for side in image.shape[:2]
        )
        corners = np.array([(x, y) for y in rows for x in columns]).reshape(-1, 2)
        found = (
            self._hog.compute(luma(image[None])[0], (self._cell, self._cell))
            if len(corners)
            else ()
        )
        vectors = np.asarray(found, np.float32).reshape(-1, self.dim)
        return _local(corners + self._side // 2, vectors, image)


def _rank(point: cv2.KeyPoint) -> tuple[float, ...]:
    return (-point.response, point.pt[1], point.pt[0], point.size, point.angle)


def _local(
    points: NDArray[np.number], vectors: NDArray[np.number], image: NDArray[np.uint8]
) -> Local:
    """Of positions (n, 2) x, y; a whole number is the centre of a pixel."""
    height, width = image.shape[:2]
    nearest = np.floor(points + 0.5).astype(np.int64)
    columns, rows = nearest[:, 0].clip(0, width - 1), nearest[:, 1].clip(0, height - 1)
    return Local(rows, columns, vectors.astype(np.float32))
