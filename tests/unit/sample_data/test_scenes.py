"""Sample scenes: repeatable, exact in their masks, varied within and between places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.sample_data import CLASSES, Scene, render_scene, write_scenes
from segrec_batch.sample_data.settings import make_place

PLACES, EACH = 8, 6
CAR, PERSON, TREE = 1, 2, 3


@pytest.fixture(scope="module")
def scenes() -> list[list[Scene]]:
    """Six scenes of each of eight places, `scenes[place][index]`."""
    return [[render_scene(place, index, 0) for index in range(EACH)] for place in range(PLACES)]


@pytest.fixture(scope="module")
def coverage(scenes: list[list[Scene]]) -> NDArray[np.float64]:
    """Share of each class in each scene, (48, 3)."""
    masks = np.stack([scene.mask for row in scenes for scene in row])
    return np.stack([(masks == label).mean(axis=(1, 2)) for label in (CAR, PERSON, TREE)], axis=-1)


def test_a_scene_is_the_same_every_time() -> None:
    first = render_scene(3, 5, 11)
    render_scene(3, 6, 11)
    make_place.cache_clear()
    again = render_scene(3, 5, 11)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)


@pytest.mark.parametrize("other", [(3, 6, 11), (4, 5, 11), (3, 5, 12)])
def test_place_index_and_seed_each_make_another_scene(other: tuple[int, int, int]) -> None:
    here, there = render_scene(3, 5, 11, (80, 60)), render_scene(*other, (80, 60))
    assert np.abs(here.image.astype(float) - there.image).mean() > 4


@given(
    place=st.integers(0, 40),
    index=st.integers(0, 10**6),
    seed=st.integers(0, 2**32),
    size=st.sampled_from([(48, 36), (33, 65), (64, 31)]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_scene_is_an_image_with_labels(
    place: int, index: int, seed: int, size: tuple[int, int]
) -> None:
    scene = render_scene(place, index, seed, size)
    assert scene.image.shape == (size[1], size[0], 3)
    assert scene.mask.shape == (size[1], size[0])
    assert scene.image.dtype == scene.mask.dtype == np.uint8
    assert scene.mask.max() <= TREE
    assert scene.image.std() > 2


def test_close_ups_small_objects_and_absences(coverage: NDArray[np.float64]) -> None:
    close = (coverage >= 0.29) & (coverage <= 0.96)
    assert close.any(axis=0).all(), "no close-up of some class"
    assert close.any(axis=1).mean() > 0.2
    small = (coverage > 0) & (coverage < 0.02)
    assert small[:, [0, 1]].any(axis=0).all(), "no small car or person"
    assert (coverage == 0).any(axis=0).all(), "some class is everywhere"


def test_scenes_show_one_class_or_all_or_none(coverage: NDArray[np.float64]) -> None:
    assert set((coverage > 0).sum(axis=1).tolist()) == {0, 1, 2, 3}


def _edges(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels left of or above a pixel of another label, (H - 1, W - 1)."""
    return np.asarray(
        (mask[:-1, :-1] != mask[:-1, 1:]) | (mask[:-1, :-1] != mask[1:, :-1]), dtype=np.bool_
    )


def _contrast(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """Mean colour step over the mask's edges, divided by the mean over the whole image."""
    pixels = image.astype(np.float64)
    across = np.abs(np.diff(pixels, axis=1)).sum(axis=2)[:-1]
    down = np.abs(np.diff(pixels, axis=0)).sum(axis=2)[:, :-1]
    step, edges = across + down, _edges(mask)
    return float(step[edges].mean() / step.mean())


def _shifted(mask: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [np.roll(mask, 4, axis=axis) for axis in (0, 1)]


def test_mask_edges_lie_on_colour_edges(scenes: list[list[Scene]]) -> None:
    drawn = [s for row in scenes for s in row if _edges(s.mask).sum() > 200]
    true = np.median([_contrast(s.image, s.mask) for s in drawn])
    wrong = [
        [_contrast(s.image, mask) for mask in (s.mask[:, ::-1], s.mask[::-1], *_shifted(s.mask))]
        for s in drawn
    ]
    assert (true > 1.5 * np.median(wrong, axis=0)).all()


def test_the_edge_fits_to_the_pixel(scenes: list[list[Scene]]) -> None:
    drawn = [s for row in scenes for s in row if _edges(s.mask).sum() > 200]
    moves = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    fits = [
        np.mean([_contrast(s.image, np.roll(s.mask, move, axis=(0, 1))) for s in drawn])
        for move in moves
    ]
    assert moves[int(np.argmax(fits))] == (0, 0)


def test_places_differ_more_between_than_within(scenes: list[list[Scene]]) -> None:
    small = np.stack([
        [np.asarray(Image.fromarray(s.image).resize((16, 12)), dtype=np.float64) for s in row]
        for row in scenes
    ]).reshape(PLACES * EACH, -1)  # fmt: skip
    distance = np.abs(small[:, None] - small[None]).mean(axis=-1)
    place = np.repeat(np.arange(PLACES), EACH)
    same = place[:, None] == place[None]
    within = distance[same & ~np.eye(len(place), dtype=bool)].mean()
    assert distance[~same].mean() > 1.2 * within


def test_written_files_pair_up_and_read_back(tmp_path: Path) -> None:
    counts: list[int] = []
    assert write_scenes(tmp_path, 7, seed=2, places=3, size=(80, 60), progress=counts.append) == 7
    images = sorted((tmp_path / "images").rglob("*.jpg"))
    masks = sorted((tmp_path / "masks").rglob("*.png"))
    names = [path.relative_to(tmp_path / "images").with_suffix("") for path in images]
    assert names == [path.relative_to(tmp_path / "masks").with_suffix("") for path in masks]
    assert [str(name) for name in names[:3]] == [
        "place_00/place_00_0000", "place_00/place_00_0001", "place_00/place_00_0002",
    ]  # fmt: skip
    assert counts == list(range(1, 8))
    assert json.loads((tmp_path / "classes.json").read_text()) == CLASSES


def test_masks_are_exact_on_disk_and_images_nearly(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3, seed=2, places=3)
    for place in range(3):
        scene, stem = render_scene(place, 0, 2), f"place_{place:02d}/place_{place:02d}_0000"
        with Image.open(tmp_path / "masks" / f"{stem}.png") as mask:
            assert mask.mode == "L"
            np.testing.assert_array_equal(np.asarray(mask), scene.mask)
        with Image.open(tmp_path / "images" / f"{stem}.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (320, 240))
            assert np.abs(np.asarray(image, dtype=float) - scene.image).mean() < 6
