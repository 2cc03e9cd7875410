"""Eight kinds of place: street, park, parking, suburb, square, country, waterfront, highway."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from segrec_batch.sample_data.layout import (
    ASPHALT,
    GRASS,
    PAVING,
    WHITE,
    build_house,
    flora,
    pavements,
    pick_colour,
    place_props,
    place_tree,
    plain,
    rails,
    rectangles,
    road,
    steps,
    strip,
    terrace,
    tree_rows,
    two_way,
    zebra,
)
from segrec_batch.sample_data.paint import Rng, between, dim, new_seed
from segrec_batch.sample_data.places import LIGHTS, House, Lane, Place, Prop


def _street(rng: Rng) -> Place:
    half, walk = between(rng, 3.4, 5.4), between(rng, 2.6, 4.0)
    yaw = float(rng.choice([0.1, 0.3, 1.05, -1.1, -0.3]))
    floors, kerbs = ((3, 8) if rng.random() < 0.6 else (2, 4)), (-half - 0.8, half + 0.8)
    trees = tree_rows(rng, kerbs, between(rng, 9, 14), "broad", "column", "bare")
    parked = (Lane(-half + 1.2, math.pi, 6.2), Lane(half - 1.2, 0.0, 6.2))
    return Place(
        grounds=(
            plain(pick_colour(rng, PAVING), 90),
            *road(rng, half, walk),
            zebra(half, between(rng, 9, 16)),
        ),
        houses=terrace(rng, -half - walk, floors, 0.6) + terrace(rng, half + walk, floors, 0.6),
        far="skyline",
        lanes=two_way(half) + parked,
        walks=pavements(half, walk),
        reach=70,
        trees=trees if rng.random() < 0.5 else (),
        props=place_props(
            rng, (-half - 0.5, half + 0.5), 8.0, "lamp", "sign", "bin", "lamp", "light"
        ),
        yaw=yaw,
        x=-math.copysign(half + 1.4, yaw) if abs(yaw) > 0.2 else 0.4 * half,
    )


def _suburb(rng: Rng) -> Place:
    half, walk, yaw = between(rng, 2.9, 3.6), 1.6, float(rng.choice([0.25, -0.3, 0.75, -0.75]))
    front, pitch = half + walk + between(rng, 5, 8), between(rng, 14, 17)
    plots = [(side, z) for side in (-1, 1) for z in steps(-30, 90, pitch)]
    houses = [
        build_house(
            rng,
            (s * front, s * (front + 8)),
            (z, z + between(rng, 8.5, 11)),
            between(rng, 3.2, 6.2),
            gable=True,
        )
        for s, z in plots
    ]
    drives = [(s * half, s * front, z - 3.0, z - 0.4) for s, z in plots]
    return Place(
        grounds=(
            plain(pick_colour(rng, GRASS), 200),
            rectangles(pick_colour(rng, PAVING), 90, *drives),
            *road(rng, half, walk),
        ),
        houses=tuple(houses),
        far="hills",
        lanes=(*two_way(half), Lane(half - 1.0, 0.0, 7.0)),
        walks=pavements(half, walk),
        reach=70,
        trees=tree_rows(
            rng, (-half - walk - 2, half + walk + 2), 12.0, "broad", "conifer", "broad"
        ),
        props=place_props(rng, (-half - 0.4, half + 0.4), 13.0, "pole", "bin", "sign", "lamp"),
        yaw=yaw,
        x=-math.copysign(half + 1.0, yaw),
    )


def _park(rng: Rng) -> Place:
    path, cross, mown = between(rng, 1.2, 1.9), between(rng, 14, 26), pick_colour(rng, GRASS)
    sand = pick_colour(rng, ((206, 190, 154), (178, 170, 158)))
    species = [flora(rng, ("broad", "broad", "conifer", "column", "bare")) for _ in range(3)]
    trees = [
        place_tree(
            rng, x + between(rng, -3, 3), z + between(rng, -3, 3), species[int(rng.integers(3))]
        )
        for x in steps(-36, 37, 8)
        for z in steps(7, 75, 9)
        if abs(x) > path + 3 and rng.random() < 0.55
    ]
    return Place(
        grounds=(
            plain(mown, 230),
            rectangles(dim(mown, 1.07), 200, *[(-60, 60, z, z + 4) for z in steps(2, 90, 8)]),
            strip(-path, path, sand),
            rectangles(sand, 90, (-80, 80, cross, cross + 2.4)),
        ),
        far=str(rng.choice(["hills", "skyline"])),
        walks=((-path, path), (-path - 3, path + 3), (-14, 14)),
        reach=45,
        trees=tuple(trees),
        props=place_props(rng, (-path - 0.8, path + 0.8), 9.0, "bench", "lamp", "bin"),
        yaw=between(rng, -0.4, 0.4),
        x=between(rng, -1.5, 1.5),
    )


def _country(rng: Rng) -> Place:
    half, crops = between(rng, 2.7, 3.3), (*GRASS, (196.0, 172.0, 96.0), (142.0, 112.0, 80.0))
    fields = [
        rectangles(pick_colour(rng, crops), 220, (s * (half + 1.5), s * 120, z, z + 60))
        for s in (-1, 1)
        for z in (-20, 22, 60)
    ]
    kinds = ("broad", "column", "conifer", "bare")
    return Place(
        grounds=(plain(pick_colour(rng, GRASS), 230), *fields, *road(rng, half, 0.0)[2:]),
        houses=(build_house(rng, (between(rng, 14, 24), 34), (48, 58), 4.5, gable=True),),
        far="hills",
        far_colour=(98, 128, 108),
        lanes=two_way(half),
        walks=pavements(half, 1.8),
        reach=60,
        trees=tree_rows(rng, (-half - 4, half + 5), between(rng, 12, 22), *kinds),
        props=place_props(rng, (half + 2.2,), 16.0, "pole") + rails(-half - 2.0),
        yaw=between(rng, -0.35, 0.35),
        x=between(rng, -half, half),
    )


def _parking(rng: Rng) -> Place:
    rows, nose = (-16.0, -10.6, 5.0, 10.4), math.pi / 2
    bays = [(x - 2.5, x + 2.5, z, z + 0.1) for x in rows for z in steps(1.35, 60, 2.7)]
    store = build_house(rng, (-40, 40), (62, 80), 7.0, shop=True)
    wing = build_house(rng, (19, 34), (-10, 40), 8.0, shop=True)
    trees = tree_rows(rng, (-13.3,), 11.0, "broad", "palm", "column")
    return Place(
        grounds=(
            plain(pick_colour(rng, ASPHALT), 90),
            rectangles(WHITE, 60, *bays),
            rectangles(pick_colour(rng, GRASS), 220, (-14, -12.6, 0, 58)),
        ),
        houses=(store, wing) if rng.random() < 0.6 else (store,),
        far="hills",
        lanes=tuple(Lane(x, -nose if i % 2 else nose, 2.7) for i, x in enumerate(rows)),
        walks=((-6, 1.5), (12, 16)),
        reach=56,
        trees=trees if rng.random() < 0.5 else (),
        props=place_props(rng, (-8.0, 2.2), 14.0, "lamp", "sign"),
        yaw=float(rng.choice([-0.6, 0.5, 0.0, 0.8])),
        x=between(rng, -5, 0),
    )


def _square(rng: Rng) -> Place:
    paving, depth = pick_colour(rng, PAVING), between(rng, 30, 42)
    joints = [(-40.0, 40.0, z, z + 0.08) for z in steps(1, depth, 2)]
    joints += [(x, x + 0.06, -10.0, depth) for x in steps(-30, 31, 2)]
    back = [
        build_house(
            rng, (x, x + 11), (depth, depth + 10), 3.2 * int(rng.integers(3, 7)) + 1.2, shop=True
        )
        for x in steps(-33, 33, 11)
    ]
    fountain = Prop("fountain", between(rng, -5, 5), depth * 0.6, 0)
    trees = tree_rows(rng, (-13.0, 13.0), 8.0, "broad", "palm", "column")
    return Place(
        grounds=(plain(paving, 70), rectangles(dim(paving, 0.84), 60, *joints)),
        houses=(*terrace(rng, -24, (3, 6), 0.3), *terrace(rng, 24, (3, 6), 0.3), *back),
        far="nothing",
        walks=((-16, 16),),
        reach=depth - 3,
        trees=trees if rng.random() < 0.4 else (),
        props=(fountain, *place_props(rng, (-9.0, 9.0), 10.0, "lamp", "bench", "bin")),
        yaw=between(rng, -0.5, 0.5),
        x=between(rng, -4, 4),
    )


def _waterfront(rng: Rng) -> Place:
    edge = between(rng, 4, 6)
    sea = pick_colour(rng, ((72, 124, 150), (60, 104, 124), (104, 134, 146)))
    quay = [replace(g, quads=g.quads - np.array([10.0, 0.0])) for g in road(rng, 3.4, 2.0)]
    return Place(
        grounds=(
            plain(pick_colour(rng, PAVING), 70),
            rectangles(sea, 120, (edge, 200, -60, 400)),
            strip(edge - 0.5, edge, (196, 190, 180), 60),
            *quay,
        ),
        houses=terrace(rng, -17, (3, 7), 0.4),
        far="skyline",
        far_colour=(136, 148, 162),
        lanes=(Lane(-11.7, math.pi), Lane(-8.3, 0.0), Lane(-7.9, 0.0, 6.5)),
        walks=((-4.5, edge - 1),),
        reach=60,
        trees=tree_rows(rng, (-3.5,), between(rng, 7, 10), "palm", "palm", "broad"),
        props=rails(edge - 0.3) + place_props(rng, (0.8,), 9.0, "lamp", "bench", "bin"),
        yaw=float(rng.choice([-0.45, 0.2, 0.35, -0.9])),
        x=between(rng, -2, 1.5),
    )


def _highway(rng: Rng) -> Place:
    half, height = between(rng, 6.8, 8.0), between(rng, 0.8, 3.2)
    wall = pick_colour(rng, ((150, 150, 146), (120, 132, 112), (166, 146, 122)))
    barriers = [
        House((x - 0.2, x + 0.2), (z, z + 12), height, dim(wall, 0.96 + 0.04 * (z % 24 > 11)), 0)
        for x in (-half - 2, half + 2)
        for z in steps(-36, 120, 12)
    ]
    trees = tree_rows(rng, (half + 6,), 15.0, "conifer", "broad", "column")
    return Place(
        grounds=(plain(pick_colour(rng, GRASS), 220), *road(rng, half, 1.6, lanes=4)),
        houses=tuple(barriers),
        far=str(rng.choice(["hills", "skyline"])),
        lanes=tuple(Lane(half * s, math.pi if s < 0 else 0.0) for s in (-0.75, -0.25, 0.25, 0.75)),
        walks=pavements(half, 1.6),
        reach=80,
        trees=trees if rng.random() < 0.4 else (),
        props=place_props(rng, (half + 1.4,), 18.0, "lamp", "sign"),
        yaw=float(rng.choice([0.0, 0.2, -0.2, 0.7])),
        x=between(rng, -half * 0.6, half),
    )


_SETTINGS = (_street, _park, _parking, _suburb, _square, _country, _waterfront, _highway)


@lru_cache(maxsize=64)
def make_place(place: int, seed: int) -> Place:
    """Return setting number `place` (0 or more) of the family `seed`."""
    rng = np.random.default_rng([seed, place])
    return replace(
        _SETTINGS[place % len(_SETTINGS)](rng),
        light=LIGHTS[(3 * place + place // 8) % len(LIGHTS)],
        eye=float(rng.choice([1.4, 1.6, 1.9, 2.6, 4.2], p=[0.25, 0.3, 0.2, 0.15, 0.1])),
        focal=between(rng, 0.85, 1.35),
        horizon=between(rng, 0.38, 0.54),
        seed=new_seed(rng),
    )
