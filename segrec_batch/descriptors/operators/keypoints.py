"""Local descriptors of a grey image: at keypoints (SIFT, KAZE, ORB) and on a grid (HOG).

OpenCV computes all of them, with the parameters of the publications unless noted.

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
    """The n local descriptors of an image, in an order that depends on the image only.

    Attributes:
        rows, columns: (n,) int64, pixel of each descriptor.
        vectors: (n, dim) float32.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    vectors: NDArray[np.float32]


class Extractor(Protocol):
    """Extractor of local descriptors with `dim` values from an RGB image uint8 (H, W, 3)."""

    dim: int

    def __call__(self, image: NDArray[np.uint8]) -> Local:
        """Return the local descriptors, possibly none."""


def sift(keypoints: int) -> Extractor:
    """Return an extractor of SIFT: 128 values from 0 to 255, without the root of RootSIFT.

    The first octave is upscaled without OpenCV's shift by a quarter of a pixel, which is not
    invariant to rotation.
    """
    detector = cv2.SIFT.create(nfeatures=keypoints, enable_precise_upscale=True)
    return _AtKeypoints(detector, 128, keypoints)


def kaze(keypoints: int) -> Extractor:
    """Return an extractor of KAZE: 64 values at unit length."""
    return _AtKeypoints(cv2.KAZE.create(), 64, keypoints)


def orb(keypoints: int) -> Extractor:
    """Return an extractor of ORB: 256 bits as values 0 and 1, so that means are shares."""
    return _AtKeypoints(cv2.ORB.create(nfeatures=keypoints), 256, keypoints)


class _AtKeypoints:
    """Extractor at the `keypoints` keypoints with the largest responses."""

    def __init__(self, detector: cv2.Feature2D, dim: int, keypoints: int) -> None:
        self.dim = dim
        self._detector = detector
        self._keypoints = keypoints

    def __call__(self, image: NDArray[np.uint8]) -> Local:
        points, vectors_ = self._detector.detectAndCompute(luma(image[None])[0], None)
        if not points:
            return _local(np.zeros((0, 2)), np.zeros((0, self.dim)), image)
        # detectors return more keypoints than requested if responses are equal
        best = sorted(range(len(points)), key=lambda i: _rank(points[i]))[: self._keypoints]
        vectors = np.asarray(vectors_)[best]
        if vectors.dtype == np.uint8:  # bits, eight in a byte
            vectors = np.unpackbits(vectors.astype(np.uint8), axis=1)
        return _local(np.array([points[i].pt for i in best]), vectors, image)


class Hog:
    """Extractor of HOG on blocks of `block`² cells of `cell`² pixels, one cell apart (R-HOG).

    A cell has a histogram of `bins` unsigned orientations. Blocks are normalised to unit length,
    clipped at 0.2 and normalised again (L2-Hys), with Gaussian weights of σ = half a block and
    without gamma correction. Values are ordered by cell, column by column. The pixel of a block is
    at the lower right of its centre.

    Source: Dalal, Triggs 2005, section 6.
    """

    def __init__(self, cell: int, block: int, bins: int) -> None:
        self.dim = block * block * bins
        self._cell, self._side = cell, cell * block
        size, step = (self._side, self._side), (cell, cell)
        self._hog = cv2.HOGDescriptor(
            size, size, step, step, bins, _winSigma=self._side / 2, _gammaCorrection=False
        )

    def __call__(self, image: NDArray[np.uint8]) -> Local:
        """Return the descriptors of all blocks; none if the image is smaller than a block."""
        rows, columns = (
            np.arange(0, side - self._side + 1, self._cell) for side in image.shape[:2]
        )
        corners = np.array([(x, y) for y in rows for x in columns]).reshape(-1, 2)
        values = (
            self._hog.compute(luma(image[None])[0], (self._cell, self._cell))
            if len(corners)
            else ()
        )
        vectors = np.asarray(values, np.float32).reshape(-1, self.dim)
        return _local(corners + self._side // 2, vectors, image)


def _rank(point: cv2.KeyPoint) -> tuple[float, ...]:
    return (-point.response, point.pt[1], point.pt[0], point.size, point.angle)


def _local(
    points: NDArray[np.number], vectors: NDArray[np.number], image: NDArray[np.uint8]
) -> Local:
    """Build `Local` from positions (n, 2) x, y; whole numbers are centres of pixels."""
    height, width = image.shape[:2]
    nearest = np.floor(points + 0.5).astype(np.int64)
    columns, rows = nearest[:, 0].clip(0, width - 1), nearest[:, 1].clip(0, height - 1)
    return Local(rows, columns, vectors.astype(np.float32))
