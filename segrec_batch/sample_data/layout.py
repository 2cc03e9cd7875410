"""Building blocks of places: roads, houses, rows of trees and of street furniture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from segrec_batch.sample_data.paint import Colour, Rng, between, dim, new_seed
from segrec_batch.sample_data.places import Ground, House, Lane, Prop, Span
from segrec_batch.sample_data.trees import LEAVES, NEEDLES, Tree

ASPHALT: tuple[Colour, ...] = ((98, 98, 102), (122, 120, 118), (84, 86, 92))
PAVING: tuple[Colour, ...] = ((168, 162, 152), (186, 176, 160), (150, 148, 146))
GRASS: tuple[Colour, ...] = ((112, 150, 66), (134, 156, 76), (92, 134, 70), (162, 158, 92))
WALLS: tuple[Colour, ...] = (
    (176, 106, 84), (214, 196, 166), (164, 160, 154), (198, 158, 108), (228, 222, 210),
    (136, 92, 78), (150, 168, 178), (222, 188, 152), (190, 140, 132), (120, 124, 130),
)  # fmt: skip
ROOFS: tuple[Colour, ...] = ((142, 76, 58), (94, 90, 92), (120, 98, 84), (74, 80, 94))
WHITE: Colour = (224, 224, 216)


def pick_colour(rng: Rng, colours: tuple[Colour, ...]) -> Colour:
    """Pick one of the colours and vary its brightness."""
    return dim(colours[int(rng.integers(len(colours)))], between(rng, 0.92, 1.08))


def steps(start: float, stop: float, step: float) -> list[float]:
    """Return the numbers from `start` up to `stop`, `step` apart."""
    return [float(value) for value in np.arange(start, stop, step)]


def rectangles(colour: Colour, rough: int, *spans: tuple[float, float, float, float]) -> Ground:
    """Return rectangles on the ground, each x0 x1 z0 z1."""
    quads = np.array([[(a, c), (b, c), (b, d), (a, d)] for a, b, c, d in spans], dtype=np.float64)
    return Ground(quads, colour, rough)


def plain(colour: Colour, rough: int) -> Ground:
    """Return ground that reaches to the horizon."""
    return rectangles(colour, rough, (-140, 140, -60, 400))


def strip(x0: float, x1: float, colour: Colour, rough: int = 90) -> Ground:
    """Return a strip of ground along z, from `x0` to `x1`."""
    return rectangles(colour, rough, (x0, x1, -60, 300))


def dashes(x: float) -> Ground:
    """Return a dashed lane marking along z."""
    return rectangles(WHITE, 60, *[(x - 0.07, x + 0.07, z, z + 3.0) for z in steps(-40, 110, 8)])


def road(rng: Rng, half: float, walk: float, lanes: int = 2) -> tuple[Ground, ...]:
    """Add a road along z: pavements, kerbs, asphalt, edge lines and lane markings."""
    paving = pick_colour(rng, PAVING)
    edges = [s * (half - 0.3) for s in (-1, 1)]
    return (
        strip(-half - walk, half + walk, paving, 60),
        strip(-half - 0.18, half + 0.18, dim(paving, 1.12), 40),
        strip(-half, half, pick_colour(rng, ASPHALT)),
        *[strip(x - 0.06, x + 0.06, WHITE, 60) for x in edges],
        *[dashes(-half + 2 * half * i / lanes) for i in range(1, lanes)],
    )


def zebra(half: float, z: float) -> Ground:
    """Return a zebra crossing at `z`, across a road of half width `half`."""
    return rectangles(
        WHITE, 60, *[(x, x + 0.5, z, z + 3) for x in steps(0.3 - half, half - 0.5, 1)]
    )


def flora(rng: Rng, kinds: tuple[str, ...]) -> tuple[str, Colour]:
    """Draw a species from `kinds`; return its kind and the colour of its leaves."""
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "conifer":
        return kind, pick_colour(rng, NEEDLES)
    return kind, pick_colour(rng, LEAVES[:4] if kind == "palm" else LEAVES)


def place_tree(rng: Rng, x: float, z: float, species: tuple[str, Colour]) -> Tree:
    """Return a tree at (x, z) with a random height."""
    kind, leaf = species
    tall = {"broad": 7.0, "column": 11.0, "conifer": 9.0, "palm": 8.0, "bare": 7.5}[kind]
    height = tall * between(rng, 0.75, 1.25)
    low = height * {"broad": 0.27, "column": 0.12, "conifer": 0.1, "palm": 0.3, "bare": 0.3}[kind]
    return Tree(x, z, kind, height, low, dim(leaf, between(rng, 0.85, 1.15)), new_seed(rng))


def tree_rows(rng: Rng, xs: Sequence[float], pitch: float, *kinds: str) -> tuple[Tree, ...]:
    """Return trees of one or two species in rows along z, one row at each x."""
    species = [flora(rng, kinds) for _ in range(2)]
    return tuple(
        place_tree(
            rng,
            x + between(rng, -0.4, 0.4),
            z + between(rng, -0.2, 0.2) * pitch,
            species[int(rng.random() < 0.25)],
        )
        for x in xs
        for z in steps(5 + pitch * between(rng, 0, 1), 80, pitch)
    )


def place_props(rng: Rng, xs: Sequence[float], pitch: float, *kinds: str) -> tuple[Prop, ...]:
    """Return street furniture in rows along z, one row at each x."""
    return tuple(
        Prop(str(rng.choice(kinds)), x, z + between(rng, 0, 0.4) * pitch, new_seed(rng))
        for x in xs
        for z in steps(3, 70, pitch)
    )


def rails(x: float) -> tuple[Prop, ...]:
    """Return a railing along z."""
    return tuple(Prop("rail", x, z, 0) for z in steps(3, 70, 2.8))


def build_house(
    rng: Rng, x: Span, z: Span, height: float, gable: bool = False, shop: bool = False
) -> House:
    """Return a house in random colours."""
    roof = pick_colour(rng, ROOFS) if gable else None
    return House(
        (min(x), max(x)), z, height, pick_colour(rng, WALLS), new_seed(rng), roof=roof, shop=shop
    )


def terrace(rng: Rng, front: float, floors: tuple[int, int], shops: float) -> tuple[House, ...]:
    """Return houses wall to wall along z, with their fronts at x = `front`."""
    houses, z, back = [], -45.0, front + math.copysign(12, front)
    while z < 110:
        width, height = between(rng, 8, 17), 3.2 * int(rng.integers(*floors)) + 1.2
        shop = bool(rng.random() < shops)
        houses.append(build_house(rng, (front, back), (z, z + width), height, shop=shop))
        z += width
    return tuple(houses)


def two_way(half: float) -> tuple[Lane, ...]:
    """Return two lanes with opposite directions."""
    return Lane(-half / 2, math.pi), Lane(half / 2, 0.0)


def pavements(half: float, walk: float) -> tuple[Span, ...]:
    """Return the spans of both pavements of a road."""
    return (-half - walk + 0.2, -half - 0.3), (half + 0.3, half + walk - 0.2)
