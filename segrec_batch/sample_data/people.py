"""Persons: upright figures with limbs that follow a pose, seen from the front, back or side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segrec_batch.sample_data.paint import Brush, Colour, Points, Stage, between, dim, mix

PERSON = 2

_SKINS: tuple[Colour, ...] = (
    (244, 208, 180), (226, 178, 142), (198, 144, 104), (156, 104, 70), (112, 72, 48), (76, 50, 38),
)  # fmt: skip
_HAIRS: tuple[Colour, ...] = (
    (28, 22, 20), (62, 40, 26), (112, 74, 40), (186, 148, 88), (150, 146, 142), (132, 54, 30),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = (
    (206, 40, 44), (38, 72, 150), (44, 120, 78), (236, 196, 60), (240, 240, 236), (36, 38, 44),
    (122, 126, 132), (226, 126, 50), (116, 62, 130), (92, 160, 206), (214, 128, 150), (92, 70, 50),
    (170, 156, 124), (20, 36, 66), (66, 92, 66),
)  # fmt: skip
_TROUSERS: tuple[Colour, ...] = (
    (40, 52, 84), (32, 34, 40), (84, 100, 134), (110, 96, 74), (70, 72, 78), (150, 138, 112),
    (92, 42, 42),
)  # fmt: skip

_FRINGE = (
    (-0.052, 0.938), (-0.03, 0.958), (0.03, 0.955), (0.05, 0.94),
    (0.036, 0.985), (0.0, 1.0), (-0.036, 0.985),
)  # fmt: skip

Spot = tuple[float, float]
Bend = tuple[float, float]  # of both parts of a limb: radians from hanging down, + to the right


@dataclass(frozen=True)
class _Pose:
    side: bool
    arms: tuple[Bend, Bend]  # far (or left), near (or right)
    legs: tuple[Bend, Bend]


_POSES = (
    _Pose(False, ((-0.16, -0.06), (0.16, 0.06)), ((-0.05, 0.0), (0.05, 0.0))),
    _Pose(False, ((-0.16, -0.1), (0.3, 2.5)), ((-0.08, 0.02), (0.05, 0.02))),
    _Pose(False, ((-0.2, -0.1), (2.5, 2.9)), ((-0.12, -0.06), (0.1, 0.06))),
    _Pose(False, ((-0.62, 0.55), (0.62, -0.55)), ((-0.14, -0.06), (0.14, 0.06))),
    _Pose(True, ((-0.45, -0.2), (0.4, 0.7)), ((0.42, 0.2), (-0.32, -0.62))),
    _Pose(True, ((0.35, 0.6), (-0.4, -0.1)), ((-0.25, -0.5), (0.36, 0.3))),
    _Pose(True, ((-0.8, 0.6), (0.7, 1.9)), ((0.85, 0.25), (-0.35, -1.3))),
    _Pose(True, ((0.1, 0.3), (0.35, 1.5)), ((0.05, 0.02), (-0.04, -0.06))),
    _Pose(False, ((-0.1, -0.04), (0.1, 0.04)), ((-0.1, 0.02), (0.02, 0.0))),
)


@dataclass(frozen=True)
class Person:
    """A person at (x, z) on the ground; `seed` is body, clothes and pose."""

    x: float
    z: float
    seed: int


@dataclass(frozen=True)
class _Look:
    pose: _Pose
    height: float
    girth: float
    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    shoes: Colour
    wear: str  # trousers, shorts, skirt, coat
    back: bool
    flip: float
    long_hair: bool
    hat: bool
    bag: bool


def _look(seed: int) -> _Look:
    rng = np.random.default_rng(seed)

    def pick(colours: tuple[Colour, ...]) -> Colour:
        return dim(colours[int(rng.integers(len(colours)))], between(rng, 0.85, 1.12))

    child = rng.random() < 0.15
    return _Look(
        pose=_POSES[int(rng.integers(len(_POSES)))],
        height=between(rng, 1.05, 1.4) if child else between(rng, 1.55, 1.9),
        girth=between(rng, 0.92, 1.3),
        skin=pick(_SKINS),
        hair=pick(_HAIRS),
        top=pick(_CLOTHES),
        bottom=pick(_TROUSERS),
        shoes=pick(_TROUSERS + _CLOTHES[4:6]),
        wear=str(rng.choice(["trousers", "trousers", "trousers", "shorts", "skirt", "coat"])),
        back=bool(rng.random() < 0.4),
        flip=float(rng.choice([-1.0, 1.0])),
        long_hair=bool(rng.random() < 0.4),
        hat=bool(rng.random() < 0.2),
        bag=bool(rng.random() < 0.3),
    )


@dataclass(frozen=True)
class _Figure:
    """Paints in shares of the body height: x to the right (times `flip`), y up from the feet."""

    brush: Brush
    foot: Points
    scale: float  # pixels per body height
    flip: float
    sunny: float  # side the light comes from before mirroring, -1 to 1

    def at(self, points: Points) -> Points:
        return self.foot + points * (self.scale * self.flip, -self.scale)

    def shape(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        self.brush.polygon(self.at(np.array(points)), colour)

    def band(self, x: float, low: Spot, high: Spot, colour: Colour) -> None:
        """Paint an upright trapezium around x; each end is (half width, y)."""
        (wide, y), (narrow, top) = low, high
        self.shape([(x - wide, y), (x + wide, y), (x + narrow, top), (x - narrow, top)], colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        centre = self.at(np.array([x, y])).tolist()
        self.brush.ellipse(centre, rx * self.scale, ry * self.scale, colour)

    def limb(self, a: Spot, b: Spot, ra: float, rb: float, colour: Colour) -> None:
        """Paint a tapered limb with round ends, lit from one side."""
        (ax, ay), (bx, by) = a, b
        length = max(math.hypot(bx - ax, by - ay), 1e-6)
        px, py = (ay - by) / length, (bx - ax) / length
        tones = ((0.0, 1.0, 0.8), (0.3 * self.sunny * ra, 0.66, 1.06))
        for shift, share, tone in tones[: 2 if ra * self.scale > 2.5 else 1]:
            wide, narrow, shade = ra * share, rb * share, dim(colour, tone)
            ends = [(ax, ay, wide), (bx, by, narrow), (bx, by, -narrow), (ax, ay, -wide)]
            self.shape([(x + shift + px * r, y + py * r) for x, y, r in ends], shade)
            self.oval(ax + shift, ay, wide, wide, shade)
            self.oval(bx + shift, by, narrow, narrow, shade)


def _bones(start: Spot, bend: Bend, lengths: tuple[float, float]) -> tuple[Spot, Spot]:
    """Joint and end of a limb."""
    x = start[0] + lengths[0] * math.sin(bend[0])
    y = start[1] - lengths[0] * math.cos(bend[0])
    return (x, y), (x + lengths[1] * math.sin(bend[1]), y - lengths[1] * math.cos(bend[1]))


def _leg(figure: _Figure, look: _Look, hip: float, bend: Bend) -> None:
    knee, ankle = _bones((hip, 0.5), bend, (0.235, 0.225))
    shin = look.skin if look.wear in ("skirt", "shorts") else look.bottom
    thigh = look.skin if look.wear == "skirt" else look.bottom
    toe, sole = (0.03, 0.048) if look.pose.side else (math.copysign(0.01, hip), 0.03)
    figure.oval(ankle[0] + toe, ankle[1] - 0.018, sole, 0.024, look.shoes)
    figure.limb(knee, ankle, 0.034, 0.024, shin)
    figure.limb((hip, 0.5), knee, 0.052 * look.girth, 0.036, thigh)


def _arm(figure: _Figure, look: _Look, shoulder: float, bend: Bend) -> None:
    elbow, hand = _bones((shoulder, 0.795), bend, (0.165, 0.15))
    sleeve = look.skin if look.wear in ("shorts", "skirt") else look.top
    figure.limb(elbow, hand, 0.025, 0.02, sleeve)
    figure.oval(hand[0], hand[1], 0.024, 0.026, look.skin)
    figure.limb((shoulder, 0.795), elbow, 0.034 * look.girth, 0.027, look.top)


def _torso(figure: _Figure, look: _Look) -> None:
    wide = (0.078 if look.pose.side else 0.118) * look.girth
    hem = 0.36 if look.wear == "coat" else 0.49
    flare = 0.95 if look.wear == "coat" else 0.8
    if look.wear == "skirt":
        figure.band(0, (1.15 * wide, 0.3), (0.7 * wide, 0.58), look.bottom)
    edge = ((flare, hem), (0.8, 0.62), (1.0, 0.79), (0.55, 0.835))
    lean = 0.4 * figure.sunny
    for tone, left, right in ((0.78, -1.0, 1.0), (1.0, lean - 0.55, lean + 0.55)):
        outline = [(left * wide * x, y) for x, y in edge]
        outline += [(right * wide * x, y) for x, y in reversed(edge)]
        figure.shape(outline, dim(look.top, tone))
    if look.wear == "coat" and not look.back and not look.pose.side:
        figure.band(0, (0.006, hem), (0.03, 0.835), dim(look.top, 0.55))
    elif look.wear != "skirt" and not look.back:
        figure.band(0, (flare * wide, hem), (flare * wide, hem + 0.02), dim(look.bottom, 0.55))


def _face(figure: _Figure, look: _Look) -> None:
    shift = 0.02 if look.pose.side else 0.0
    for x in (0.038,) if look.pose.side else (-0.02, 0.02):
        figure.oval(x, 0.932, 0.011, 0.006, (240, 238, 232))
        figure.oval(x, 0.932, 0.005, 0.006, (30, 24, 22))
        figure.oval(x, 0.945, 0.013, 0.003, look.hair)
    figure.oval(2.1 * shift, 0.917, 0.007, 0.011, dim(look.skin, 0.82))
    figure.oval(shift, 0.892, 0.016, 0.006, mix(look.skin, (150, 40, 44), 0.6))


def _head(figure: _Figure, look: _Look) -> None:
    if look.long_hair:
        figure.oval(-0.015 if look.pose.side else 0.0, 0.9, 0.062, 0.09, dim(look.hair, 0.8))
    figure.limb((0.0, 0.82), (0.0, 0.87), 0.03, 0.028, dim(look.skin, 0.85))
    figure.oval(0.0, 0.948, 0.055, 0.052, look.hair)
    if look.back and not look.pose.side:
        figure.oval(0.0, 0.922, 0.052, 0.07, look.hair)
        return
    shift = 0.012 if look.pose.side else 0.0
    figure.oval(shift, 0.918, 0.046, 0.064, dim(look.skin, 0.88))
    figure.oval(shift + 0.008 * figure.sunny, 0.92, 0.038, 0.058, look.skin)
    figure.shape([(x + shift * (x > 0), y) for x, y in _FRINGE], look.hair)
    if figure.scale > 110:
        _face(figure, look)


def _extras(figure: _Figure, look: _Look) -> None:
    """Hat and rucksack."""
    if look.hat:
        figure.band(0, (0.056, 0.95), (0.045, 0.995), look.bottom)
        figure.oval(0.03 * look.pose.side, 0.952, 0.07, 0.011, dim(look.bottom, 0.8))
    if look.bag and (look.back or look.pose.side):
        x = -0.1 if look.pose.side else 0.0
        figure.band(x, (0.06, 0.58), (0.05, 0.79), dim(look.shoes, 0.9))
        figure.band(x, (0.04, 0.6), (0.04, 0.67), dim(look.shoes, 0.7))


def person_shadow(person: Person) -> list[Points]:
    """World points (n, 3) whose fall along the sunlight outlines the shadow."""
    look = _look(person.seed)
    return [
        np.array([
            (person.x + x, y * look.height, person.z + z)
            for y, r in ((0.0, 0.15), (0.6, 0.2), (1.0, 0.09))
            for x in (-r, r)
            for z in (-r * 0.6, r * 0.6)
        ])
    ]  # fmt: skip


def paint_person(stage: Stage, person: Person) -> None:
    """Paint the person, label 2."""
    look = _look(person.seed)
    foot, metre = stage.upright(person.x, person.z)
    sun = stage.view.rotate(np.array(stage.light.sun))
    sunny = float(np.clip(2 * sun[0], -1, 1)) * look.flip
    brush = stage.brush(PERSON, stage.view.focal / metre)
    figure = _Figure(brush, foot, metre * look.height, look.flip, sunny)
    hip, shoulder = (0.012, 0.0) if look.pose.side else (0.05, 0.108 * look.girth)
    _arm(figure, look, -shoulder, look.pose.arms[0])
    _leg(figure, look, -hip, look.pose.legs[0])
    _leg(figure, look, hip, look.pose.legs[1])
    _torso(figure, look)
    _head(figure, look)
    _extras(figure, look)
    _arm(figure, look, shoulder, look.pose.arms[1])
