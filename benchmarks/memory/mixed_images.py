"""Images of mixed shapes, sizes and formats, some of them broken.

What a bucket holds that people have filled: mostly small JPEGs, now and then one of 24 megapixels,
PNGs with transparency or 16 bits, strips of 40:1, files that are no images.
"""

import io
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_VARIANTS = 12  # files of each kind; the others are further names of these


def _soft(width: int, height: int, dice: random.Random) -> Image.Image:
    coarse = np.random.default_rng(dice.randrange(2**32)).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _jpeg(dice: random.Random) -> bytes:
    side, aspect = dice.randrange(60, 500), 2 ** dice.uniform(-1.5, 1.5)
    image = _soft(max(1, round(side * aspect)), side, dice)
    return _saved(image, "JPEG", quality=85, progressive=dice.random() < 0.3)


def _strip(dice: random.Random) -> bytes:
    sides = [dice.randrange(8, 30), dice.randrange(800, 1200)]
    dice.shuffle(sides)
    return _saved(_soft(sides[0], sides[1], dice), "JPEG")


def _large(dice: random.Random) -> bytes:
    sides = [4000, 6000]
    dice.shuffle(sides)
    return _saved(_soft(sides[0], sides[1], dice), "JPEG", quality=80)


def _png(mode: str, dice: random.Random) -> bytes:
    image = _soft(dice.randrange(40, 400), dice.randrange(40, 400), dice)
    if mode == "I;16":
        return _saved(Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257), "PNG")
    return _saved(image.convert(mode), "PNG")


def _other(kind: str, mode: str, dice: random.Random) -> bytes:
    return _saved(_soft(dice.randrange(40, 300), dice.randrange(40, 300), dice).convert(mode), kind)


def _truncated(dice: random.Random) -> bytes:
    whole = _jpeg(dice)
    return whole[: len(whole) // 3]


_KINDS: dict[str, tuple[float, Callable[[random.Random], bytes]]] = {
    "JPEG": (60, _jpeg),
    "JPEG of 24 megapixels": (1, _large),
    "strip": (6, _strip),
    "PNG": (8, partial(_png, "RGB")),
    "PNG with alpha": (8, partial(_png, "RGBA")),
    "PNG of 16 bits": (4, partial(_png, "I;16")),
    "CMYK JPEG": (2, partial(_other, "JPEG", "CMYK")),
    "WebP": (4, partial(_other, "WEBP", "RGB")),
    "GIF": (3, partial(_other, "GIF", "P")),
    "cut off": (2, _truncated),
    "no image": (1, lambda dice: b"<html>" + dice.randbytes(20)),
    "empty": (1, lambda _: b""),
}
"""Percent of the files, and how one is made."""

BROKEN = ("cut off", "no image", "empty")


def write_images(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """`count` files in a new folder: how many of each kind there are."""
    dice = random.Random(seed)  # noqa: S311
    sources = folder / "sources"
    sources.mkdir(parents=True)
    files: dict[str, list[Path]] = {}
    for kind, (_, make) in _KINDS.items():
        files[kind] = [sources / f"{kind}-{i}" for i in range(_VARIANTS)]
        for path in files[kind]:
            path.write_bytes(make(dice))
    weights = [share for share, _ in _KINDS.values()]
    kinds = dice.choices(list(_KINDS), weights, k=count)
    for i, kind in enumerate(kinds):
        below = folder / "images" / f"{i // 1000:03}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{i:07}.jpg").hardlink_to(dice.choice(files[kind]))
    return Counter(kinds)
