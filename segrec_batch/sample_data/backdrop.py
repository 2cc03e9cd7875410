"""Backdrop: sky, far hills or skyline, the ground and the shadows on it; all label 0."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from segrec_batch.sample_data.paint import Points, Stage, View, hull, mix, smooth_noise
from segrec_batch.sample_data.places import Ground, Place


def sky(view: View, place: Place, drift: float) -> Image.Image:
    """Draw the sky, RGB at a quarter of the canvas size; clouds move with `drift` (0-1)."""
    width, height = view.width // 4, view.height // 4
    light, rng = place.light, np.random.default_rng(place.seed)
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] * (
        view.height / max(view.horizon, 1.0)
    )
    share = np.clip(rows, 0, 1) ** 1.3
    zenith, skyline = np.array((light.zenith, light.skyline), dtype=np.float32)
    sheet = zenith + (skyline - zenith) * share
    noise = smooth_noise(rng, (2 * width, height), (6, 7), 4)
    start = int(drift * width)
    cloud = np.clip((noise[:, start : start + width] - 1 + light.clouds * 0.75) * 4, 0, 1)[
        ..., None
    ]
    white = np.array(
        light.skyline if light.night else mix(light.skyline, (255, 255, 255), 0.55),
        dtype=np.float32,
    )
    veil = cloud * (0.75 * np.clip(1.25 - rows, 0, 1))
    sheet = (
        sheet + (white * (0.86 + 0.14 * noise[::-1, start : start + width, None]) - sheet) * veil
    )
    return Image.fromarray(np.clip(sheet, 0, 255).astype(np.uint8))


def paint_far(stage: Stage, place: Place) -> None:
    """Hills or a skyline beyond everything else; they turn with the camera."""
    rng = np.random.default_rng(place.seed)
    view = stage.view
    bearing = np.linspace(-math.pi, math.pi, 240)
    across = view.width / 2 + view.focal * np.tan(np.clip(bearing - view.yaw, -1.3, 1.3))
    if place.far == "skyline":
        tall = np.repeat(rng.uniform(0.03, 0.17, 60), 4) * (rng.random(60) < 0.8).repeat(4)
        across = across[::4].repeat(4) + np.tile([0, 0, 1, 1], 60) * view.focal * 0.105
        layers = [(0.3, tall)]
    elif place.far == "hills":
        phases = rng.uniform(0, 2 * math.pi, (2, 5))
        waves = [
            sum(np.sin((k + 2) * bearing * 1.7 + p) / (k + 1.5) for k, p in enumerate(row))
            for row in phases
        ]
        layers = [(0.55, 0.085 + 0.045 * waves[0]), (0.25, 0.035 + 0.022 * waves[1])]
    else:
        return
    for haze, tall in layers:
        tops = np.stack([across, view.horizon - view.focal * np.maximum(tall, 0.0)], axis=-1)
        feet = np.array([(across[-1], view.horizon + 2), (across[0], view.horizon + 2)])
        colour = mix(place.far_colour, stage.light.skyline, haze)
        stage.brush().polygon(np.concatenate([tops, feet]), colour, glow=not stage.light.night)


def paint_ground(stage: Stage, ground: Ground) -> None:
    """Quads on the ground plane; for a while the label channel holds how rough they are."""
    flat = np.stack(
        [ground.quads[..., 0], np.zeros(ground.quads.shape[:2]), ground.quads[..., 1]], axis=-1
    )
    camera = stage.view.turn(flat)
    brush = stage.brush(ground.rough)
    for quad in camera[camera[..., 2].max(axis=1) > 0.5]:
        brush.polygon(stage.view.outline(quad), ground.colour)


@lru_cache(maxsize=1)
def _grain() -> NDArray[np.float32]:
    """Noise at two scales, (256, 256) in -1 to 1; it repeats at the edges."""
    rng = np.random.default_rng(7)
    fine = rng.random((256, 256), dtype=np.float32) * 2 - 1
    coarse = Image.fromarray(rng.random((48, 48), dtype=np.float32) * 2 - 1)
    broad = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.asarray(0.5 * fine + 0.5 * broad, dtype=np.float32)


def roughen(canvas: Image.Image, view: View) -> Image.Image:
    """Multiply the grain of the ground into the canvas; set label 0 everywhere."""
    width, height = view.width // 2, view.height // 2
    first = min(max(int(view.horizon / 2), 0), height - 1)
    rows = np.arange(first, height, dtype=np.float32)[:, None] * 2 + 1
    depth = view.focal * view.eye / np.maximum(rows - view.horizon, 1.0)
    lateral = (np.arange(width, dtype=np.float32)[None] * 2 - view.width / 2) * depth / view.focal
    x, z = view.unturn(lateral, depth)
    across, along, tile = (x * 14).astype(np.int32), (z * 14).astype(np.int32), _grain()
    noise = np.clip(7.0 / depth, 0.3, 1.0) * tile[along & 255, across & 255]
    noise = 212 + 56 * noise + 24 * tile[(along >> 3) & 255, (across >> 3) & 255]
    factor = np.full((height, width), 255, dtype=np.uint8)
    factor[first:] = np.clip(noise, 0, 255)
    grain = Image.fromarray(factor).resize(canvas.size, Image.Resampling.BILINEAR).convert("RGB")
    plain = canvas.convert("RGB")
    out = Image.composite(ImageChops.multiply(plain, grain), plain, canvas.getchannel("A"))
    out.putalpha(0)
    return out


def cast_shadows(canvas: Image.Image, stage: Stage, shapes: list[Points]) -> None:
    """Darken the ground where the sunlight is kept off; shapes are world points (n, 3)."""
    view, sun = stage.view, stage.light.sun
    veil = Image.new("L", (view.width // 2, view.height // 2))
    pen = ImageDraw.Draw(veil)
    rise = max(sun[1], 0.3)
    dark = int(255 * stage.light.shadow)
    for points in shapes:
        fallen = points - points[:, 1:2] * (np.array(sun) / rise)
        camera = view.turn(np.column_stack([fallen[:, 0], np.zeros(len(points)), fallen[:, 2]]))
        if camera[:, 2].min() > 0.5:
            pen.polygon((hull(view.project(camera)) / 2).ravel().tolist(), fill=dark)
    blur = ImageFilter.GaussianBlur(view.height / (600 if rise < 0.95 else 160))
    veil = veil.filter(blur).resize(canvas.size, Image.Resampling.BILINEAR)
    red, green, blue = (int(c * g) for c, g in zip((18, 20, 28), stage.light.gain, strict=True))
    canvas.paste(Image.new("RGBA", canvas.size, (red, green, blue, 0)), mask=veil)
