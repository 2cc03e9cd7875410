"""Buildings with windows, shop fronts and roofs, and street furniture; all label 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from segrec_batch.sample_data.paint import (
    Brush,
    Colour,
    Points,
    Rng,
    Stage,
    View,
    between,
    box_faces,
    dim,
    faces_eye,
    hull,
    mix,
    paint_solid,
    patch,
    ring,
)
from segrec_batch.sample_data.places import House, Prop

_LIT: tuple[Colour, ...] = ((255, 214, 140), (255, 232, 176), (236, 190, 110))
_SHOPS: tuple[Colour, ...] = (
    (184, 44, 40), (36, 92, 140), (44, 120, 82), (212, 150, 44), (80, 66, 96), (60, 60, 64),
)  # fmt: skip
_SIGNS: tuple[tuple[int, Colour, Colour], ...] = (
    (18, (204, 36, 36), (240, 240, 240)), (4, (36, 88, 170), (230, 236, 244)),
    (3, (204, 36, 36), (240, 240, 240)), (18, (36, 88, 170), (240, 240, 240)),
    (4, (236, 190, 44), (40, 40, 40)),
)  # fmt: skip


def _grid(columns: int, floors: int, first: float, share: tuple[float, float]) -> Points:
    """Cells (n, 4) of a regular facade: u0 u1 v0 v1; `first` is where the upper floors begin."""
    u = (np.arange(columns) + 0.5) / columns
    v = first + (np.arange(floors) + 0.5) / floors * (1 - first)
    half_u, half_v = share[0] / columns / 2, share[1] / floors / 2 * (1 - first)
    uu, vv = (a.ravel() for a in np.meshgrid(u, v))
    return np.stack([uu - half_u, uu + half_u, vv - half_v, vv + half_v], axis=-1)


def _cells(
    stage: Stage, brush: Brush, wall: Points, cells: Points, colours: list[Colour], lit: list[bool]
) -> None:
    """Parts (n, 4) of a wall, those in view; the lit ones glow."""
    parts = patch(wall, cells)
    flat = stage.view.project(parts)
    seen = (parts[..., 2].min(axis=-1) > 0.5) & (flat[..., 0].max(axis=-1) > 0)
    seen &= (flat[..., 0].min(axis=-1) < stage.view.width) & (flat[..., 1].max(axis=-1) > 0)
    for i in np.flatnonzero(seen).tolist():
        brush.polygon(flat[i], colours[i], lit[i])


def _windows(stage: Stage, brush: Brush, house: House, wall: Points, rng: Rng) -> None:
    """Rows of windows with frames; some are lit at night."""
    long, first = float(np.linalg.norm(wall[1] - wall[0])), 0.06
    if house.shop:
        first = 3.4 / house.height
    columns = max(int(long / between(rng, 2.2, 3.2)), 1)
    floors = max(int(house.height * (1 - first) / 2.9), 1)
    cells = _grid(columns, floors, first, (between(rng, 0.35, 0.62), between(rng, 0.45, 0.62)))
    glass = mix((52, 62, 74), stage.light.skyline, between(rng, 0.05, 0.35))
    trim = mix(house.wall, (245, 242, 236), 0.6) if rng.random() < 0.6 else dim(house.wall, 0.7)
    lit = [stage.light.night and bool(x < 0.45) for x in rng.random(len(cells))]
    panes = [_LIT[i % 3] if on else dim(glass, 0.8 + 0.1 * (i * 7 % 5)) for i, on in enumerate(lit)]
    if stage.view.focal / max(float(wall[:, 2].mean()), 1.0) > 12:
        margin = np.array([-0.042 / columns, 0.042 / columns, -0.02, 0.01])
        _cells(stage, brush, wall, cells + margin, [trim] * len(cells), [False] * len(cells))
    _cells(stage, brush, wall, cells, panes, lit)


def _shop_front(stage: Stage, brush: Brush, house: House, wall: Points, rng: Rng) -> None:
    """Big panes and a coloured band along the ground floor."""
    top, night = min(3.1 / house.height, 0.8), stage.light.night
    count = max(int(np.linalg.norm(wall[1] - wall[0]) / 3.5), 2)
    panes = _grid(count, 1, 0.0, (0.84, 1.0)) * (1, 1, 0, 0) + (0, 0, 0.12 * top, 0.74 * top)
    glass = _LIT[int(rng.integers(3))] if night else mix((46, 52, 60), stage.light.skyline, 0.18)
    shades = [dim(glass, 0.85 + 0.15 * (i % 2)) for i in range(count)]
    _cells(stage, brush, wall, panes, shades, [night] * count)
    band = np.array([(0.02, 0.98, 0.78 * top, top)])
    _cells(stage, brush, wall, band, [_SHOPS[int(rng.integers(len(_SHOPS)))]], [False])


def _gable(stage: Stage, brush: Brush, house: House, roof: Colour) -> None:
    (x0, x1), (z0, z1), top = house.x, house.z, house.height
    eave, ridge, middle = 0.4, top + 0.42 * (x1 - x0), (x0 + x1) / 2
    faces: list[tuple[Points, Colour]] = []
    for z in house.z:
        end = np.array([(x0, top, z), (x1, top, z), (middle, ridge - 0.15, z)])
        faces.append((stage.view.turn(end), house.wall))
    for x in (x0 - eave, x1 + eave):
        edges = ((x, top - 0.1, z0), (x, top - 0.1, z1), (middle, ridge, z1), (middle, ridge, z0))
        slope = np.array([(a, b, c + math.copysign(eave, c - z0 - 1)) for a, b, c in edges])
        faces.append((stage.view.turn(slope), roof))
    paint_solid(stage, brush, faces)


def house_depth(view: View, house: House) -> float:
    """Distance of the middle of a house from the eye, metres."""
    middle = np.array([sum(house.x) / 2, 0.0, sum(house.z) / 2])
    return float(np.hypot(*view.turn(middle)[[0, 2]]))


def paint_house(stage: Stage, house: House) -> None:
    """Walls with windows, shop fronts and roof of one building."""
    low, high = (house.x[0], 0.0, house.z[0]), (house.x[1], house.height, house.z[1])
    *walls, top = (stage.view.turn(face) for face in box_faces(low, high))
    corners = np.concatenate(walls)
    ahead = np.maximum(corners[:, 2], 0.0)
    if ahead.max() < 1.0 or not stage.view.frames(corners[:, 0], ahead, 0.5):
        return
    brush = stage.brush(0, float(ahead.mean()))
    faces = [(wall, house.wall) for wall in walls]
    paint_solid(stage, brush, [*faces, (top, dim(house.wall, 0.8))])
    inside = corners.mean(axis=0)
    for wall in walls if house.height > 3.5 else []:
        if faces_eye(wall, inside):
            rng = np.random.default_rng(house.seed)
            _windows(stage, brush, house, wall, rng)
            if house.shop:
                _shop_front(stage, brush, house, wall, rng)
    if house.roof is not None:
        _gable(stage, brush, house, house.roof)


def _bar(x: float, low: float, high: float, half: float) -> Points:
    """Return an upright rectangle, (4, 2)."""
    return np.array([(x - half, low), (x + half, low), (x + half, high), (x - half, high)])


def _post(
    stage: Stage, prop: Prop, height: float, wide: float, colour: Colour
) -> tuple[Brush, Points, float]:
    """Paint an upright post; return the brush, the top of the post and pixels per metre."""
    foot, metre = stage.upright(prop.x, prop.z)
    brush, half = stage.brush(0, stage.view.focal / metre), max(wide * metre / 2, 0.6)
    brush.polygon(foot + _bar(0.0, 0.0, -height * metre, half), colour)
    brush.polygon(foot + _bar(half / 2, 0.0, -height * metre, half / 2), dim(colour, 0.7))
    return brush, foot + np.array([0.0, -height * metre]), metre


def _lamp(stage: Stage, prop: Prop) -> None:
    steel: Colour = (92, 96, 100)
    brush, top, metre = _post(stage, prop, 5.4, 0.13, steel)
    arm = top + np.array([0.9 if prop.seed % 2 else -0.9, -0.25]) * metre
    thick = np.array([0, 0.07 * metre])
    brush.polygon(np.array([top, arm, arm + thick, top + thick * 2]), steel)
    brush.ellipse(arm.tolist(), 0.32 * metre, 0.1 * metre, dim(steel, 0.75))
    bulb = (arm + thick).tolist()
    brush.ellipse(bulb, 0.24 * metre, 0.08 * metre, (255, 236, 180), glow=stage.light.night)


def _sign(stage: Stage, prop: Prop) -> None:
    brush, top, metre = _post(stage, prop, 2.5, 0.07, (150, 152, 154))
    corners, rim, plate = _SIGNS[prop.seed % len(_SIGNS)]
    turn = np.linspace(0, 2 * math.pi, corners, endpoint=False) - math.pi / 2
    ring = np.stack([np.cos(turn), np.sin(turn)], axis=-1) * 0.36 * metre
    for share, colour in ((1.0, rim), (0.72, plate)):
        brush.polygon(top + ring * share, colour)
    brush.polygon(top + _bar(0.0, -0.05, 0.05, 0.16) * metre, rim)


def _traffic_light(stage: Stage, prop: Prop) -> None:
    brush, top, metre = _post(stage, prop, 2.9, 0.11, (60, 64, 66))
    brush.polygon(top + _bar(0.0, -0.45, 0.5, 0.17) * metre, (34, 36, 38))
    lamps: tuple[Colour, ...] = ((230, 50, 40), (236, 180, 50), (70, 210, 110))
    for i, lamp in enumerate(lamps):
        on = i == prop.seed % 3
        spot = (top + np.array([0, (i - 0.9) * 0.3 * metre])).tolist()
        brush.ellipse(spot, 0.11 * metre, 0.11 * metre, lamp if on else dim(lamp, 0.25), glow=on)


def _bin(stage: Stage, prop: Prop) -> None:
    colour = _SHOPS[prop.seed % len(_SHOPS)]
    brush, top, metre = _post(stage, prop, 0.95, 0.55, colour)
    brush.ellipse(top.tolist(), 0.3 * metre, 0.09 * metre, dim(colour, 1.25))


def _pole(stage: Stage, prop: Prop) -> None:
    brush, top, metre = _post(stage, prop, 7.5, 0.2, (112, 92, 72))
    brush.polygon(top + _bar(0.0, 0.3, 0.42, 0.9) * metre, (98, 80, 62))


def _rail(stage: Stage, prop: Prop) -> None:
    colour: Colour = (150, 146, 138)
    brush, _, _ = _post(stage, prop, 1.05, 0.08, colour)
    for y in (0.5, 1.0):
        rail = _bar(prop.z + 1.4, y - 0.035, y + 0.035, 1.4)
        points = np.column_stack([np.full(4, prop.x), rail[:, 1], rail[:, 0]])
        brush.polygon(stage.view.outline(stage.view.turn(points)), colour)


def _bench(stage: Stage, prop: Prop) -> None:
    wood, iron, x = (146.0, 98.0, 58.0), (60.0, 62.0, 66.0), prop.x
    brush = stage.brush(0, stage.view.focal / stage.upright(x, prop.z)[1])
    rest = x + math.copysign(0.25, x)
    blocks = [
        (iron, (x - 0.22, 0.0, 1.5), (x + 0.22, 0.4, 1.58)),
        (iron, (x - 0.22, 0.0, 0.1), (x + 0.22, 0.4, 0.18)),
        (wood, (x - 0.25, 0.38, 0.0), (x + 0.25, 0.46, 1.7)),
        (wood, (rest - 0.03, 0.5, 0.0), (rest + 0.03, 0.88, 1.7)),
    ]
    for colour, low, high in blocks:
        faces = [stage.view.turn(f + np.array([0, 0, prop.z])) for f in box_faces(low, high)]
        paint_solid(stage, brush, [(face, colour) for face in faces])


def _fountain(stage: Stage, prop: Prop) -> None:
    stone, water = (186.0, 180.0, 170.0), (110.0, 158.0, 180.0)
    brush = stage.brush(0, stage.view.focal / stage.upright(prop.x, prop.z)[1])
    tiers = ((3.2, 0.0, 0.7), (2.9, 0.7, 0.71), (0.4, 0.7, 2.0), (1.3, 1.9, 2.2), (1.15, 2.2, 2.21))
    for radius, low, high in tiers:
        colour = water if high - low < 0.1 else stone
        rings = np.concatenate([ring(prop.x, prop.z, radius, y) for y in (low, high)])
        flat = stage.view.project(stage.view.turn(rings))
        brush.polygon(hull(flat), dim(colour, 0.82))
        brush.polygon(flat[len(flat) // 2 :], colour)


_PROPS: dict[str, Callable[[Stage, Prop], None]] = {
    "lamp": _lamp, "sign": _sign, "light": _traffic_light, "bin": _bin,
    "pole": _pole, "rail": _rail, "bench": _bench, "fountain": _fountain,
}  # fmt: skip


def paint_prop(stage: Stage, prop: Prop) -> None:
    """Paint one piece of street furniture, label 0."""
    _PROPS[prop.kind](stage, prop)
