"""Tests of local binary, ternary and tetra patterns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage.feature import local_binary_pattern, multiblock_lbp
from skimage.transform import integral_image

from segrec_batch.descriptors.operators.binary_patterns import (
    BINS,
    NEIGHBOURS,
    lbp,
    ltp,
    uniform_bins,
    uniform_histograms,
)
from segrec_batch.descriptors.operators.tetra_patterns import tetra_histograms
from tests.support.builders import quick
from tests.support.texture_formulas import codes

Grey = NDArray[np.uint8]

images = arrays(np.uint8, (2, 7, 9))
dim = arrays(np.uint8, (1, 7, 9), elements=st.integers(0, 100))
few = settings(quick, max_examples=40)


def random_image(seed: int, levels: int) -> Grey:
    """Few grey levels make many neighbours equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, (8, 10)).astype(np.uint8) * (255 // levels)


@pytest.mark.parametrize("levels", [2, 5, 255])
def test_lbp_equals_formula(levels: int) -> None:
    image = random_image(0, levels)
    assert (lbp(image[None])[0] == codes(image)).all()


@pytest.mark.parametrize("levels", [2, 5, 255])
def test_lbp_equals_scikit_image(levels: int) -> None:
    """`multiblock_lbp` with blocks of one pixel has the square neighbourhood, from the upper left
    one clockwise, first bit highest; `local_binary_pattern` with four points does not interpolate.
    """
    image = random_image(1, levels)
    result = lbp(image[None])[0]
    clockwise = [3, 2, 1, 0, 7, 6, 5, 4]
    theirs = np.zeros_like(result)
    sums = integral_image(image)
    for y, x in np.ndindex(*result.shape):
        bits = f"{multiblock_lbp(sums, y, x, 1, 1):08b}"
        theirs[y, x] = sum(int(bit) << p for bit, p in zip(bits, clockwise, strict=True))
    assert (result == theirs).all()
    four = sum((result >> 2 * i & 1) << i for i in range(4))
    assert (four == local_binary_pattern(image, 4, 1)[1:-1, 1:-1]).all()


@few
@given(images)
def test_lbp_depends_on_order_of_greys_only(grey: Grey) -> None:
    rising = np.cumsum(np.random.default_rng(3).uniform(0.1, 9, 256))
    assert (lbp(grey) == lbp(rising[grey])).all()


@few
@given(images)
def test_opposite_test_gives_complement_code(grey: Grey) -> None:
    """A paper has "centre > neighbour": each distance between two histograms is the same."""
    opposite = np.array([255 - codes(-image.astype(int), 1) for image in grey])
    bins = uniform_bins()
    assert (opposite == lbp(grey)).all()
    ours, theirs = bins[np.arange(256)], bins[255 - np.arange(256)]
    assert len(set(zip(ours.tolist(), theirs.tolist(), strict=True))) == BINS


def test_uniform_codes_change_at_most_twice() -> None:
    bins = uniform_bins()
    changes = [sum(c >> p & 1 != c >> (p + 1) % 8 & 1 for p in range(8)) for c in range(256)]
    uniform = [c for c in range(256) if changes[c] <= 2]
    assert len(uniform) == 58
    assert bins[uniform].tolist() == list(range(58))
    assert set(bins[[c for c in range(256) if changes[c] > 2]]) == {58}


@few
@given(images)
def test_quarter_turn_rotates_codes(grey: Grey) -> None:
    """So the histogram is not the same: only that of rotation-invariant patterns would be."""
    turned = np.rot90(lbp(grey), axes=(1, 2))
    assert (lbp(np.rot90(grey, axes=(1, 2))) == (turned << 2 | turned >> 6)).all()


@pytest.mark.parametrize("threshold", [1, 5, 42])
def test_ltp_equals_formula(threshold: int) -> None:
    """No library that we know has them."""
    image = random_image(2, 12)
    upper, lower = ltp(image[None], threshold)
    assert (upper[0] == codes(image, threshold)).all()
    assert (lower[0] == codes(image, threshold, -1)).all()


@few
@given(dim, st.integers(1, 155), st.integers(1, 60))
def test_ltp_depends_on_differences_only(grey: Grey, shift: int, threshold: int) -> None:
    shifted = (grey + shift).astype(np.uint8)
    for ours, theirs in zip(ltp(grey, threshold), ltp(shifted, threshold), strict=True):
        assert (ours == theirs).all()


@few
@given(images, st.integers(1, 255))
def test_ltp_parts_are_disjoint(grey: Grey, threshold: int) -> None:
    upper, lower = ltp(grey, threshold)
    assert not (upper & lower).any()


@few
@given(images)
def test_uniform_histograms_sum_to_one(grey: Grey) -> None:
    assert uniform_histograms(lbp(grey)).sum(axis=1) == pytest.approx(1)
    tetra = tetra_histograms(grey)
    assert tetra[:, 12].sum(axis=1) == pytest.approx(1)
    of_directions = tetra[:, :12].sum(axis=2).reshape(-1, 4, 3)
    assert of_directions.sum(axis=1) == pytest.approx(1)
    assert np.ptp(of_directions, axis=2) == pytest.approx(0)


def direction(image: Grey, y: int, x: int) -> int:
    """Murala 2012, eq. of I¹_dir: the quadrant, 1 to 4, of the derivatives along 0° and 90°."""
    here = int(image[y, x])
    along, up = int(image[y, x + 1]) - here, int(image[y - 1, x]) - here
    if along >= 0:
        return 1 if up >= 0 else 4
    return 2 if up >= 0 else 3


def squared_length(image: Grey, y: int, x: int) -> int:
    here = int(image[y, x])
    return (int(image[y, x + 1]) - here) ** 2 + (int(image[y - 1, x]) - here) ** 2


@pytest.mark.parametrize("levels", [3, 40, 255])
def test_tetra_histograms_equal_formula(levels: int) -> None:
    """The tetra pattern of a pixel: of each neighbour its direction, or 0 if that is the pixel's
    own. For each other direction a binary pattern. No library that we know has them.
    """
    image = random_image(4, levels)
    bins, counts, positions = uniform_bins(), np.zeros((13, BINS)), 0
    for y in range(2, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 2):
            own = direction(image, y, x)
            around = [direction(image, y + dy, x + dx) for dy, dx in NEIGHBOURS]
            tetra = [0 if other == own else other for other in around]
            for i, other in enumerate([d for d in (1, 2, 3, 4) if d != own]):
                pattern = sum(2**p for p in range(8) if tetra[p] == other)
                counts[3 * (own - 1) + i, bins[pattern]] += 1
            longer = [
                squared_length(image, y + dy, x + dx) >= squared_length(image, y, x)
                for dy, dx in NEIGHBOURS
            ]
            counts[12, bins[sum(2**p for p in range(8) if longer[p])]] += 1
            positions += 1
    assert tetra_histograms(image[None])[0] == pytest.approx(counts / positions)


@few
@given(dim, st.integers(1, 155))
def test_tetra_depends_on_differences_only(grey: Grey, shift: int) -> None:
    assert (tetra_histograms(grey) == tetra_histograms((grey + shift).astype(np.uint8))).all()


@few
@given(images)
def test_tetra_directions_depend_on_order_only(grey: Grey) -> None:
    rising = np.cumsum(np.random.default_rng(3).uniform(0.1, 9, 256))
    assert (tetra_histograms(grey)[:, :12] == tetra_histograms(rising[grey])[:, :12]).all()
