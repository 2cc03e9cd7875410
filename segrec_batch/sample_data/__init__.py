"""Procedural sample scenes: streets, parks and squares with exact masks of cars, persons, trees.

A *place* is one fixed setting (buildings, hills, light, camera); its images differ in what moves:
objects, viewpoint, exposure and noise. Everything is drawn from `(seed, place, index)`, so a scene
never depends on another one.

    paint      camera, light and brush; colour and label in one stroke
    trees, cars, people    the three classes
    places, layout, settings    the settings: ground, houses, lanes, trees
    backdrop, buildings    what is background: sky, ground, shadows; houses, street furniture
    staging    viewpoint and objects of one image
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from segrec_batch.sample_data.backdrop import cast_shadows, paint_far, paint_ground, roughen, sky
from segrec_batch.sample_data.buildings import house_depth, paint_house, paint_prop
from segrec_batch.sample_data.cars import Car, car_shadow, paint_car
from segrec_batch.sample_data.paint import Points, Rng, Stage, View, between, smooth_noise
from segrec_batch.sample_data.people import Person, paint_person, person_shadow
from segrec_batch.sample_data.places import Place, Prop
from segrec_batch.sample_data.settings import make_place
from segrec_batch.sample_data.staging import Thing, choose_subject, choose_things, choose_view
from segrec_batch.sample_data.trees import TREE, Tree, paint_tree, tree_shadow
from segrec_batch.sources import storage

__all__ = ["CLASSES", "Scene", "render_scene", "write_scenes"]

_FILES = re.compile(r"classes\.json|(images|masks)/(place_\d+)/\2_\d{4,}\.(jpg|png)")

CLASSES = {"car": [1], "person": [2], "tree": [3], "ignore": [255]}


@dataclass(frozen=True)
class Scene:
    """One image and what is in it.

    `image` is (H, W, 3) uint8 RGB; `mask` is (H, W) uint8: 0 background, 1 car, 2 person, 3 tree,
    the object visible in the larger part of the pixel.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def render_scene(place: int, index: int, seed: int, size: tuple[int, int] = (320, 240)) -> Scene:
    """Image number `index` of place number `place`, both 0 or more; `size` is (width, height)."""
    rng = np.random.default_rng([seed, place, index])
    setting = make_place(place, seed)
    subject = choose_subject(rng, setting)
    view = choose_view(rng, setting, subject, (2 * size[0], 2 * size[1]))
    things = choose_things(rng, setting, view, subject)
    canvas = _paint(setting, view, things, cloud_drift=between(rng, 0, 1))
    return _develop(rng, canvas, night=setting.light.night)


def write_scenes(
    output: Path,
    count: int,
    seed: int = 0,
    places: int = 12,
    size: tuple[int, int] = (320, 240),
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write `count` scenes, spread evenly over the places, and return their number.

    The files are `images/place_03/place_03_0007.jpg`, `masks/place_03/place_03_0007.png` (8-bit
    grey, the labels of `Scene.mask`) and `classes.json`. `progress` is told the number written so
    far after each scene. Raises InputError for a folder that holds anything else.
    """
    storage.refuse_foreign_files(
        str(output),
        lambda path: bool(_FILES.fullmatch(path)),
        "a folder of scenes",
        "give a new or empty folder as --output",
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "classes.json").write_text(json.dumps(CLASSES, indent=2) + "\n")
    for number in range(count):
        place, index = number % places, number // places
        scene = render_scene(place, index, seed, size)
        folder, stem = f"place_{place:02d}", f"place_{place:02d}_{index:04d}"
        _save(scene.image, output / "images" / folder / f"{stem}.jpg")
        _save(scene.mask, output / "masks" / folder / f"{stem}.png")
        if progress is not None:
            progress(number + 1)
    return count


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=92)  # PNG has no quality and takes no notice


def _paint(place: Place, view: View, things: list[Thing], cloud_drift: float) -> Image.Image:
    """Paint the image on an RGBA canvas of twice the size; the fourth channel is the label."""
    size = (view.width, view.height)
    canvas = sky(view, place, cloud_drift).resize(size, Image.Resampling.BILINEAR)
    canvas.putalpha(0)
    stage = Stage(ImageDraw.Draw(canvas), view, place.light)
    paint_far(stage, place)
    for ground in place.grounds:
        paint_ground(stage, ground)
    canvas = roughen(canvas, view)
    stage = Stage(ImageDraw.Draw(canvas), view, place.light)
    cast_shadows(canvas, stage, [shape for thing in things for shape in _shadow(thing)])
    for house in sorted(place.houses, key=lambda house: -house_depth(view, house)):
        paint_house(stage, house)
    for thing in things:
        _paint_thing(stage, thing)
    return canvas


def _shadow(thing: Thing) -> list[Points]:
    match thing:
        case Car():
            return car_shadow(thing)
        case Person():
            return person_shadow(thing)
        case Tree():
            return tree_shadow(thing)
        case Prop():
            return []


def _paint_thing(stage: Stage, thing: Thing) -> None:
    match thing:
        case Car():
            paint_car(stage, thing)
        case Person():
            paint_person(stage, thing)
        case Tree():
            paint_tree(stage, thing)
        case Prop():
            paint_prop(stage, thing)


def _develop(rng: Rng, canvas: Image.Image, night: bool) -> Scene:
    """Reduce the canvas to half its size with the exposure, cast, blur and noise of a camera."""
    mask = _majority(np.asarray(canvas.getchannel("A")))
    image = canvas.convert("RGB").reduce(2)
    if night:
        image = Image.blend(image, image.filter(ImageFilter.GaussianBlur(3)), 0.25)
    softness = float(rng.choice([0.0, 0.0, 0.5, 0.8]))
    if softness:
        image = image.filter(ImageFilter.GaussianBlur(softness * image.height / 240))
    pixels = np.asarray(image.point(_exposure(rng)), dtype=np.float32)
    noise = rng.standard_normal((*mask.shape, 1), dtype=np.float32) * between(rng, 1, 5)
    pixels = pixels * _leaf_grain(rng, mask)[..., None] + noise
    return Scene(np.clip(pixels, 0, 255).astype(np.uint8), mask)


def _majority(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the commonest label of each 2 x 2 block, (2H, 2W) -> (H, W); ties: the lowest."""
    blocks = np.stack([labels[i::2, j::2] for i in (0, 1) for j in (0, 1)])
    votes = np.stack([(blocks == label).sum(axis=0, dtype=np.uint8) for label in range(4)])
    return np.asarray(votes.argmax(axis=0), dtype=np.uint8)


def _exposure(rng: Rng) -> list[int]:
    """Return a camera's brightness, cast and contrast as a table of 3 x 256 levels."""
    gain, contrast = between(rng, 0.84, 1.14) * rng.normal(1, 0.02, 3), between(rng, 0.72, 1.1)
    levels = (np.arange(256) * gain[:, None] - 118) * contrast + 118
    return [int(level) for level in np.clip(levels, 0, 255).ravel()]


def _leaf_grain(rng: Rng, mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Factor (H, W) that dapples trees and leaves the rest at 1."""
    height, width = mask.shape
    dapple = smooth_noise(rng, (width, height), (width // 4 + 1, height // 4 + 1), 1) - 0.5
    return np.asarray(1 + 0.5 * dapple * (mask == TREE), dtype=np.float32)
