"""Camera, light and brush: how a point of the world lands on the canvas, and how it is painted.

World axes are metres: x to the right, y up from the ground, z along the road. Camera axes are the
same seen from the eye: x right, y up, z ahead. The canvas is an RGBA image whose fourth channel
holds the class label, so one stroke paints colour and label together and the two cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
Colour = tuple[float, float, float]
Vector = tuple[float, float, float]
Number = TypeVar("Number", float, NDArray[np.float32])

Rng = np.random.Generator

NEAR = 0.3  # metres: nothing closer to the eye is drawn
_TURN = np.linspace(0.0, 2.0 * math.pi, 18, endpoint=False)
CIRCLE: Points = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=-1)


def between(rng: Rng, low: float, high: float) -> float:
    """Draw a uniform random number."""
    return float(rng.uniform(low, high))


def new_seed(rng: Rng) -> int:
    """Draw a random seed for one object."""
    return int(rng.integers(1 << 31))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Return the colour `share` of the way from `a` to `b`; channels 0-255."""
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def dim(colour: Colour, factor: float) -> Colour:
    """Multiply a colour by `factor`; painting clips values over 255."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


@dataclass(frozen=True)
class Light:
    """Weather and hour of a place; `sun` is the unit vector towards the sun in world axes."""

    zenith: Colour
    skyline: Colour  # low sky, and what distance fades into
    gain: Colour  # factor per channel on every painted colour
    sun: Vector
    shadow: float  # darkness of cast shadows, 0-1
    fog: float  # per metre
    clouds: float  # share of sky, 0-1
    night: bool = False


@dataclass(frozen=True)
class View:
    """A pinhole camera; sizes, focal length and horizon in canvas pixels, positions in metres."""

    width: int
    height: int
    focal: float
    horizon: float
    eye: float
    yaw: float
    x: float
    z: float

    @cached_property
    def _axes(self) -> Points:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])

    @cached_property
    def _origin(self) -> Points:
        return np.array([self.x, self.eye, self.z])

    def rotate(self, world: Points) -> Points:
        """Directions (..., 3) from world to camera axes."""
        return world @ self._axes

    def turn(self, world: Points) -> Points:
        """Points (..., 3) from world to camera axes."""
        return (world - self._origin) @ self._axes

    def unturn(self, lateral: Number, depth: Number) -> tuple[Number, Number]:
        """Return the world (x, z) of points `lateral` metres right of the eye and `depth` ahead."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return self.x + cos * lateral + sin * depth, self.z - sin * lateral + cos * depth

    def frames(self, lateral: Points, depth: Points, margin: float) -> bool:
        """Return whether points (n,), metres right and ahead, may span a part of the image."""
        edge = self.width / 2 / self.focal * depth + margin
        return bool((lateral < edge).any() and (lateral > -edge).any())

    def project(self, camera: Points) -> Points:
        """Camera points (..., 3) to canvas pixels (..., 2); depth is held at the near plane."""
        scale = self.focal / np.maximum(camera[..., 2:], NEAR)
        return camera[..., :2] * (scale * (1.0, -1.0)) + (self.width / 2, self.horizon)

    def outline(self, camera: Points) -> Points:
        """Return the visible part of a polygon (n, 3), (m, 2) on the canvas; m may be 0."""
        return self.project(_clip_near(camera))


def _clip_near(polygon: Points) -> Points:
    """Return the part of a polygon (n, 3) beyond the near plane."""
    beyond = polygon[:, 2] >= NEAR
    if beyond.all():
        return polygon
    kept: list[Points] = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (NEAR - a[2]) / (b[2] - a[2]) * (b - a))
    return np.array(kept).reshape(-1, 3)


@dataclass(frozen=True)
class Brush:
    """Paints shapes of one label at one distance; points are canvas pixels."""

    draw: ImageDraw.ImageDraw
    label: int
    gain: Colour
    haze: Colour
    fog: float  # 0-1, how much of the haze lies before the object

    def ink(self, colour: Colour, glow: bool = False) -> tuple[int, int, int, int]:
        """Return the colour as it reaches the eye; a glowing colour needs no light."""
        red, green, blue = self.gain if not glow else (1.0, 1.0, 1.0)
        lit = (colour[0] * red, colour[1] * green, colour[2] * blue)
        r, g, b = mix(lit, self.haze, self.fog)
        return min(int(r), 255), min(int(g), 255), min(int(b), 255), self.label

    def polygon(self, points: Points, colour: Colour, glow: bool = False) -> None:
        """Fill a polygon, (n, 2)."""
        if len(points) > 2:
            self.draw.polygon(points.ravel().tolist(), fill=self.ink(colour, glow))

    def polygons(self, shapes: Points, colours: Points) -> None:
        """Fill polygons (k, n, 2) in order with colours (k, 3)."""
        lit = colours * np.array(self.gain)
        inks = np.minimum(lit + (np.array(self.haze) - lit) * self.fog, 255).astype(int).tolist()
        for shape, (r, g, b) in zip(
            shapes.reshape(len(shapes), 2 * shapes.shape[1]).tolist(), inks, strict=True
        ):
            self.draw.polygon(shape, fill=(r, g, b, self.label))

    def ellipse(
        self, centre: Sequence[float], rx: float, ry: float, colour: Colour, glow: bool = False
    ) -> None:
        """Fill an upright ellipse."""
        x, y = centre
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=self.ink(colour, glow))


@dataclass(frozen=True)
class Stage:
    """Pen of the canvas, camera and light for painters."""

    draw: ImageDraw.ImageDraw
    view: View
    light: Light

    def brush(self, label: int = 0, depth: float = 0.0) -> Brush:
        """Return a brush for an object `depth` metres away."""
        fog = 1.0 - math.exp(-max(depth, 0.0) * self.light.fog)
        return Brush(self.draw, label, self.light.gain, self.light.skyline, fog)

    def upright(self, x: float, z: float) -> tuple[Points, float]:
        """Return the canvas position (2,) of ground point (x, z), and pixels per metre there."""
        camera = self.view.turn(np.array([x, 0.0, z]))
        return self.view.project(camera), self.view.focal / max(float(camera[2]), NEAR)


def _towards(face: Points, inside: Points) -> tuple[Vector, bool]:
    """Outward unit normal of a face (n, 3) of a solid around `inside`; whether the eye sees it.

    Newell's normal, which bears faces that are not quite flat.
    """
    corners, middle = face.tolist(), inside.tolist()
    nx = ny = nz = 0.0
    for (x, y, z), (u, v, w) in zip(corners, corners[1:] + corners[:1], strict=True):
        nx, ny, nz = nx + y * w - z * v, ny + z * u - x * w, nz + x * v - y * u
    x, y, z = (sum(axis) / len(corners) for axis in zip(*corners, strict=True))
    outward = nx * (x - middle[0]) + ny * (y - middle[1]) + nz * (z - middle[2])
    length = math.copysign(max(math.hypot(nx, ny, nz), 1e-9), outward)
    return (nx / length, ny / length, nz / length), (nx * x + ny * y + nz * z) * length < 0.0


def faces_eye(face: Points, inside: Points) -> bool:
    """Return whether a face (n, 3; camera axes) of a solid around `inside` faces the camera."""
    return _towards(face, inside)[1]


def paint_solid(stage: Stage, brush: Brush, faces: Sequence[tuple[Points, Colour]]) -> None:
    """Paint a convex solid: the faces (n, 3; camera axes) that look at the eye, far ones first."""
    inside = np.concatenate([points for points, _ in faces]).mean(axis=0)
    sun = stage.view.rotate(np.array(stage.light.sun)).tolist()
    for points, colour in sorted(
        faces, key=lambda face: -sum(face[0][:, 2].tolist()) / len(face[0])
    ):
        normal, seen = _towards(points, inside)
        if seen:
            light = max(0.0, normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2])
            brush.polygon(stage.view.outline(points), dim(colour, 0.7 + 0.4 * light))


def patch(quad: Points, cells: Points) -> Points:
    """Parts of a quad: corners (4, 3) in turn, cells (..., 4) as u0 u1 v0 v1 -> (..., 4, 3)."""
    u = cells[..., [0, 1, 1, 0], None]
    v = cells[..., [2, 2, 3, 3], None]
    low = quad[0] + (quad[1] - quad[0]) * u
    high = quad[3] + (quad[2] - quad[3]) * u
    return np.asarray(low + (high - low) * v)


def box_faces(low: Vector, high: Vector) -> list[Points]:
    """Four walls, then the top, of an upright box in world axes, each (4, 3), bottom edge first."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    ring = [(x0, z0), (x1, z0), (x1, z1), (x0, z1)]
    walls = [
        np.array([(a[0], y0, a[1]), (b[0], y0, b[1]), (b[0], y1, b[1]), (a[0], y1, a[1])])
        for a, b in zip(ring, ring[1:] + ring[:1], strict=True)
    ]
    return [*walls, np.array([(x, y1, z) for x, z in ring])]


def ring(x: float, z: float, radius: float, height: float) -> Points:
    """Return a level circle around the world's (x, z), (18, 3)."""
    return np.column_stack(
        [x + radius * CIRCLE[:, 0], np.full(len(CIRCLE), height), z + radius * CIRCLE[:, 1]]
    )


def hull(points: Points) -> Points:
    """Convex hull (m, 2) of points (n, 2)."""

    def chain(ordered: list[list[float]]) -> list[list[float]]:
        out: list[list[float]] = []
        for x, y in ordered:
            while len(out) > 1 and (out[-1][0] - out[-2][0]) * (y - out[-2][1]) <= (
                out[-1][1] - out[-2][1]
            ) * (x - out[-2][0]):
                out.pop()
            out.append([x, y])
        return out[:-1]

    ordered = sorted(points.tolist())
    return np.array(chain(ordered) + chain(ordered[::-1]))


def smooth_noise(
    rng: Rng, size: tuple[int, int], cells: tuple[int, int], octaves: int
) -> NDArray[np.float32]:
    """Cloudy noise (H, W) float32 in 0-1; `size` is (W, H), `cells` the coarsest grid (W, H)."""
    total = np.zeros((size[1], size[0]), dtype=np.float32)
    for octave in range(octaves):
        shape = (cells[1] << octave, cells[0] << octave)
        grid = Image.fromarray(rng.random(shape, dtype=np.float32))
        total += np.asarray(grid.resize(size, Image.Resampling.BICUBIC)) / 2**octave
    low, high = float(total.min()), float(total.max())
    return np.asarray((total - low) / (high - low), dtype=np.float32)
