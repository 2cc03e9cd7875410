"""Class maps and features of one image in NumPy, for engines without torch.

The arithmetic is that of `head.resize`, `torch_engine.class_maps` and `pooling` in torch; tests
compare the two.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from segrec_batch.images.decode import Shape
from segrec_batch.model.spec import Scaling

Floats = NDArray[np.float32]


@lru_cache(maxsize=32)
def resize_weights(old: int, new: int) -> Floats:
    """Return the matrix (new, old) that resizes one axis bilinearly; a smaller size averages.

    Triangle filter of half-width max(old / new, 1) around the centres of the new cells, rows of sum
    1: bilinear interpolation with antialiasing, as in `torch.nn.functional.interpolate`.
    """
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distances = np.abs(np.arange(old) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(1.0 - distances, 0.0)
    matrix: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def resize(scores: Floats, size: Shape) -> Floats:
    """Resize scores (..., h, w) bilinearly to `size`; a smaller size averages (antialiased)."""
    h, w = scores.shape[-2:]
    if (h, w) == size:
        return scores
    rows, columns = resize_weights(h, size[0]), resize_weights(w, size[1])
    resized = np.empty((*scores.shape[:-2], *size), np.float32)
    if size[0] * w <= h * size[1]:  # resize the axis first that gives the smaller array
        return np.matmul(rows @ scores, columns.T, out=resized)
    return np.matmul(rows, scores @ columns.T, out=resized)


def class_map(scores: Floats, size: Shape) -> NDArray[np.uint8]:
    """Return the class map (H, W) of scores (K, h, w) at a size; ties go to the first class.

    Classes are resized one after the other; only the best scores so far are in memory.
    """
    best = resize(scores[0], size)
    labels = np.zeros(size, np.uint8)
    for k in range(1, len(scores)):
        score = resize(scores[k], size)
        labels[score > best] = k
        best = np.maximum(best, score)
    return labels


def class_means(
    maps: Floats, labels: NDArray[np.uint8], n_classes: int
) -> tuple[NDArray[np.int64], Floats]:
    """Average a feature map inside each class (Abdullah 2026, eq. 3, per class).

    Args:
        maps: (C, h, w).
        labels: (h, w), 0 to n_classes - 1.
        n_classes: K.

    Returns:
        Counts (K,) of cells, and means (K, C), zero where a class has no cells.
    """
    members = (labels.ravel() == np.arange(n_classes)[:, None]).astype(np.float32)  # (K, h·w)
    counts = np.bincount(labels.ravel(), minlength=n_classes).astype(np.int64)
    sums = members @ maps.reshape(len(maps), -1).T
    means: Floats = sums / np.maximum(counts, 1)[:, None].astype(np.float32)
    return counts, means


def sign_bits(feature: Floats, centre: Floats, rotation: Floats) -> NDArray[np.int64]:
    """Return signs of a rotated, centred feature (C,) as ⌈C/64⌉ int64, see `pooling.sign_bits`."""
    exact = feature.astype(np.float64)  # the mean of equal float32 values is that value
    centred = exact - exact.mean()
    norm = np.linalg.norm(centred)
    unit = (centred / max(norm, 1e-12)).astype(np.float32)
    signs = (unit - centre) @ rotation > 0
    words = np.zeros(-(-len(signs) // 64), "<i8")
    packed = np.packbits(signs, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words


def normalise(pixels: NDArray[np.uint8], scaling: Scaling) -> Floats:
    """Scale uint8 (H, W, 3) to the backbone's input, (3, H, W) float32."""
    low, high = (int(pixels.min()), int(pixels.max())) if scaling.minmax else (0, 255)
    mean, std = (np.array(v, np.float32)[:, None] for v in (scaling.mean, scaling.std))
    values = (np.arange(256, dtype=np.float32) - low) / np.float32(max(high - low, 1))
    tables = (values - mean) / std
    return np.stack([table[pixels[..., i]] for i, table in enumerate(tables)])
