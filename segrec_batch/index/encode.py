"""Arithmetic between a segmentation and its rows: masks, bitmaps, boxes, norms, sort order."""

import hashlib
import io
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Labels = NDArray[np.uint8]


def image_id(uri: str) -> str:
    """128 bits of a URI, in hex."""
    return hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()


def mask_png(labels: Labels, colours: Sequence[str]) -> bytes:
    """A class map (H, W) as a palette PNG: pixel values are labels, 0 black, i colours[i-1]."""
    image = Image.fromarray(labels)
    palette = bytes(3) + b"".join(bytes.fromhex(c.removeprefix("#")) for c in colours)
    image.putpalette(palette)
    out = io.BytesIO()
    # runs only: class maps have little else, so it takes half the time and gives fewer bytes
    image.save(out, "PNG", compress_type=zlib.Z_RLE)
    return out.getvalue()


def bitmap_words(member: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Bitmaps (…, 64·n) → (…, n) words, lowest bit first."""
    packed = np.packbits(member, axis=-1, bitorder="little")
    return packed.view("<i8")


def bounding_box(member: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of the true cells of (h, w), in fractions of width and height."""
    h, w = member.shape
    rows, columns = np.flatnonzero(member.any(axis=1)), np.flatnonzero(member.any(axis=0))
    return columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h


def inverse_norms(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """1/‖x − x̄‖ per row of (N, C), computed in float64; NaN for a constant row.

    With the query centred and at unit length, q_z, Pearson (Abdullah 2026, eq. 6) is (x·q_z) times
    this.
    """
    x = features.astype(np.float64)
    norms = np.linalg.norm(x - x.mean(axis=1, keepdims=True), axis=1)
    constant = np.ptp(features, axis=1) == 0
    inverse = np.divide(1, norms, out=np.full(len(x), np.nan), where=~constant)
    return np.asarray(inverse, np.float32)


def z_order(coverages: NDArray[np.float32], bits: int = 3) -> NDArray[np.int64]:
    """The row order of (N, K) coverages in [0, 1] along a Z-curve with `bits` bits a class.

    Rows near each other then have similar coverages of every class, so that the minima and maxima
    of a row group rule most groups out. At most 21 classes count.
    """
    k = min(coverages.shape[1], 63 // bits)
    levels = np.minimum((coverages[:, :k] * 2**bits).astype(np.int64), 2**bits - 1)
    code = np.zeros(len(coverages), np.int64)
    for bit in reversed(range(bits)):
        for column in range(k):
            code = (code << 1) | ((levels[:, column] >> bit) & 1)
    return np.argsort(code, kind="stable")
