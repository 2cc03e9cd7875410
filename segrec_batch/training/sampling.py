"""Sampling of training positions: cells of the feature maps and their features."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segrec_batch.common.errors import ModelError
from segrec_batch.images.decode import Shape, fit
from segrec_batch.labels.labelled import VOID, Classes, LabelledImage, count_values
from segrec_batch.model import pooling
from segrec_batch.model.backbones import BACKBONES, Tap
from segrec_batch.model.head import pool, read_positions
from segrec_batch.training.augment import augment


@dataclass(frozen=True)
class Samples:
    """The n sampled positions of labelled images.

    Attributes:
        features: (n, D) float16, channels of the taps side by side.
        values: (n,) mask values.
        weights: (n,) float64, number of cells that a position represents: weighted sums over
            positions estimate sums over all cells.
        groups: (n,) group of the image.
        centre: (C,) mean centred feature of all sampled images; subsets of positions keep it.
        images: (n,) int64, number of the image.
        variants: (n,) int64, 0 for the image, from 1 for its augmented copies.
        pixels: pixels of each image's whole mask by value, see `count_values`.
    """

    features: NDArray[np.float16]
    values: NDArray[np.int16]
    weights: NDArray[np.float64]
    groups: NDArray[np.object_]
    centre: Tensor
    images: NDArray[np.int64]
    variants: NDArray[np.int64]
    pixels: Sequence[Mapping[int, int]] = ()

    def rows(self, selected: NDArray[np.bool_]) -> "Samples":
        """Return the positions selected by a mask (n,)."""
        return replace(
            self,
            features=self.features[selected],
            values=self.values[selected],
            weights=self.weights[selected],
            groups=self.groups[selected],
            images=self.images[selected],
            variants=self.variants[selected],
        )

    def columns(self, taps: Sequence[Tap], selected: Sequence[Tap]) -> NDArray[np.float16]:
        """Return the features of the selected taps, in their order; `taps` are all sampled taps."""
        stops = np.cumsum([tap.source.channels for tap in taps])
        spans = {t: range(e - t.source.channels, e) for t, e in zip(taps, stops, strict=True)}
        if list(selected) == list(taps):
            return self.features
        return self.features[:, [i for tap in selected for i in spans[tap]]]


@dataclass(frozen=True)
class Sampling:
    """Parameters of sampling.

    Attributes:
        positions: maximum per image; half are drawn uniformly, half in equal parts from each mask
            value of the image.
        kinds: augmentations.
        copies: random variants of each image per augmentation.
        seed: of the random generator.
    """

    positions: int = 1000
    kinds: tuple[str, ...] = ()
    copies: int = 1
    seed: int = 0

    @property
    def variants(self) -> int:
        """Variants per image, the image itself included."""
        return 1 + len(self.kinds) * self.copies


@dataclass(frozen=True)
class _VariantSample:
    """Sampled positions of one variant of an image.

    Attributes:
        features, values, weights: see `Samples`.
        pooled: (1, C) mean feature.
        pixels: pixels of the whole mask by value.
    """

    features: NDArray[np.float16]
    values: NDArray[np.int16]
    weights: NDArray[np.float64]
    pooled: Tensor
    pixels: Mapping[int, int]


def sample_images(
    images: Sequence[LabelledImage],
    classes: Classes,
    taps: Sequence[Tap],
    shapes: Sequence[Shape],
    feature_maps: Callable[[NDArray[np.uint8]], Mapping[str, Tensor]],
    sampling: Sampling,
    track: Callable[[Sequence[LabelledImage]], Iterator[LabelledImage]],
    special: Mapping[int, Sampling] | None = None,
    workers: int = 1,
) -> Samples:
    """Run the backbone once over all images and their variants and sample positions.

    Args:
        special: parameters of individual images, by number, in place of `sampling`.
        workers: number of threads with one image each; it does not change the result.
    """
    plans = [(special or {}).get(number, sampling) for number in range(len(images))]
    rows = sum(plan.variants * plan.positions for plan in plans)
    width = sum(tap.source.channels for tap in taps)
    # allocated once, since concatenation needs twice the memory
    features = np.empty((rows, width), np.float16)
    values, weights, groups, pooled = [], [], [], []
    numbers, variants, pixels = [], [], []
    filled = 0

    def draw_image(index: int) -> list[_VariantSample]:
        plan = plans[index]
        rng = np.random.default_rng([plan.seed, index])
        return [
            _draw_positions(image, labels, taps, shapes, feature_maps, plan.positions, rng)
            for image, labels in _load_variants(images[index], classes, plan, rng)
        ]

    for index, samples in enumerate(_map_in_order(draw_image, track(images), workers)):
        pixels.append(samples[0].pixels)
        for variant, sample in enumerate(samples):
            count = len(sample.values)
            features[filled : filled + count] = sample.features
            filled += count
            values.append(sample.values)
            weights.append(sample.weights)
            pooled.append(sample.pooled)
            groups.append(np.full(count, images[index].group, object))
            numbers.append(np.full(count, index))
            variants.append(np.full(count, variant))
    return Samples(
        features[:filled],
        np.concatenate(values),
        np.concatenate(weights),
        np.concatenate(groups),
        pooling.centred_unit(torch.cat(pooled)).mean(dim=0).cpu(),
        np.concatenate(numbers),
        np.concatenate(variants),
        pixels,
    )


def _map_in_order(
    work: Callable[[int], list[_VariantSample]], items: Iterator[LabelledImage], workers: int
) -> Iterator[list[_VariantSample]]:
    """Yield `work(number)` for each item in order; up to `workers` run ahead in threads."""
    running: deque[Future[list[_VariantSample]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for number, _ in enumerate(items):
            running.append(pool.submit(work, number))
            if len(running) > workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _draw_positions(
    image: Image.Image,
    labels: NDArray[np.int16],
    taps: Sequence[Tap],
    shapes: Sequence[Shape],
    feature_maps: Callable[[NDArray[np.uint8]], Mapping[str, Tensor]],
    positions: int,
    rng: np.random.Generator,
) -> _VariantSample:
    maps = feature_maps(fit(image, shapes)[None])
    grid = _finest_grid(maps, taps)
    values, cells, weights = draw_cells(cell_labels(labels, grid), positions, rng)
    features = cell_features(maps, taps, cells, grid).half().cpu().numpy()
    if not np.isfinite(features).all():
        raise ModelError(
            "the backbone gives values beyond ±65,504, or NaN: give other --backbone-weights, or "
            "other --layers"
        )
    pooled = pooling.global_mean(maps[BACKBONES[taps[0].backbone].feature_layer])
    return _VariantSample(features, values, weights, pooled, count_values(labels))


def _load_variants(
    item: LabelledImage, classes: Classes, sampling: Sampling, rng: np.random.Generator
) -> Iterator[tuple[Image.Image, NDArray[np.int16]]]:
    image, labels = item.load(classes)
    yield image, labels
    for kind in sampling.kinds:
        for _ in range(sampling.copies):
            yield augment(image, labels, kind, rng)


def _finest_grid(maps: Mapping[str, Tensor], taps: Sequence[Tap]) -> Shape:
    tap = min(taps, key=lambda t: t.source.stride)
    h, w = maps[tap.layer].shape[-2:]
    return h, w


def cell_labels(labels: NDArray[np.int16], grid: Shape) -> NDArray[np.int16]:
    """Return the mask values (H, W) at the centres of the cells of a grid (h, w)."""
    rows, columns = (
        ((np.arange(n) + 0.5) * side / n).astype(int)
        for n, side in zip(grid, labels.shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def draw_cells(
    labels: NDArray[np.int16], positions: int, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.float64]]:
    """Draw cells of mask values (h, w); return their values, flat indices and weights.

    Void is not drawn. With p(i) the expected number of draws of cell i, its weight is 1/p(i), so
    that the weighted sum over drawn cells is an unbiased estimate of the sum over all cells.
    """
    flat = labels.ravel()
    known = np.flatnonzero(flat != VOID)
    if known.size == 0:
        return flat[:0], known, np.zeros(0)
    present, sizes = np.unique(flat[known], return_counts=True)
    uniform = positions - positions // 2
    equal = positions // 2 // len(present)
    per_value = (rng.choice(np.flatnonzero(flat == value), equal) for value in present)
    cells = np.concatenate([rng.choice(known, uniform), *per_value])
    expected = uniform / known.size + equal / sizes
    weights = 1 / expected[np.searchsorted(present, flat[cells])]
    return flat[cells], cells, weights


def cell_features(
    maps: Mapping[str, Tensor], taps: Sequence[Tap], cells: NDArray[np.int64], grid: Shape
) -> Tensor:
    """Return the features (n, D) float32 of the taps at the centres of flat cells of a grid (h, w).

    The result equals the maps resized bilinearly to the grid and read at the cells.
    """
    parts = []
    for tap in taps:
        pooled = pool(maps[tap.layer].float(), tap.window)
        rows, columns = (
            read_positions(new, own, tap.source.shift, pooled.device)
            for new, own in zip(grid, pooled.shape[-2:], strict=True)
        )
        positions = torch.stack([columns[cells % grid[1]], rows[cells // grid[1]]], dim=-1)
        sampled = F.grid_sample(
            pooled, positions[None, None], padding_mode="border", align_corners=False
        )
        parts.append(sampled[0, :, 0].T)  # (1, C, 1, n) -> (n, C)
    return torch.cat(parts, dim=1)
