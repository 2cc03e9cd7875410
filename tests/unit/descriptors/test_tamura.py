"""Tests of coarseness, contrast, directionality and busyness."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.signal import find_peaks

from segrec_batch.descriptors.operators import tamura
from segrec_batch.descriptors.operators.ngtdm import busyness
from segrec_batch.descriptors.operators.tamura import angles, coarseness, contrast, directionality
from tests.support.builders import quick

Grey = NDArray[np.uint8]

images = arrays(np.uint8, (2, 9, 11))
few = settings(quick, max_examples=40)


def random_image(seed: int, shape: tuple[int, int] = (9, 11), levels: int = 256) -> Grey:
    return np.random.default_rng(seed).integers(0, levels, shape).astype(np.uint8)


def stripes(period: int) -> Grey:
    """(1, 96, 96): rows of black and white."""
    rows = np.where(np.arange(96) % period < period // 2, 255, 0)
    return np.broadcast_to(rows[None, :, None], (1, 96, 96)).astype(np.uint8)


def mirrored(i: int, side: int) -> int:
    i %= 2 * side
    return i if i < side else 2 * side - 1 - i


def mean_of_window(image: Grey, y: int, x: int, k: int) -> float:
    """A_k, Tamura 1978: from −2ᵏ⁻¹ to 2ᵏ⁻¹ − 1 around a point."""
    half, (height, width) = 2 ** (k - 1), image.shape
    rows = [mirrored(i, height) for i in range(y - half, y + half)]
    columns = [mirrored(i, width) for i in range(x - half, x + half)]
    return sum(int(image[i, j]) for i in rows for j in columns) / 4**k


def best_size(image: Grey, y: int, x: int) -> int:
    result = []
    for k in range(1, 6):
        half = 2 ** (k - 1)
        across = mean_of_window(image, y, x + half, k) - mean_of_window(image, y, x - half, k)
        down = mean_of_window(image, y + half, x, k) - mean_of_window(image, y - half, x, k)
        result.append(max(abs(across), abs(down)))
    return int(2 ** (1 + result.index(max(result))))


@pytest.mark.parametrize(("shape", "levels"), [((4, 6), 256), ((5, 3), 3)])
def test_coarseness_equals_formula(shape: tuple[int, int], levels: int) -> None:
    image = random_image(0, shape, levels)
    sizes = [best_size(image, y, x) for y, x in np.ndindex(*shape)]
    assert coarseness(image[None]) == pytest.approx(sum(sizes) / len(sizes))


def test_coarseness_grows_with_enlargement() -> None:
    noise = random_image(6, (96, 96))
    result = [
        coarseness(np.kron(noise, np.ones((n, n), np.uint8))[None, :96, :96])[0]
        for n in (1, 2, 4, 8, 16)
    ]
    assert result == sorted(result)
    assert result[-1] > 2 * result[0]


def test_constant_image_has_minimum_features() -> None:
    constant = np.full((1, 9, 11), 77, np.uint8)
    assert coarseness(constant) == [2]
    for feature in (contrast, directionality, busyness):
        assert feature(constant) == [0]


@few
@given(images, st.integers(0, 3))
def test_coarseness_ignores_inversion(grey: Grey, shift: int) -> None:
    half = grey // 4
    assert (coarseness(half) == coarseness(255 - half)).all()
    assert (coarseness(half) == coarseness(half + np.uint8(shift * 60))).all()


def test_contrast_equals_formula() -> None:
    values = [int(v) for v in random_image(1).ravel()]
    mean = sum(values) / len(values)
    sigma = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    kurtosis = sum((v - mean) ** 4 for v in values) / len(values) / sigma**4
    assert contrast(random_image(1)[None]) == pytest.approx(sigma / kurtosis**0.25)


@few
@given(images, st.floats(-4, 4), st.floats(-300, 300))
def test_contrast_is_proportional_to_greys(grey: Grey, scale: float, shift: float) -> None:
    assume(np.ptp(grey, axis=(1, 2)).all() and abs(scale) > 0.01)
    scaled = contrast(scale * grey.astype(float) + shift)
    assert scaled == pytest.approx(abs(scale) * contrast(grey), rel=1e-6)


def slow_angles(image: Grey) -> list[float]:
    """N_θ(k) / Σ N_θ, Tamura 1978, with θ = arctan(Δ_V / Δ_H) + π/2; ours starts half a turn on."""
    counts = [0] * 16
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            block = image[y - 1 : y + 2, x - 1 : x + 2].astype(int)
            across = int(block[:, 2].sum() - block[:, 0].sum())
            up = int(block[0].sum() - block[2].sum())
            if (abs(across) + abs(up)) / 2 >= 12:
                ratio = math.atan(up / across) if across else math.pi / 2
                theta = (ratio + math.pi / 2) % math.pi
                edges = [(2 * k - 1) * math.pi / 32 for k in range(1, 17)]
                counts[sum(theta >= edge for edge in edges) % 16] += 1
    return [count / max(sum(counts), 1) for count in counts]


@pytest.mark.parametrize("levels", [8, 256])
def test_angles_equal_formula(levels: int) -> None:
    image = random_image(2, levels=levels) * np.uint8(255 // (levels - 1))
    theirs = np.roll(slow_angles(image), 8)
    assert angles(image[None])[0] == pytest.approx(theirs)
    assert theirs.any()


def slow_directionality(histogram: list[float], peaks: list[int]) -> float:
    """1 − r n_p Σ_p Σ_{φ in w_p} (φ − φ_p)² H(φ); from each peak down to the lowest bin before the
    next one. No peak of the histogram stands beside another one.
    """
    r, total = 1 / 21.5, 0.0  # Σ over −8 … 7 of φ², by 16
    for i, peak in enumerate(peaks):
        behind = (peaks[(i + 1) % len(peaks)] - peak - 1) % 16 + 1
        before = (peak - peaks[i - 1] - 1) % 16 + 1
        ahead = [histogram[(peak + d) % 16] for d in range(behind + 1)]
        back = [histogram[(peaks[i - 1] + d) % 16] for d in range(before + 1)]
        last = ahead.index(min(ahead))
        first = before - back.index(min(back)) - 1
        for d in range(-first, last + 1):
            total += min(abs(d), 16 - abs(d)) ** 2 * histogram[(peak + d) % 16]
    return 1 - r * len(peaks) * total


@few
@given(st.integers(0, 10**6))
def test_directionality_equals_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    histogram = rng.uniform(0.1, 1, 16) ** rng.uniform(0, 6)
    histogram /= histogram.sum()
    start = int(histogram.argmin())
    closed = np.append(np.roll(histogram, -start), histogram[start])
    actual, _ = find_peaks(closed, prominence=0.2 * histogram.max())
    peaks = actual if len(actual) else closed.argmax(keepdims=True)
    expected = slow_directionality(histogram.tolist(), ((peaks + start) % 16).tolist())
    assert tamura.sharpness(histogram) == pytest.approx(expected)


def test_directionality_of_known_histograms() -> None:
    one, flat, cross = np.zeros(16), np.full(16, 1 / 16), np.zeros(16)
    one[3], cross[[2, 10]] = 1, 0.5
    assert [tamura.sharpness(h) for h in (one, cross)] == [1, 1]
    assert tamura.sharpness(flat) == pytest.approx(0)


@few
@given(arrays(np.uint8, (2, 12, 12)))
def test_directionality_under_quarter_turn(grey: Grey) -> None:
    turned = np.rot90(grey, axes=(1, 2))
    assert (angles(turned) == np.roll(angles(grey), 8, axis=1)).all()
    assert directionality(turned) == pytest.approx(directionality(grey), abs=1e-12)


def test_directionality_of_stripes_and_noise() -> None:
    assert directionality(stripes(8)) == pytest.approx(1)
    assert directionality(random_image(3, (96, 96))[None]) < 0.3


def slow_busyness(image: Grey) -> float:
    """Amadasun and King 1989, eq. 2 and 7, over all pairs of tones that there are."""
    total, count, positions = [0.0] * 256, [0] * 256, 0
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            tone = int(image[y, x])
            around = int(image[y - 1 : y + 2, x - 1 : x + 2].astype(int).sum()) - tone
            total[tone] += abs(tone - around / 8)
            count[tone] += 1
            positions += 1
    tones = [i for i in range(256) if count[i]]
    share = {i: count[i] / positions for i in tones}
    above = sum(share[i] * total[i] for i in tones)
    return above / sum(abs(i * share[i] - j * share[j]) for i in tones for j in tones)


@pytest.mark.parametrize("levels", [4, 256])
def test_busyness_equals_formula(levels: int) -> None:
    batch = np.stack([random_image(seed, levels=levels) for seed in (4, 5)])
    assert busyness(batch) == pytest.approx([slow_busyness(image) for image in batch])


def test_busyness_of_narrow_stripes_is_higher() -> None:
    result = [busyness(stripes(period))[0] for period in (4, 8, 16, 32)]
    assert result == sorted(result, reverse=True)


def test_busyness_with_zero_denominator() -> None:
    """Two tones, 100 and 200, two thirds and one third of the pixels that have all neighbours."""
    image = np.full((1, 5, 5), 100, np.uint8)
    image[0, 1:4, 2] = 200
    assert busyness(image) == [np.inf]
