"""Tests of local descriptors."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segrec_batch.descriptors.operators import keypoints
from segrec_batch.descriptors.operators.keypoints import Extractor, Hog
from segrec_batch.sample_data import render_scene
from tests.support.builders import smooth_pixels

SCENE = render_scene(place=1, index=1, seed=0, size=(160, 128)).image
AT_KEYPOINTS = {"sift": keypoints.sift, "kaze": keypoints.kaze, "orb": keypoints.orb}
ALL: dict[str, Extractor] = {name: make(500) for name, make in AT_KEYPOINTS.items()}
ALL["hog"] = Hog(cell=8, block=2, bins=9)
every = pytest.mark.parametrize("extract", ALL.values(), ids=ALL)
few = settings(deadline=None, max_examples=8, derandomize=True)


@every
def test_extract_positions_lie_inside_image(extract: Extractor) -> None:
    result = extract(SCENE)
    assert len(result.vectors) > 50
    assert result.vectors.shape == (len(result.rows), extract.dim)
    assert result.vectors.dtype == np.float32
    assert np.isfinite(result.vectors).all()
    for position, side in ((result.rows, 128), (result.columns, 160)):
        assert position.min() >= 0
        assert side / 2 < position.max() < side


@every
@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (64, 64)])
def test_extract_of_uniform_image_is_empty(extract: Extractor, shape: tuple[int, int]) -> None:
    result = extract(np.full((*shape, 3), 90, np.uint8))
    assert (result.vectors == 0).all()
    assert len(result.vectors) == 0 or isinstance(extract, Hog)


@every
def test_extract_is_independent_of_threads(extract: Extractor) -> None:
    one = extract(SCENE)
    try:
        cv2.setNumThreads(4)
        several = extract(SCENE)
    finally:
        cv2.setNumThreads(1)
    for name in ("rows", "columns", "vectors"):
        np.testing.assert_array_equal(getattr(one, name), getattr(several, name))


@pytest.mark.parametrize("name", AT_KEYPOINTS)
@given(limit=st.integers(1, 60))
@few
def test_extract_respects_maximum(name: str, limit: int) -> None:
    result, every = AT_KEYPOINTS[name](limit)(SCENE).vectors, ALL[name](SCENE).vectors
    if name == "orb":  # which shares its keypoints out among the scales of the image
        assert len(result) <= limit
    else:
        np.testing.assert_array_equal(result, every[:limit])


def test_extract_breaks_ties_of_response() -> None:
    """Equal responses, of which OpenCV keeps all: four times the same image, side by side."""
    tiles = np.tile(smooth_pixels(64, 64, seed=1), (2, 2, 1))
    grey = cv2.cvtColor(tiles, cv2.COLOR_RGB2GRAY)
    counts = {n: len(cv2.SIFT.create(n).detect(grey, None)) for n in range(1, 20)}
    assert any(result > n for n, result in counts.items())
    assert all(len(keypoints.sift(n)(tiles).vectors) <= n for n in counts)


def test_keypoints_lie_on_structure() -> None:
    """A single blob, between pixels too, is found at its centre."""
    y, x = np.mgrid[:96, :96]
    for row, column in ((40.0, 60.0), (33.4, 20.7)):
        blob = 30 + 200 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 4.0**2))
        result = ALL["sift"](np.repeat(blob[..., None], 3, axis=2).astype(np.uint8))
        assert set(zip(result.rows, result.columns, strict=True)) == {(round(row), round(column))}


def test_keypoints_follow_quarter_turn() -> None:
    """Without OpenCV's precise upscaling many of SIFT's are a pixel off."""
    result, turned = (ALL["sift"](p) for p in (SCENE, np.rot90(SCENE)))
    before = set(zip(159 - result.columns, result.rows, strict=True))
    after = set(zip(turned.rows, turned.columns, strict=True))
    assert len(before & after) > 0.9 * len(before | after)


def test_orb_bits_equal_opencv() -> None:
    actual = ALL["orb"](SCENE)
    assert set(np.unique(actual.vectors)) == {0, 1}
    _, packed = cv2.ORB.create(500).detectAndCompute(cv2.cvtColor(SCENE, cv2.COLOR_RGB2GRAY), None)
    expected = {np.unpackbits(row).tobytes() for row in np.asarray(packed, np.uint8)}
    assert {row.astype(np.uint8).tobytes() for row in actual.vectors} <= expected


def block_of(
    grey: NDArray[np.float64], top: int, left: int, cell: int, block: int, bins: int
) -> NDArray[np.float64]:
    """One block of HOG by loops over its pixels, after Dalal and Triggs 2005."""
    side, centre = cell * block, cell * block / 2
    padded = np.pad(grey, 1, mode="reflect")  # the edge is not repeated
    histogram = np.zeros((block, block, bins))  # column, row, orientation
    for y in range(top, top + side):
        for x in range(left, left + side):
            dx = padded[y + 1, x + 2] - padded[y + 1, x]
            dy = padded[y + 2, x + 1] - padded[y, x + 1]
            v, u = y - top + 0.5, x - left + 0.5
            # OpenCV's Gaussian is around the pixel right below the centre
            square = (y - top - centre) ** 2 + (x - left - centre) ** 2
            weight = np.exp(-square / (2 * (side / 2) ** 2))
            angle = np.arctan2(dy, dx) % np.pi * bins / np.pi - 0.5
            for i, wi in shares(u / cell - 0.5):
                for j, wj in shares(v / cell - 0.5):
                    for b, wb in shares(angle):
                        if 0 <= i < block and 0 <= j < block:
                            histogram[i, j, b % bins] += weight * wi * wj * wb * np.hypot(dx, dy)
    unit = histogram.ravel() / (np.linalg.norm(histogram) + 0.1 * histogram.size)
    clipped = np.minimum(unit, 0.2)
    return np.asarray(clipped / (np.linalg.norm(clipped) + 1e-3))


def shares(position: float) -> list[tuple[int, float]]:
    """The two nearest bins and the weight of each."""
    low = int(np.floor(position))
    return [(low, low + 1 - position), (low + 1, position - low)]


@pytest.mark.parametrize(("cell", "block", "bins"), [(8, 2, 9), (4, 3, 6)])
def test_hog_equals_plain_loops(cell: int, block: int, bins: int) -> None:
    image = smooth_pixels(37, 44, seed=3, cells=9)
    actual = Hog(cell, block, bins)(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    side = cell * block
    corners = [
        (y, x)
        for y in range(0, 37 - side + 1, cell)
        for x in range(0, 44 - side + 1, cell)
    ]  # fmt: skip
    assert len(actual.vectors) == len(corners)
    for i in (0, len(corners) // 2, len(corners) - 1):
        top, left = corners[i]
        assert (actual.rows[i], actual.columns[i]) == (top + side // 2, left + side // 2)
        expected = block_of(grey, top, left, cell, block, bins)
        np.testing.assert_allclose(actual.vectors[i], expected, atol=3e-4)


def test_hog_of_small_image_is_empty() -> None:
    result = Hog(cell=16, block=2, bins=9)(SCENE[:31, :64])
    assert result.vectors.shape == (0, 36)
    assert len(result.rows) == len(result.columns) == 0


def test_luma_uses_rgb_order() -> None:
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, :32, 0], halves[:, 32:, 2] = 76, 199  # 0.299 · 76 = 0.114 · 199: equally bright
    assert (ALL["hog"](halves).vectors == 0).all()
    assert (ALL["hog"](halves[..., ::-1]).vectors != 0).any()
