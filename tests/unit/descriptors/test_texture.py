"""Tests of the texture descriptor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import ImageBatch, Moments, Parameters, Vectors, module, names
from segrec_batch.descriptors.operators.grey import luma
from segrec_batch.descriptors.texture import BLOCKS, Descriptor, fit, raw_vectors
from segrec_batch.sample_data import render_scene

SHAPES = ((64, 96), (80, 80))  # height, width


@dataclass
class Index:
    """What of an index a descriptor can see: here images alone."""

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
    assert module("texture").Descriptor.length == sum(BLOCKS.values()) == 1044


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


def test_bundle_is_complete(index: Index) -> None:
    fitted = fit({"threshold": "9", "images": "7"}, index)
    assert fitted.settings == {"threshold": 9}
    first, second = index.batches
    raw = np.concatenate([raw_vectors(luma(p), 9) for p in (first.pixels, second.pixels[:1])])
    assert fitted.tensors["mean"] == pytest.approx(raw.mean(axis=0))
    other = Parameters({"threshold": 3}, fitted.tensors)
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
        ({"levels": "3"}, "unknown argument 'levels'; known are threshold, images"),
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
