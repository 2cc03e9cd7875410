"""Trees: trunks, and foliage built of many small ragged clumps, dark ones first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segrec_batch.sample_data.paint import (
    Brush,
    Colour,
    Points,
    Rng,
    Stage,
    between,
    dim,
    mix,
    ring,
)

TREE = 3

LEAVES: tuple[Colour, ...] = (
    (74, 124, 44), (96, 142, 52), (52, 104, 52), (120, 150, 60), (66, 110, 72), (88, 132, 60),
    (60, 92, 44), (130, 140, 80), (78, 116, 36),
    (206, 132, 36), (196, 84, 32), (214, 176, 56), (142, 52, 40),
)  # fmt: skip
NEEDLES: tuple[Colour, ...] = ((36, 80, 50), (48, 92, 66), (62, 100, 52))
_BARK: tuple[Colour, ...] = ((92, 70, 50), (74, 60, 48), (116, 100, 84), (196, 190, 180))


@dataclass(frozen=True)
class Tree:
    """A tree at (x, z): `kind` is broad, column, conifer, palm or bare; `low` the crown's foot.

    `height` and `low` are metres; `leaf` is the mean colour of the foliage.
    """

    x: float
    z: float
    kind: str
    height: float
    low: float
    leaf: Colour
    seed: int


@dataclass(frozen=True)
class _Plant:
    """Paints in metres: x to the right, y up from the foot of the trunk."""

    brush: Brush
    foot: Points
    scale: float  # pixels per metre
    light: Points  # (2,) side the light comes from
    rng: Rng

    def at(self, points: Points) -> Points:
        return self.foot + points * (self.scale, -self.scale)

    def bough(self, a: Points, b: Points, wide: float, narrow: float, colour: Colour) -> None:
        """Paint a tapered piece of wood, lit from one side; widths are metres."""
        (ax, ay), (bx, by) = a.tolist(), b.tolist()
        length = max(math.hypot(bx - ax, by - ay), 1e-6)
        px, py = (ay - by) / length, (bx - ax) / length
        if px * self.light[0] + py * self.light[1] < 0:
            px, py = -px, -py
        for low, high, tone in ((-0.5, 0.5, 0.66), (-0.2, 0.46, 0.86), (0.1, 0.46, 1.05))[
            : 3 if wide * self.scale > 4 else 1
        ]:
            ends = [
                (ax, ay, wide * low),
                (ax, ay, wide * high),
                (bx, by, narrow * high),
                (bx, by, narrow * low),
            ]
            self.brush.polygon(
                self.at(np.array([(x + px * w, y + py * w) for x, y, w in ends])), dim(colour, tone)
            )

    def clumps(self, centres: Points, radii: Points, tones: Points, leaf: Colour) -> None:
        """Ragged blobs at (n, 2), radii (n,), brightness (n,) 0-1 of the leaf colour."""
        count = len(centres)
        angles = np.linspace(0, 2 * math.pi, 8, endpoint=False) + self.rng.uniform(0, 1, (count, 1))
        reach = radii[:, None] * self.rng.uniform(0.55, 1.25, (count, 8))
        shapes = (
            centres[:, None]
            + np.stack([np.cos(angles), 0.85 * np.sin(angles)], axis=-1) * reach[..., None]
        )
        dark, bright = (
            np.array(dim(leaf, 0.42)),
            np.array(mix(dim(leaf, 1.25), (255, 250, 190), 0.12)),
        )
        colours = dark + (bright - dark) * np.clip(tones, 0, 1)[:, None]
        self.brush.polygons(self.at(shapes), colours * self.rng.uniform(0.9, 1.1, (count, 3)))

    def count(self, extent: float, low: int, high: int) -> int:
        """Return the number of details for an object of `extent` metres."""
        return int(np.clip(extent * self.scale * 0.9, low, high))


def _disc(rng: Rng, count: int) -> Points:
    """Random points (count, 2) of the unit disc."""
    turn, reach = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.random(count))
    return np.stack([np.cos(turn) * reach, np.sin(turn) * reach], axis=-1)


def _spiral(rng: Rng, count: int) -> Points:
    """Points (count, 2) spread over the unit disc, no two close together."""
    turn = 2.4 * np.arange(count) + between(rng, 0, 2 * math.pi)
    reach = np.sqrt((np.arange(count) + rng.uniform(0.1, 0.9, count)) / count)
    return np.stack([np.cos(turn) * reach, np.sin(turn) * reach], axis=-1)


def _crown(plant: _Plant, tree: Tree, width: float) -> None:
    """Foliage from `low` to the top: lobes around a middle, each a heap of clumps."""
    rng = plant.rng
    size = np.array([width / 2, (tree.height - tree.low) / 2])
    middle = np.array([0.0, (tree.height + tree.low) / 2])
    lobes = _spiral(rng, 9) * 0.62
    lobe_radius = rng.uniform(0.34, 0.52, 9)
    slim = float(max(size.max() / size.min(), 1.0))
    for count, radius, bright in (
        (int(slim * plant.count(1.2 * width, 24, 110)), 0.21, 0.0),
        (plant.count(1.5 * width, 14, 260), 0.1, 0.24),
        (plant.count(1.8 * width - 350 / plant.scale, 0, 600), 0.05, 0.34),
    ):
        which = rng.integers(9, size=count)
        inner = _disc(rng, count)
        spots = lobes[which] + inner * lobe_radius[which, None]
        lit = 0.24 + bright + 0.22 * (spots @ plant.light) + 0.2 * (inner @ plant.light)
        tones = lit + rng.normal(0, 0.11, count)
        order: NDArray[np.int64] = np.argsort(tones + rng.normal(0, 0.15, count))
        radii = rng.uniform(0.6, 1.3, count) * radius * float(size.min())
        plant.clumps((middle + spots * size)[order], radii[order], tones[order], tree.leaf)


def _branches(
    plant: _Plant, start: Points, angle: float, length: float, wide: float, depth: int, bark: Colour
) -> None:
    end = start + length * np.array([math.sin(angle), math.cos(angle)])
    plant.bough(start, end, wide, wide * 0.68, bark)
    if depth == 0 or length * plant.scale < 2.5:
        return
    for turn in (-0.45, 0.4) if depth % 2 else (-0.55, 0.05, 0.5):
        bend = angle + turn * between(plant.rng, 0.6, 1.3)
        share = between(plant.rng, 0.62, 0.82)
        _branches(plant, end, bend, length * share, wide * 0.66, depth - 1, bark)


def _leafy(plant: _Plant, tree: Tree, bark: Colour) -> None:
    width = (tree.height - tree.low) * between(plant.rng, 0.85, 1.2)
    wide = 0.06 * tree.height
    fork = np.array([0.0, tree.low + 0.25 * (tree.height - tree.low)])
    plant.bough(np.zeros(2), fork, 1.25 * wide, 0.8 * wide, bark)
    for side in (-1, 1):
        tip = fork + np.array([side * 0.28 * width, 0.3 * (tree.height - tree.low)])
        plant.bough(fork - (0, 0.1 * tree.height), tip, 0.6 * wide, 0.25 * wide, bark)
    _crown(plant, tree, width)


def _column(plant: _Plant, tree: Tree, bark: Colour) -> None:
    plant.bough(
        np.zeros(2), np.array([0.0, tree.low + 1.0]), 0.05 * tree.height, 0.04 * tree.height, bark
    )
    _crown(plant, tree, 0.3 * (tree.height - tree.low))


def _conifer(plant: _Plant, tree: Tree, bark: Colour) -> None:
    plant.bough(np.zeros(2), np.array([0.0, tree.height * 0.9]), 0.05 * tree.height, 0.01, bark)
    width = (tree.height - tree.low) * between(plant.rng, 0.4, 0.6)
    count = plant.count(4.0 * width, 40, 420)
    level = np.sort(1 - np.sqrt(plant.rng.random(count)))
    tier = (level * 8) % 1.0
    half = width / 2 * (1 - level) * (1.05 - 0.35 * tier) + 0.05
    side = plant.rng.uniform(-1, 1, count)
    drop = 0.12 * np.abs(side) * (1 - level) * width
    spots = np.stack([side * half, tree.low + level * (tree.height - tree.low) - drop], axis=-1)
    tones = 0.36 + 0.22 * side * plant.light[0] - 0.3 * tier + plant.rng.normal(0.1, 0.13, count)
    plant.clumps(spots, width * (0.05 + 0.07 * (1 - level)), tones, tree.leaf)


def _palm(plant: _Plant, tree: Tree, bark: Colour) -> None:
    lean, steps = between(plant.rng, -0.12, 0.12), 7
    rise = np.linspace(0, 1, steps)
    stem = np.stack([lean * tree.height * rise**2, tree.height * 0.82 * rise], axis=-1)
    for a, b in pairwise(stem):
        plant.bough(a, b, 0.045 * tree.height, 0.036 * tree.height, bark)
    reach = 0.36 * tree.height
    along = np.linspace(0, 1, 9)
    for angle in plant.rng.permutation(np.linspace(-2.5, 2.5, 15)):
        bend = between(plant.rng, 0.5, 0.85) * reach
        x = np.sin(angle / 1.5) * reach * along
        y = (
            reach * 0.55 * np.cos(angle) * along
            - bend * along**2 * abs(math.sin(angle / 1.5))
            + 0.12 * reach * along
        )
        rib = stem[-1] + np.stack([x, y], axis=-1)
        thick = (0.11 * np.sin(math.pi * along**0.7) * np.where(np.arange(9) % 2, 1.0, 0.5))[
            :, None
        ] * reach
        frond = np.concatenate([rib + thick * (0.1, 0.55), (rib - thick * (0.1, 1.0))[::-1]])
        tone = 0.75 + 0.3 * math.cos(angle) + float(plant.rng.normal(0, 0.1))
        plant.brush.polygon(plant.at(frond), dim(tree.leaf, tone))


def _bare(plant: _Plant, tree: Tree, bark: Colour) -> None:
    depth = 6 if tree.height * plant.scale > 240 else 4
    _branches(plant, np.zeros(2), 0.0, tree.height * 0.3, 0.055 * tree.height, depth, bark)


_KINDS: dict[str, Callable[[_Plant, Tree, Colour], None]] = {
    "broad": _leafy, "column": _column, "conifer": _conifer, "palm": _palm, "bare": _bare,
}  # fmt: skip


def tree_shadow(tree: Tree) -> list[Points]:
    """World points, (n, 3) for trunk and crown, whose fall along the light is the shadow."""
    share = {"broad": 0.45, "bare": 0.2, "palm": 0.3, "column": 0.15, "conifer": 0.22}[tree.kind]
    wide, stem = share * (tree.height - tree.low), 0.03 * tree.height
    top = 0.1 if tree.kind == "conifer" else 0.6 * wide
    low = 0.75 * tree.height if tree.kind == "palm" else tree.low + 0.2
    parts = (((stem, 0.0), (stem, low)), ((wide, low), (top, tree.height)))
    return [np.concatenate([ring(tree.x, tree.z, r, y) for r, y in part]) for part in parts]


def paint_tree(stage: Stage, tree: Tree) -> None:
    """Paint the tree, label 3."""
    rng = np.random.default_rng(tree.seed)
    foot, scale = stage.upright(tree.x, tree.z)
    sun = stage.view.rotate(np.array(stage.light.sun))[:2]
    plant = _Plant(stage.brush(TREE, stage.view.focal / scale), foot, scale, sun, rng)
    _KINDS[tree.kind](plant, tree, _BARK[int(rng.integers(len(_BARK)))])
