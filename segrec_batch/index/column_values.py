"""Compute values of columns: ids, masks, bitmaps, bounding boxes, norms."""

import hashlib
import io
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Labels = NDArray[np.uint8]


def image_id(uri: str) -> str:
    """Return the id of an image: the 128-bit BLAKE2b hash of its URI, in hex."""
    return hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()


def encode_mask(labels: Labels, colours: Sequence[str]) -> bytes:
    """Return a class map (H, W) as a palette PNG.

    Pixel values are labels; colour 0 is black, colour i is `colours[i - 1]` (`#rrggbb`).
    """
    image = Image.fromarray(labels)
    palette = bytes(3) + b"".join(bytes.fromhex(c.removeprefix("#")) for c in colours)
    image.putpalette(palette)
    buffer = io.BytesIO()
    # run-length encoding takes half the time for class maps, and gives smaller files
    image.save(buffer, "PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def pack_bitmaps(is_member: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return bitmaps (…, 64·n) as 64-bit words (…, n), lowest bit first."""
    packed = np.packbits(is_member, axis=-1, bitorder="little")
    return packed.view("<i8")


def compute_bounding_box(is_member: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of the true cells of (h, w), as fractions of width and height."""
    h, w = is_member.shape
    rows, columns = np.flatnonzero(is_member.any(axis=1)), np.flatnonzero(is_member.any(axis=0))
    return columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h


def compute_inverse_norms(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1/‖x − x̄‖ of each row of (N, C), computed in float64; NaN for a constant row.

    Pearson (Abdullah 2026, eq. 6) is x·q_z times this value; q_z is the centred query at unit
    length.
    """
    exact = features.astype(np.float64)
    norms = np.linalg.norm(exact - exact.mean(axis=1, keepdims=True), axis=1)
    constant = np.ptp(features, axis=1) == 0
    inverse = np.divide(1, norms, out=np.full(len(exact), np.nan), where=~constant)
    return np.asarray(inverse, np.float32)
