"""Tests of the texture descriptor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import ImageBatch, Moments, Parameters, Vectors, module, names
from segrec_batch.descriptors.operators.grey import luma
from segrec_batch.descriptors.operators.ngtdm import busyness
from segrec_batch.descriptors.operators.tamura import coarseness, contrast, directionality
from segrec_batch.descriptors.operators.tetra_patterns import tetra_histograms
from segrec_batch.descriptors.texture import Descriptor, fit
from segrec_batch.sample_data import render_scene
from tests.support.texture_formulas import codes, slow_histograms

SHAPES = ((64, 96), (80, 80))  # height, width
BLOCKS = {
    "directionality": 1,
    "contrast": 1,
    "coarseness": 1,
    "busyness": 1,
    "lbp": 59,
    "ltp": 2 * 59,
    "ltrp": 13 * 59,
    "wavelet": 3 * 4 * 8,
}
COLOUR_BLOCKS = {**BLOCKS, "wavelet": 4 * 3 * 4 * 8}


@dataclass
class Index:
    """Samples of an index that give images alone."""

    batches: Sequence[ImageBatch]

    def moments(self) -> Moments:
        raise NotImplementedError

    def draw_images(self, count: int) -> Iterator[ImageBatch]:
        for batch in self.batches:
            if count > 0:
                yield images(batch.pixels[:count])
            count -= len(batch)

    def labelled(self, count: int) -> tuple[Vectors, Sequence[str]]:
        raise NotImplementedError


def images(pixels: NDArray[np.uint8]) -> ImageBatch:
    n = len(pixels)
    none = np.zeros((n, 0), np.float32)
    cells = np.zeros((n, 0), np.int64)
    return ImageBatch(pixels, np.zeros(pixels.shape[:3], np.uint8), none, none[:, None], cells)


@pytest.fixture(scope="module")
def index() -> Index:
    """Scenes of two shapes, six of each."""
    batches = []
    for height, width in SHAPES:
        scenes = [render_scene(i, 0, 0, (width, height)).image for i in range(6)]
        batches.append(images(np.stack(scenes)))
    return Index(batches)


@pytest.fixture(scope="module")
def descriptor(index: Index) -> Descriptor:
    return Descriptor(fit({}, index), classes=4, device="cpu")


def test_module_finds_texture() -> None:
    assert "texture" in names()
    assert module("texture").Descriptor is Descriptor


def raw_vector(pixels: NDArray[np.uint8], threshold: int, colour: bool) -> NDArray[np.float64]:
    """Return the blocks of an image (H, W, 3) in their own units, by the operators."""
    grey = luma(pixels[None])
    busy = busyness(grey)[0]
    patterns = [codes(grey[0]), codes(grey[0], threshold), codes(grey[0], threshold, -1)]
    planes = [grey[0], *(pixels[..., i] for i in range(3 if colour else 0))]
    shares = [
        *(shares_of_uniform_patterns(pattern) for pattern in patterns),
        tetra_histograms(grey).ravel(),
        *(np.ravel(slow_histograms(plane.tolist())) for plane in planes),
    ]
    perceived = [f(grey)[0] for f in (directionality, contrast, coarseness)]
    return np.concatenate([perceived, [busy / (1 + busy)], np.sqrt(np.concatenate(shares))])


def shares_of_uniform_patterns(pattern: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the shares of the 58 uniform codes, ascending, and of all others (Ojala 2002)."""
    uniform = [c for c in range(256) if _changes(c) <= 2]
    counts = [(pattern == code).sum() for code in uniform]
    return np.array([*counts, pattern.size - sum(counts)]) / pattern.size


def _changes(code: int) -> int:
    bits = f"{code:08b}"
    return sum(a != b for a, b in zip(bits, bits[1:] + bits[0], strict=True))


@pytest.mark.parametrize(("colour", "sizes"), [("no", BLOCKS), ("yes", COLOUR_BLOCKS)])
def test_vectors_equal_scaled_operators(colour: str, sizes: dict[str, int], index: Index) -> None:
    """Values minus their means; each block divided by the root of the sum of its variances."""
    small = [images(batch.pixels[:3, 20:40, 30:54]) for batch in index.batches]
    arguments = {"threshold": "9", "images": "5", "colour": colour}
    described = Descriptor(fit(arguments, Index(small)), 4, "cpu")
    pixels = [*small[0].pixels, *small[1].pixels]
    raw = np.array([raw_vector(p, 9, colour == "yes") for p in pixels])
    samples = raw[:5]
    blocks = np.split(samples, np.cumsum(list(sizes.values()))[:-1], axis=1)
    spreads = [np.sqrt(block.var(axis=0).sum()) for block in blocks]
    expected = (raw - samples.mean(axis=0)) / np.repeat(spreads, list(sizes.values()))
    assert described.length == sum(sizes.values()) == (1332 if colour == "yes" else 1044)
    actual = np.concatenate([described(batch).vectors for batch in small])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_colour_separates_images_of_equal_grey(index: Index) -> None:
    """The exchange of red and green at equal luma changes the wavelets of colour only."""
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    pixels[0, ::2, :, 0] = 200  # luma 59.8
    pixels[1, ::2, :, 1] = 102  # luma 59.9
    assert (luma(pixels)[0] == luma(pixels)[1]).all()
    for colour, differs in (("no", False), ("yes", True)):
        described = Descriptor(fit({"colour": colour}, index), 4, "cpu")
        vectors = described(images(pixels)).vectors
        assert (vectors[0] != vectors[1]).any() == differs


def test_vectors_have_one_length(descriptor: Descriptor, index: Index) -> None:
    for batch in index.batches:
        result = descriptor(batch)
        assert result.categories is None
        assert result.vectors.dtype == np.float32
        assert result.vectors.shape == (6, descriptor.length)
        assert np.isfinite(result.vectors).all()


def test_vectors_are_independent_of_batch(descriptor: Descriptor, index: Index) -> None:
    for batch in index.batches:
        together = descriptor(batch).vectors
        backwards = descriptor(images(batch.pixels[::-1])).vectors[::-1]
        alone = [descriptor(images(batch.pixels[i : i + 1])).vectors[0] for i in range(6)]
        assert (together == backwards).all()
        assert (together == alone).all()


def test_blocks_contribute_equally_to_distance(descriptor: Descriptor, index: Index) -> None:
    vectors = np.concatenate([descriptor(batch).vectors for batch in index.batches])
    squares = (vectors[:, None] - vectors).astype(np.float64) ** 2
    mean = np.split(squares.mean(axis=(0, 1)), np.cumsum(list(BLOCKS.values()))[:-1])
    assert [block.sum() for block in mean] == pytest.approx([2] * len(BLOCKS), rel=1e-5)
    assert np.abs(vectors.mean(axis=0)).max() < 1e-5


def test_threshold_changes_ternary_patterns_only(index: Index) -> None:
    fitted = fit({"threshold": "9", "images": "7"}, index)
    assert fitted.settings == {"threshold": 9}
    other = Parameters({"threshold": 3}, fitted.tensors)
    first = index.batches[0]
    ours = Descriptor(fitted, 4, "cpu")(first).vectors - Descriptor(other, 4, "cpu")(first).vectors
    blocks = np.split(ours, np.cumsum(list(BLOCKS.values()))[:-1], axis=1)
    assert [name for name, b in zip(BLOCKS, blocks, strict=True) if b.any()] == ["ltp"]


def test_vectors_without_texture_exist(descriptor: Descriptor) -> None:
    """Of a constant one, and of one whose busyness is infinite."""
    flat = np.full((2, 16, 16, 3), 100, np.uint8)
    flat[1, 1:15, 1:15] = np.repeat([100, 200, 100], [4, 5, 5])[None, :, None]
    result = descriptor(images(flat)).vectors
    assert np.isfinite(result).all()
    assert (result[0] != result[1]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": "3"}, "unknown argument 'levels'; known are threshold, images, colour"),
        ({"colour": "red"}, "colour=red; known are yes and no"),
        ({"threshold": "much"}, "threshold=much is not a whole number of 1 or more"),
        ({"threshold": "0"}, "threshold=0 is not a whole number of 1 or more"),
        ({"threshold": "256"}, "threshold=256 is more than 255, the highest grey level"),
        ({"images": "1.5"}, "images=1.5 is not a whole number"),
    ],
)
def test_fit_rejects_bad_arguments(arguments: dict[str, str], message: str, index: Index) -> None:
    with pytest.raises(InputError, match=message):
        fit(arguments, index)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fit_rejects_equal_samples(count: int, index: Index) -> None:
    same = images(np.repeat(index.batches[0].pixels[:1], count, axis=0))
    with pytest.raises(InputError, match=f"{count} sample images do not differ in direct"):
        fit({}, Index([same] if count else []))


def test_luma_equals_rec_601() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    exact = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luma(pixels) - exact).max() < 0.51
