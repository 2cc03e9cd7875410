"""Cars: a body and a cabin, each a profile drawn across the width, with patches for the parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from segrec_batch.sample_data.paint import (
    CIRCLE,
    Brush,
    Colour,
    Points,
    Stage,
    View,
    between,
    dim,
    faces_eye,
    hull,
    mix,
    paint_solid,
    patch,
)

CAR = 1
_FINE = 16.0  # pixels per metre from which small parts are drawn

_PAINTS: tuple[Colour, ...] = (
    (232, 232, 230), (188, 192, 196), (120, 126, 132), (52, 55, 60), (30, 31, 36),
    (176, 30, 34), (122, 24, 32), (34, 70, 142), (66, 122, 186), (26, 84, 70), (212, 168, 36),
    (222, 108, 34), (140, 116, 88), (206, 196, 168), (86, 60, 112), (120, 164, 150),
)  # fmt: skip


Spot = tuple[float, float]
Cell = tuple[float, float, float, float]
Cells = Sequence[Cell]

_AXLES = (-0.31, 0.31)  # shares of the length
_TONES = (0.62, 0.72, 0.8, 0.86, 0.9)  # of the paint, from the sill up
_WHEEL: tuple[tuple[float, Colour], ...] = (
    (1.16, (14, 14, 16)), (1.0, (34, 34, 36)), (0.64, (168, 170, 174)), (0.5, (108, 110, 116)),
    (0.16, (190, 192, 196)),
)  # fmt: skip
_GRILLE: Cells = [(0.28, 0.72, 0.1, 0.75)]
_LIGHTS: Cells = [(0.03, 0.2, 0.25, 0.88), (0.8, 0.97, 0.25, 0.88)]
_PLATE: Cells = [(0.37, 0.63, 0.5, 0.78)]
_SLOT: Cells = [(0.12, 0.88, 0.06, 0.36)]
_PANES: tuple[Cells, ...] = (  # glass, upper half, top, seats
    [(0.05, 0.48, 0.12, 0.88), (0.52, 0.95, 0.12, 0.88)],
    [(0.05, 0.48, 0.5, 0.88), (0.52, 0.95, 0.5, 0.88)],
    [(0.05, 0.48, 0.74, 0.88), (0.52, 0.95, 0.74, 0.88)],
    [(0.2, 0.3, 0.12, 0.52), (0.6, 0.69, 0.12, 0.52)],
)
_SCREENS: tuple[Cells, ...] = (
    [(0.06, 0.94, 0.08, 0.92)],
    [(0.06, 0.94, 0.5, 0.92)],
    [(0.06, 0.94, 0.8, 0.92)],
    [(0.22, 0.38, 0.08, 0.55), (0.62, 0.78, 0.08, 0.55)],
)


@dataclass(frozen=True)
class _Body:
    """Metres for the three sizes; deck and bonnet are shares of the height, cabin of the length."""

    length: float
    width: float
    height: float
    deck: float
    bonnet: float
    cabin: tuple[float, float, float, float]  # rear base, front base, front roof, rear roof


_BODIES = (
    _Body(4.6, 1.80, 1.45, 0.66, 0.60, (-0.40, 0.24, 0.06, -0.22)),  # saloon
    _Body(4.4, 1.80, 1.32, 0.68, 0.60, (-0.43, 0.20, 0.00, -0.20)),  # coupe
    _Body(3.9, 1.72, 1.50, 0.62, 0.58, (-0.485, 0.28, 0.10, -0.40)),  # hatchback
    _Body(4.7, 1.80, 1.50, 0.63, 0.58, (-0.485, 0.24, 0.07, -0.41)),  # estate
    _Body(4.6, 1.88, 1.76, 0.60, 0.57, (-0.485, 0.26, 0.12, -0.43)),  # off-roader
    _Body(4.9, 1.92, 2.05, 0.50, 0.50, (-0.492, 0.38, 0.22, -0.475)),  # van
    _Body(5.3, 1.90, 1.80, 0.57, 0.57, (-0.12, 0.26, 0.12, -0.07)),  # pick-up
)


@dataclass(frozen=True)
class Car:
    """A car at (x, z) on the ground, nose towards `heading` (0 is along z); `seed` is its look."""

    x: float
    z: float
    heading: float
    seed: int


def _look(seed: int) -> tuple[_Body, Colour]:
    rng = np.random.default_rng(seed)
    paint = dim(_PAINTS[int(rng.integers(len(_PAINTS)))], between(rng, 0.85, 1.1))
    return _BODIES[int(rng.integers(len(_BODIES)))], paint


def _world(car: Car, local: Points) -> Points:
    """Local (..., 3) metres (forward, up, right) to world axes."""
    sin, cos = math.sin(car.heading), math.cos(car.heading)
    ahead, up, right = local[..., 0], local[..., 1], local[..., 2]
    x, z = car.x + ahead * sin + right * cos, car.z + ahead * cos - right * sin
    return np.stack([x, up, z], axis=-1)


def _footprint(body: _Body, up: float, share: float) -> Points:
    """Local corners (4, 3) of the car's rectangle, shrunk to `share`, at some height."""
    half = share * body.length / 2, share * body.width / 2
    return np.array([(s * half[0], up, t * half[1]) for s in (1, -1) for t in (1, -1)])


def car_depth(view: View, car: Car) -> float:
    """Distance ahead of the eye of the car's nearest corner, metres."""
    corners = _footprint(_look(car.seed)[0], 0.0, 1.0)
    return float(view.turn(_world(car, corners))[:, 2].min())


def car_shadow(car: Car) -> list[Points]:
    """World points (n, 3) whose fall along the light is the shadow."""
    body, _ = _look(car.seed)
    corners = [_footprint(body, 0.0, 1.04), _footprint(body, body.height, 0.7)]
    return [_world(car, np.concatenate(corners))]


@dataclass(frozen=True)
class _Prism:
    """A profile drawn across the width: outlines (n, 3) of both sides in camera axes."""

    left: Points
    right: Points
    inside: Points  # (3,) the middle

    def across(self, low: int, high: int) -> Points:
        """Return the face (4, 3) between two points of the profile."""
        return np.stack([self.left[low], self.right[low], self.right[high], self.left[high]])

    def faces(self, paint: Colour) -> list[tuple[Points, Colour]]:
        """Sides and edges, all in one colour."""
        count = len(self.left)
        edges = [self.across(i, (i + 1) % count) for i in range(count)]
        return [(face, paint) for face in (self.left, self.right, *edges)]


@dataclass(frozen=True)
class _Work:
    """A car on the easel."""

    stage: Stage
    brush: Brush
    car: Car
    body: _Body
    paint: Colour

    def camera(self, local: Points) -> Points:
        return self.stage.view.turn(_world(self.car, local))

    def prism(self, profile: Sequence[Spot], widths: Sequence[float]) -> _Prism:
        """From a profile in shares of length and height, and widths in shares of the width."""
        flat = np.array(profile) * (self.body.length, self.body.height)
        half = np.array(widths) * self.body.width / 2
        left, right = (self.camera(np.column_stack([flat, side * half])) for side in (-1, 1))
        return _Prism(left, right, np.concatenate([left, right]).mean(axis=0))

    def parts(
        self, face: Points, inside: Points, cells: Cells, colour: Colour, glow: bool = False
    ) -> None:
        """Patches of a face (4, 3) of a solid around `inside`, if it looks at the eye."""
        if faces_eye(face, inside):
            for part in patch(face, np.array(cells)):
                self.brush.polygon(self.stage.view.outline(part), colour, glow)


def _lower(work: _Work) -> _Prism:
    body = work.body
    profile = (
        (-0.485, 0.17), (-0.5, 0.42), (-0.48, body.deck), (body.cabin[1], body.deck + 0.02),
        (0.455, body.bonnet), (0.5, 0.76 * body.bonnet), (0.487, 0.17),
    )  # fmt: skip
    return work.prism(profile, (0.93, 1.0, 0.95, 0.95, 0.9, 0.93, 0.9))


def _upper(work: _Work) -> _Prism:
    rear, front, front_roof, rear_roof = work.body.cabin
    deck = work.body.deck
    profile = ((rear, deck - 0.03), (front, deck - 0.01), (front_roof, 1.0), (rear_roof, 1.0))
    return work.prism(profile, (0.93, 0.93, 0.76, 0.74))


def _disc(work: _Work, axle: float, share: float, side: float) -> Points:
    """Return a circle (18, 3) in camera axes around a hub, `side` half widths off the middle."""
    radius = 0.2 * work.body.height + 0.03
    height = np.maximum(radius + share * radius * CIRCLE[:, 1], 0.0)
    ahead = axle * work.body.length + share * radius * CIRCLE[:, 0]
    across = np.full(len(CIRCLE), side * work.body.width / 2)
    return work.camera(np.column_stack([ahead, height, across]))


def _tyres(work: _Work) -> None:
    """All four, as they show below the body."""
    for axle in _AXLES:
        for side in (-1, 1):
            discs = [_disc(work, axle, 1.0, side * wide) for wide in (0.68, 0.97)]
            flat = work.stage.view.project(np.concatenate(discs))
            work.brush.polygon(hull(flat), (22, 22, 24))


def _bands(work: _Work) -> list[tuple[Colour, Cell]]:
    """Sill, shading, shoulder line, and close by door gaps and handles: x0 x1 y0 y1 in shares."""
    body, paint = work.body, work.paint
    shoulder, joint = body.bonnet - 0.08, (body.cabin[0] + body.cabin[1]) / 2
    bands: list[tuple[Colour, Cell]] = [(dim(paint, 0.45), (-0.48, 0.48, 0.17, 0.23))]
    for tone, (y0, y1) in zip(_TONES, pairwise(np.linspace(0.23, shoulder, 6)), strict=True):
        bands.append((dim(paint, tone), (-0.49, 0.485, float(y0), float(y1))))
    shine = mix(paint, (255, 255, 255), 0.22)
    bands.append((shine, (-0.485, 0.47, shoulder, shoulder + 0.03)))
    if work.stage.view.focal * body.length / car_depth(work.stage.view, work.car) > 60:
        gaps = (joint, body.cabin[1] - 0.04, max(body.cabin[0] + 0.1, -0.22))
        bands += [(dim(paint, 0.5), (x, x + 0.004, 0.2, body.deck)) for x in gaps]
        handles, top = (joint - 0.06, 0.78 * body.cabin[1] + 0.22 * joint - 0.12), body.deck - 0.08
        bands += [(dim(paint, 0.35), (x, x + 0.035, top - 0.02, top)) for x in handles]
    return bands


def _side(work: _Work, side: int) -> None:
    """Everything on one side of the body, and its wheels."""
    for colour, (x0, x1, y0, y1) in _bands(work):
        quad = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        flat = quad * (work.body.length, work.body.height)
        across = np.full(4, side * 0.485 * work.body.width)
        points = work.camera(np.column_stack([flat, across]))
        work.brush.polygon(work.stage.view.outline(points), colour)
    for axle in _AXLES:
        for share, colour in _WHEEL:
            disc = _disc(work, axle, share, 0.98 * side)
            work.brush.polygon(work.stage.view.project(disc), colour)


def _ends(work: _Work, body: _Prism) -> None:
    """Lights, grille, plates and bumpers."""
    night, dark, white = work.stage.light.night, (26, 27, 30), (236, 236, 228)
    nose, bumper, boot, skirt = (body.across(*edge) for edge in ((5, 4), (6, 5), (1, 2), (0, 1)))
    work.parts(nose, body.inside, _GRILLE, dark)
    work.parts(nose, body.inside, _LIGHTS, (255, 250, 220), glow=night)
    work.parts(boot, body.inside, _LIGHTS, (232, 36, 30) if night else (176, 24, 26), glow=night)
    for face, slot in ((bumper, dark), (skirt, dim(work.paint, 0.5))):
        work.parts(face, body.inside, _SLOT, slot)
        work.parts(face, body.inside, _PLATE, white)


def _windows(work: _Work, cabin: _Prism) -> None:
    """Glass with seats behind it, lighter towards the sky."""
    sky = work.stage.light.skyline
    glass = mix((34, 42, 52), sky, 0.12)
    tones = (glass, mix(glass, sky, 0.18), mix(glass, sky, 0.38), dim(glass, 0.55))
    for face in (cabin.left, cabin.right):
        for cells, tone in zip(_PANES, tones, strict=True):
            work.parts(face, cabin.inside, cells, tone)
    for face in (cabin.across(1, 2), cabin.across(0, 3)):
        for cells, tone in zip(_SCREENS, tones, strict=True):
            work.parts(face, cabin.inside, cells, tone)


def paint_car(stage: Stage, car: Car) -> None:
    """Paint the car, label 1."""
    body, paint = _look(car.seed)
    near = car_depth(stage.view, car)
    work = _Work(stage, stage.brush(CAR, near), car, body, paint)
    lower, upper = _lower(work), _upper(work)
    _tyres(work)
    paint_solid(stage, work.brush, lower.faces(paint))
    for side, face in ((-1, lower.left), (1, lower.right)):
        if faces_eye(face, lower.inside):
            _side(work, side)
    if stage.view.focal / max(near, 1.0) > _FINE:
        _ends(work, lower)
    paint_solid(stage, work.brush, upper.faces(paint))
    _windows(work, upper)
