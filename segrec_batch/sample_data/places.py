"""Places: fixed settings laid out on the ground plane, each with its own light and camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from segrec_batch.sample_data.paint import Colour, Light, Points, Rng, between, dim, new_seed
from segrec_batch.sample_data.trees import LEAVES, NEEDLES, Tree

_ASPHALT: tuple[Colour, ...] = ((98, 98, 102), (122, 120, 118), (84, 86, 92))
_PAVING: tuple[Colour, ...] = ((168, 162, 152), (186, 176, 160), (150, 148, 146))
_GRASS: tuple[Colour, ...] = ((112, 150, 66), (134, 156, 76), (92, 134, 70), (162, 158, 92))
_WALLS: tuple[Colour, ...] = (
    (176, 106, 84), (214, 196, 166), (164, 160, 154), (198, 158, 108), (228, 222, 210),
    (136, 92, 78), (150, 168, 178), (222, 188, 152), (190, 140, 132), (120, 124, 130),
)  # fmt: skip
_ROOFS: tuple[Colour, ...] = ((142, 76, 58), (94, 90, 92), (120, 98, 84), (74, 80, 94))
_WHITE: Colour = (224, 224, 216)

_LIGHTS = (  # noon, overcast, dusk, clouds, night, fog, morning
    Light(
        (74, 130, 206), (196, 216, 234), (1.05, 1.04, 1.0), (0.48, 0.78, -0.4), 0.55, 0.003, 0.35
    ),
    Light((170, 176, 184), (206, 208, 210), (0.88, 0.9, 0.93), (0.0, 1.0, 0.0), 0.32, 0.006, 0.8),
    Light((92, 104, 152), (250, 186, 128), (1.12, 0.9, 0.7), (-0.85, 0.36, 0.38), 0.5, 0.006, 0.45),
    Light(
        (110, 158, 216), (222, 228, 230), (1.08, 1.03, 0.95), (-0.62, 0.6, -0.5), 0.5, 0.004, 0.6
    ),
    Light((14, 18, 40), (52, 50, 72), (0.5, 0.51, 0.64), (0.0, 1.0, 0.0), 0.35, 0.003, 0.3, True),
    Light((196, 200, 202), (216, 216, 214), (0.96, 0.96, 0.95), (0.0, 1.0, 0.0), 0.25, 0.013, 0.2),
    Light((84, 124, 190), (244, 216, 178), (1.1, 0.98, 0.82), (0.8, 0.45, 0.4), 0.55, 0.004, 0.3),
)

Span = tuple[float, float]


@dataclass(frozen=True)
class Ground:
    """Flat quads (n, 4, 2) of world (x, z) in one colour; `rough` 0-255 is how grainy it looks."""

    quads: Points
    colour: Colour
    rough: int = 90


@dataclass(frozen=True)
class House:
    """An upright block over x and z, metres; with a `roof` colour it has a gable."""

    x: Span
    z: Span
    height: float
    wall: Colour
    seed: int
    roof: Colour | None = None
    shop: bool = False


@dataclass(frozen=True)
class Prop:
    """Street furniture at (x, z): lamp, sign, light, bin, bench, pole, rail or fountain."""

    kind: str
    x: float
    z: float
    seed: int


@dataclass(frozen=True)
class Lane:
    """Where cars stand or drive: at `x`, nose towards `heading`, `pitch` metres apart (0: free)."""

    x: float
    heading: float
    pitch: float = 0.0


@dataclass(frozen=True)
class Place:
    """A setting: what stays the same in all images taken there.

    `far` is hills, skyline or nothing; `walks` are spans of x where people walk; things stand at
    most `reach` metres along z; focal length and horizon are shares of the image height.
    """

    grounds: tuple[Ground, ...]
    walks: tuple[Span, ...]
    reach: float
    x: float
    yaw: float
    far: str
    far_colour: Colour = (118, 134, 132)
    houses: tuple[House, ...] = ()
    lanes: tuple[Lane, ...] = ()
    trees: tuple[Tree, ...] = ()
    props: tuple[Prop, ...] = ()
    light: Light = _LIGHTS[0]
    eye: float = 1.6
    focal: float = 1.0
    horizon: float = 0.45
    seed: int = 0


def _pick(rng: Rng, colours: tuple[Colour, ...]) -> Colour:
    return dim(colours[int(rng.integers(len(colours)))], between(rng, 0.92, 1.08))


def _steps(start: float, stop: float, step: float) -> list[float]:
    return [float(value) for value in np.arange(start, stop, step)]


def _flat(colour: Colour, rough: int, *spans: tuple[float, float, float, float]) -> Ground:
    """Rectangles on the ground, each x0 x1 z0 z1."""
    quads = np.array([[(a, c), (b, c), (b, d), (a, d)] for a, b, c, d in spans], dtype=np.float64)
    return Ground(quads, colour, rough)


def _plain(colour: Colour, rough: int) -> Ground:
    return _flat(colour, rough, (-140, 140, -60, 400))


def _strip(x0: float, x1: float, colour: Colour, rough: int = 90) -> Ground:
    return _flat(colour, rough, (x0, x1, -60, 300))


def _dashes(x: float) -> Ground:
    return _flat(_WHITE, 60, *[(x - 0.07, x + 0.07, z, z + 3.0) for z in _steps(-40, 110, 8)])


def _road(rng: Rng, half: float, walk: float, lanes: int = 2) -> tuple[Ground, ...]:
    """A road along z: pavements, kerbs, asphalt, edge lines and lane markings."""
    paving = _pick(rng, _PAVING)
    edges = [s * (half - 0.3) for s in (-1, 1)]
    return (
        _strip(-half - walk, half + walk, paving, 60),
        _strip(-half - 0.18, half + 0.18, dim(paving, 1.12), 40),
        _strip(-half, half, _pick(rng, _ASPHALT)),
        *[_strip(x - 0.06, x + 0.06, _WHITE, 60) for x in edges],
        *[_dashes(-half + 2 * half * i / lanes) for i in range(1, lanes)],
    )


def _zebra(half: float, z: float) -> Ground:
    return _flat(_WHITE, 60, *[(x, x + 0.5, z, z + 3) for x in _steps(0.3 - half, half - 0.5, 1)])


def flora(rng: Rng, kinds: tuple[str, ...]) -> tuple[str, Colour]:
    """One species: its kind, drawn from `kinds`, and the colour of its leaves."""
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "conifer":
        return kind, _pick(rng, NEEDLES)
    return kind, _pick(rng, LEAVES[:4] if kind == "palm" else LEAVES)


def _tree(rng: Rng, x: float, z: float, species: tuple[str, Colour]) -> Tree:
    kind, leaf = species
    tall = {"broad": 7.0, "column": 11.0, "conifer": 9.0, "palm": 8.0, "bare": 7.5}[kind]
    height = tall * between(rng, 0.75, 1.25)
    low = height * {"broad": 0.27, "column": 0.12, "conifer": 0.1, "palm": 0.3, "bare": 0.3}[kind]
    return Tree(x, z, kind, height, low, dim(leaf, between(rng, 0.85, 1.15)), new_seed(rng))


def _row(rng: Rng, xs: Sequence[float], pitch: float, *kinds: str) -> tuple[Tree, ...]:
    """Trees of one or two species in rows along z, one row at each x."""
    species = [flora(rng, kinds) for _ in range(2)]
    return tuple(
        _tree(
            rng,
            x + between(rng, -0.4, 0.4),
            z + between(rng, -0.2, 0.2) * pitch,
            species[int(rng.random() < 0.25)],
        )
        for x in xs
        for z in _steps(5 + pitch * between(rng, 0, 1), 80, pitch)
    )


def _props(rng: Rng, xs: Sequence[float], pitch: float, *kinds: str) -> tuple[Prop, ...]:
    return tuple(
        Prop(str(rng.choice(kinds)), x, z + between(rng, 0, 0.4) * pitch, new_seed(rng))
        for x in xs
        for z in _steps(3, 70, pitch)
    )


def _rails(x: float) -> tuple[Prop, ...]:
    return tuple(Prop("rail", x, z, 0) for z in _steps(3, 70, 2.8))


def _house(
    rng: Rng, x: Span, z: Span, height: float, gable: bool = False, shop: bool = False
) -> House:
    roof = _pick(rng, _ROOFS) if gable else None
    return House(
        (min(x), max(x)), z, height, _pick(rng, _WALLS), new_seed(rng), roof=roof, shop=shop
    )


def _terrace(rng: Rng, front: float, floors: tuple[int, int], shops: float) -> tuple[House, ...]:
    """Houses wall to wall along z, fronts at x = `front`, away from the middle."""
    houses, z, back = [], -45.0, front + math.copysign(12, front)
    while z < 110:
        width, height = between(rng, 8, 17), 3.2 * int(rng.integers(*floors)) + 1.2
        shop = bool(rng.random() < shops)
        houses.append(_house(rng, (front, back), (z, z + width), height, shop=shop))
        z += width
    return tuple(houses)


def _two_way(half: float) -> tuple[Lane, ...]:
    return Lane(-half / 2, math.pi), Lane(half / 2, 0.0)


def _beside(half: float, walk: float) -> tuple[Span, ...]:
    """Both pavements of a road."""
    return (-half - walk + 0.2, -half - 0.3), (half + 0.3, half + walk - 0.2)


def _street(rng: Rng) -> Place:
    half, walk = between(rng, 3.4, 5.4), between(rng, 2.6, 4.0)
    yaw = float(rng.choice([0.1, 0.3, 1.05, -1.1, -0.3]))
    floors, kerbs = ((3, 8) if rng.random() < 0.6 else (2, 4)), (-half - 0.8, half + 0.8)
    trees = _row(rng, kerbs, between(rng, 9, 14), "broad", "column", "bare")
    parked = (Lane(-half + 1.2, math.pi, 6.2), Lane(half - 1.2, 0.0, 6.2))
    return Place(
        grounds=(
            _plain(_pick(rng, _PAVING), 90),
            *_road(rng, half, walk),
            _zebra(half, between(rng, 9, 16)),
        ),
        houses=_terrace(rng, -half - walk, floors, 0.6) + _terrace(rng, half + walk, floors, 0.6),
        far="skyline",
        lanes=_two_way(half) + parked,
        walks=_beside(half, walk),
        reach=70,
        trees=trees if rng.random() < 0.5 else (),
        props=_props(rng, (-half - 0.5, half + 0.5), 8.0, "lamp", "sign", "bin", "lamp", "light"),
        yaw=yaw,
        x=-math.copysign(half + 1.4, yaw) if abs(yaw) > 0.2 else 0.4 * half,
    )


def _suburb(rng: Rng) -> Place:
    half, walk, yaw = between(rng, 2.9, 3.6), 1.6, float(rng.choice([0.25, -0.3, 0.75, -0.75]))
    front, pitch = half + walk + between(rng, 5, 8), between(rng, 14, 17)
    plots = [(side, z) for side in (-1, 1) for z in _steps(-30, 90, pitch)]
    houses = [
        _house(
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
            _plain(_pick(rng, _GRASS), 200),
            _flat(_pick(rng, _PAVING), 90, *drives),
            *_road(rng, half, walk),
        ),
        houses=tuple(houses),
        far="hills",
        lanes=(*_two_way(half), Lane(half - 1.0, 0.0, 7.0)),
        walks=_beside(half, walk),
        reach=70,
        trees=_row(rng, (-half - walk - 2, half + walk + 2), 12.0, "broad", "conifer", "broad"),
        props=_props(rng, (-half - 0.4, half + 0.4), 13.0, "pole", "bin", "sign", "lamp"),
        yaw=yaw,
        x=-math.copysign(half + 1.0, yaw),
    )


def _park(rng: Rng) -> Place:
    path, cross, mown = between(rng, 1.2, 1.9), between(rng, 14, 26), _pick(rng, _GRASS)
    sand = _pick(rng, ((206, 190, 154), (178, 170, 158)))
    species = [flora(rng, ("broad", "broad", "conifer", "column", "bare")) for _ in range(3)]
    trees = [
        _tree(rng, x + between(rng, -3, 3), z + between(rng, -3, 3), species[int(rng.integers(3))])
        for x in _steps(-36, 37, 8)
        for z in _steps(7, 75, 9)
        if abs(x) > path + 3 and rng.random() < 0.55
    ]
    return Place(
        grounds=(
            _plain(mown, 230),
            _flat(dim(mown, 1.07), 200, *[(-60, 60, z, z + 4) for z in _steps(2, 90, 8)]),
            _strip(-path, path, sand),
            _flat(sand, 90, (-80, 80, cross, cross + 2.4)),
        ),
        far=str(rng.choice(["hills", "skyline"])),
        walks=((-path, path), (-path - 3, path + 3), (-14, 14)),
        reach=45,
        trees=tuple(trees),
        props=_props(rng, (-path - 0.8, path + 0.8), 9.0, "bench", "lamp", "bin"),
        yaw=between(rng, -0.4, 0.4),
        x=between(rng, -1.5, 1.5),
    )


def _country(rng: Rng) -> Place:
    half, crops = between(rng, 2.7, 3.3), (*_GRASS, (196.0, 172.0, 96.0), (142.0, 112.0, 80.0))
    fields = [
        _flat(_pick(rng, crops), 220, (s * (half + 1.5), s * 120, z, z + 60))
        for s in (-1, 1)
        for z in (-20, 22, 60)
    ]
    kinds = ("broad", "column", "conifer", "bare")
    return Place(
        grounds=(_plain(_pick(rng, _GRASS), 230), *fields, *_road(rng, half, 0.0)[2:]),
        houses=(_house(rng, (between(rng, 14, 24), 34), (48, 58), 4.5, gable=True),),
        far="hills",
        far_colour=(98, 128, 108),
        lanes=_two_way(half),
        walks=_beside(half, 1.8),
        reach=60,
        trees=_row(rng, (-half - 4, half + 5), between(rng, 12, 22), *kinds),
        props=_props(rng, (half + 2.2,), 16.0, "pole") + _rails(-half - 2.0),
        yaw=between(rng, -0.35, 0.35),
        x=between(rng, -half, half),
    )


def _parking(rng: Rng) -> Place:
    rows, nose = (-16.0, -10.6, 5.0, 10.4), math.pi / 2
    bays = [(x - 2.5, x + 2.5, z, z + 0.1) for x in rows for z in _steps(1.35, 60, 2.7)]
    store = _house(rng, (-40, 40), (62, 80), 7.0, shop=True)
    wing = _house(rng, (19, 34), (-10, 40), 8.0, shop=True)
    trees = _row(rng, (-13.3,), 11.0, "broad", "palm", "column")
    return Place(
        grounds=(
            _plain(_pick(rng, _ASPHALT), 90),
            _flat(_WHITE, 60, *bays),
            _flat(_pick(rng, _GRASS), 220, (-14, -12.6, 0, 58)),
        ),
        houses=(store, wing) if rng.random() < 0.6 else (store,),
        far="hills",
        lanes=tuple(Lane(x, -nose if i % 2 else nose, 2.7) for i, x in enumerate(rows)),
        walks=((-6, 1.5), (12, 16)),
        reach=56,
        trees=trees if rng.random() < 0.5 else (),
        props=_props(rng, (-8.0, 2.2), 14.0, "lamp", "sign"),
        yaw=float(rng.choice([-0.6, 0.5, 0.0, 0.8])),
        x=between(rng, -5, 0),
    )


def _square(rng: Rng) -> Place:
    paving, depth = _pick(rng, _PAVING), between(rng, 30, 42)
    joints = [(-40.0, 40.0, z, z + 0.08) for z in _steps(1, depth, 2)]
    joints += [(x, x + 0.06, -10.0, depth) for x in _steps(-30, 31, 2)]
    back = [
        _house(
            rng, (x, x + 11), (depth, depth + 10), 3.2 * int(rng.integers(3, 7)) + 1.2, shop=True
        )
        for x in _steps(-33, 33, 11)
    ]
    fountain = Prop("fountain", between(rng, -5, 5), depth * 0.6, 0)
    trees = _row(rng, (-13.0, 13.0), 8.0, "broad", "palm", "column")
    return Place(
        grounds=(_plain(paving, 70), _flat(dim(paving, 0.84), 60, *joints)),
        houses=(*_terrace(rng, -24, (3, 6), 0.3), *_terrace(rng, 24, (3, 6), 0.3), *back),
        far="nothing",
        walks=((-16, 16),),
        reach=depth - 3,
        trees=trees if rng.random() < 0.4 else (),
        props=(fountain, *_props(rng, (-9.0, 9.0), 10.0, "lamp", "bench", "bin")),
        yaw=between(rng, -0.5, 0.5),
        x=between(rng, -4, 4),
    )


def _waterfront(rng: Rng) -> Place:
    edge = between(rng, 4, 6)
    sea = _pick(rng, ((72, 124, 150), (60, 104, 124), (104, 134, 146)))
    road = [replace(g, quads=g.quads - np.array([10.0, 0.0])) for g in _road(rng, 3.4, 2.0)]
    return Place(
        grounds=(
            _plain(_pick(rng, _PAVING), 70),
            _flat(sea, 120, (edge, 200, -60, 400)),
            _strip(edge - 0.5, edge, (196, 190, 180), 60),
            *road,
        ),
        houses=_terrace(rng, -17, (3, 7), 0.4),
        far="skyline",
        far_colour=(136, 148, 162),
        lanes=(Lane(-11.7, math.pi), Lane(-8.3, 0.0), Lane(-7.9, 0.0, 6.5)),
        walks=((-4.5, edge - 1),),
        reach=60,
        trees=_row(rng, (-3.5,), between(rng, 7, 10), "palm", "palm", "broad"),
        props=_rails(edge - 0.3) + _props(rng, (0.8,), 9.0, "lamp", "bench", "bin"),
        yaw=float(rng.choice([-0.45, 0.2, 0.35, -0.9])),
        x=between(rng, -2, 1.5),
    )


def _highway(rng: Rng) -> Place:
    half, height = between(rng, 6.8, 8.0), between(rng, 0.8, 3.2)
    wall = _pick(rng, ((150, 150, 146), (120, 132, 112), (166, 146, 122)))
    barriers = [
        House((x - 0.2, x + 0.2), (z, z + 12), height, dim(wall, 0.96 + 0.04 * (z % 24 > 11)), 0)
        for x in (-half - 2, half + 2)
        for z in _steps(-36, 120, 12)
    ]
    trees = _row(rng, (half + 6,), 15.0, "conifer", "broad", "column")
    return Place(
        grounds=(_plain(_pick(rng, _GRASS), 220), *_road(rng, half, 1.6, lanes=4)),
        houses=tuple(barriers),
        far=str(rng.choice(["hills", "skyline"])),
        lanes=tuple(Lane(half * s, math.pi if s < 0 else 0.0) for s in (-0.75, -0.25, 0.25, 0.75)),
        walks=_beside(half, 1.6),
        reach=80,
        trees=trees if rng.random() < 0.4 else (),
        props=_props(rng, (half + 1.4,), 18.0, "lamp", "sign"),
        yaw=float(rng.choice([0.0, 0.2, -0.2, 0.7])),
        x=between(rng, -half * 0.6, half),
    )


_SETTINGS = (_street, _park, _parking, _suburb, _square, _country, _waterfront, _highway)


@lru_cache(maxsize=64)
def make_place(place: int, seed: int) -> Place:
    """The setting number `place` (0 or more) of the family `seed`."""
    rng = np.random.default_rng([seed, place])
    return replace(
        _SETTINGS[place % len(_SETTINGS)](rng),
        light=_LIGHTS[(3 * place + place // 8) % len(_LIGHTS)],
        eye=float(rng.choice([1.4, 1.6, 1.9, 2.6, 4.2], p=[0.25, 0.3, 0.2, 0.15, 0.1])),
        focal=between(rng, 0.85, 1.35),
        horizon=between(rng, 0.38, 0.54),
        seed=new_seed(rng),
    )
