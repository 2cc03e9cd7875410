"""A place: ground, houses, lanes, trees and street furniture, with its light and camera."""

from __future__ import annotations

from dataclasses import dataclass

from segrec_batch.sample_data.paint import Colour, Light, Points
from segrec_batch.sample_data.trees import Tree

LIGHTS = (  # noon, overcast, dusk, clouds, night, fog, morning
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
    """A row of cars at `x` that face `heading`, `pitch` metres apart (0: at random)."""

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
    light: Light = LIGHTS[0]
    eye: float = 1.6
    focal: float = 1.0
    horizon: float = 0.45
    seed: int = 0
