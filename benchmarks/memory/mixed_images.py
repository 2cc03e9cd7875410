"""Images of mixed shapes, sizes and formats, some of them broken.

They resemble a bucket of uploads: mostly small JPEGs, a few of 24 megapixels, PNGs with
transparency or 16 bits, strips of 40:1, files that are not images.
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

_VARIANTS = 12  # different files of each kind; the others are hard links to these


def _draw_gradient(width: int, height: int, rng: random.Random) -> Image.Image:
    coarse = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _make_jpeg(rng: random.Random) -> bytes:
    side, aspect = rng.randrange(60, 500), 2 ** rng.uniform(-1.5, 1.5)
    image = _draw_gradient(max(1, round(side * aspect)), side, rng)
    return _encode(image, "JPEG", quality=85, progressive=rng.random() < 0.3)


def _make_strip(rng: random.Random) -> bytes:
    sides = [rng.randrange(8, 30), rng.randrange(800, 1200)]
    rng.shuffle(sides)
    return _encode(_draw_gradient(sides[0], sides[1], rng), "JPEG")


def _make_large(rng: random.Random) -> bytes:
    sides = [4000, 6000]
    rng.shuffle(sides)
    return _encode(_draw_gradient(sides[0], sides[1], rng), "JPEG", quality=80)


def _make_png(mode: str, rng: random.Random) -> bytes:
    image = _draw_gradient(rng.randrange(40, 400), rng.randrange(40, 400), rng)
    if mode == "I;16":
        return _encode(Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257), "PNG")
    return _encode(image.convert(mode), "PNG")


def _make_other(kind: str, mode: str, rng: random.Random) -> bytes:
    return _encode(
        _draw_gradient(rng.randrange(40, 300), rng.randrange(40, 300), rng).convert(mode), kind
    )


def _make_truncated(rng: random.Random) -> bytes:
    whole = _make_jpeg(rng)
    return whole[: len(whole) // 3]


_KINDS: dict[str, tuple[float, Callable[[random.Random], bytes]]] = {
    "JPEG": (60, _make_jpeg),
    "JPEG of 24 megapixels": (1, _make_large),
    "strip": (6, _make_strip),
    "PNG": (8, partial(_make_png, "RGB")),
    "PNG with alpha": (8, partial(_make_png, "RGBA")),
    "PNG of 16 bits": (4, partial(_make_png, "I;16")),
    "CMYK JPEG": (2, partial(_make_other, "JPEG", "CMYK")),
    "WebP": (4, partial(_make_other, "WEBP", "RGB")),
    "GIF": (3, partial(_make_other, "GIF", "P")),
    "cut off": (2, _make_truncated),
    "no image": (1, lambda rng: b"<html>" + rng.randbytes(20)),
    "empty": (1, lambda _: b""),
}
"""Percent of the files, and the function that makes one, by kind."""

BROKEN = ("cut off", "no image", "empty")


def write_images(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Write `count` files into a new folder; return the number of each kind."""
    rng = random.Random(seed)  # noqa: S311
    sources = folder / "sources"
    sources.mkdir(parents=True)
    files: dict[str, list[Path]] = {}
    for kind, (_, make) in _KINDS.items():
        files[kind] = [sources / f"{kind}-{i}" for i in range(_VARIANTS)]
        for path in files[kind]:
            path.write_bytes(make(rng))
    weights = [share for share, _ in _KINDS.values()]
    kinds = rng.choices(list(_KINDS), weights, k=count)
    for i, kind in enumerate(kinds):
        parent = folder / "images" / f"{i // 1000:03}"
        parent.mkdir(parents=True, exist_ok=True)
        (parent / f"{i:07}.jpg").hardlink_to(rng.choice(files[kind]))
    return Counter(kinds)
