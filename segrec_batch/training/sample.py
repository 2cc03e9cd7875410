"""Training positions: which cells of the feature maps the SVM sees, and their features."""

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

from segrec_batch.images.decode import Shape, fit
from segrec_batch.labels.labelled import VOID, Classes, LabelledImage, count_values
from segrec_batch.model import describe
from segrec_batch.model.architecture import DEEPEST, Tap
from segrec_batch.model.head import pool
from segrec_batch.training.augment import augment


@dataclass(frozen=True)
class Samples:
    """n sampled positions of labelled images.

    features: (n, D) float16, the taps' channels side by side. values: (n,) mask values.
    weights: (n,) float64, how many cells of the maps a position stands for: sums over them estimate
    sums over all cells. groups: (n,) group of the image. centre: (512,) mean centred feature of all
    images that were sampled, which parts of the rows keep. images: (n,) int64, number of the
    image. variants: (n,) int64, 0 for the image itself, then its augmented copies. pixels: of the
    whole mask of each image the number by value, see `count_values`.
    """

    features: NDArray[np.float16]
    values: NDArray[np.int16]
    weights: NDArray[np.float64]
    groups: NDArray[np.object_]
    centre: Tensor
    images: NDArray[np.int64]
    variants: NDArray[np.int64]
    pixels: Sequence[Mapping[int, int]] = ()

    def rows(self, wanted: NDArray[np.bool_]) -> "Samples":
        """Some of the positions: wanted (n,)."""
        return replace(
            self,
            features=self.features[wanted],
            values=self.values[wanted],
            weights=self.weights[wanted],
            groups=self.groups[wanted],
            images=self.images[wanted],
            variants=self.variants[wanted],
        )

    def columns(self, taps: Sequence[Tap], wanted: Sequence[Tap]) -> NDArray[np.float16]:
        """The features of some of the taps that were sampled, in the order of `wanted`."""
        stops = np.cumsum([tap.source.channels for tap in taps])
        spans = {t: range(e - t.source.channels, e) for t, e in zip(taps, stops, strict=True)}
        if list(wanted) == list(taps):
            return self.features
        return self.features[:, [i for tap in wanted for i in spans[tap]]]


@dataclass(frozen=True)
class Sampling:
    """How positions are drawn: up to `positions` an image, half of them uniformly, half in equal
    parts from each mask value present; `copies` random variants of each image by each of `kinds`.
    """

    positions: int = 1000
    kinds: tuple[str, ...] = ()
    copies: int = 1
    seed: int = 0

    @property
    def variants(self) -> int:
        """Images drawn from one image, itself included."""
        return 1 + len(self.kinds) * self.copies


@dataclass(frozen=True)
class _PositionSample:
    """Sampled positions of one variant of an image, its mean feature (1, 512), and the pixels of
    its whole mask by value.
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
    """Run the backbone over all images and their variants once and keep sampled positions.

    special: another sampling for some of the images, by number. workers: threads that take an image
    each; the result does not depend on them.
    """
    plans = [(special or {}).get(number, sampling) for number in range(len(images))]
    rows = sum(plan.variants * plan.positions for plan in plans)
    width = sum(tap.source.channels for tap in taps)
    features = np.empty((rows, width), np.float16)  # at once: joining parts would take twice that
    values, weights, groups, pooled = [], [], [], []
    owners, variants, pixels = [], [], []
    filled = 0

    def draw(index: int) -> list[_PositionSample]:
        plan = plans[index]
        rng = np.random.default_rng([plan.seed, index])
        return [
            _draw_positions(image, labels, taps, shapes, feature_maps, plan.positions, rng)
            for image, labels in _variants(images[index], classes, plan, rng)
        ]

    for index, drawn in enumerate(_in_order(draw, track(images), workers)):
        pixels.append(drawn[0].pixels)
        for variant, found in enumerate(drawn):
            count = len(found.values)
            features[filled : filled + count] = found.features
            filled += count
            values.append(found.values)
            weights.append(found.weights)
            pooled.append(found.pooled)
            groups.append(np.full(count, images[index].group, object))
            owners.append(np.full(count, index))
            variants.append(np.full(count, variant))
    return Samples(
        features[:filled],
        np.concatenate(values),
        np.concatenate(weights),
        np.concatenate(groups),
        describe.centred_unit(torch.cat(pooled)).mean(dim=0).cpu(),
        np.concatenate(owners),
        np.concatenate(variants),
        pixels,
    )


def _in_order(
    work: Callable[[int], list[_PositionSample]], items: Iterator[LabelledImage], workers: int
) -> Iterator[list[_PositionSample]]:
    """Yield what `work` makes of the number of each item; a few are under way in threads."""
    running: deque[Future[list[_PositionSample]]] = deque()
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
) -> _PositionSample:
    maps = feature_maps(fit(image, shapes)[None])
    grid = _finest(maps, taps)
    values, cells, weights = draw_cells(cell_labels(labels, grid), positions, rng)
    features = cell_features(maps, taps, cells, grid).half().cpu().numpy()
    pooled = describe.global_mean(maps[DEEPEST])
    return _PositionSample(features, values, weights, pooled, count_values(labels))


def _variants(
    item: LabelledImage, classes: Classes, sampling: Sampling, rng: np.random.Generator
) -> Iterator[tuple[Image.Image, NDArray[np.int16]]]:
    image, labels = item.load(classes)
    yield image, labels
    for kind in sampling.kinds:
        for _ in range(sampling.copies):
            yield augment(image, labels, kind, rng)


def _finest(maps: Mapping[str, Tensor], taps: Sequence[Tap]) -> Shape:
    tap = min(taps, key=lambda t: t.source.stride)
    h, w = maps[tap.layer].shape[-2:]
    return h, w


def cell_labels(labels: NDArray[np.int16], grid: Shape) -> NDArray[np.int16]:
    """Mask values (H, W) at the centres of the cells of a grid (h, w)."""
    rows, columns = (
        ((np.arange(n) + 0.5) * side / n).astype(int)
        for n, side in zip(grid, labels.shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def draw_cells(
    labels: NDArray[np.int16], positions: int, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.float64]]:
    """Draw cells of (h, w) mask values: their values, flat indices, and weights (see `Samples`).

    Void is not drawn. With p(i) the expected number of draws of cell i, its weight is 1/p(i), so
    that a weighted sum over the drawn cells is unbiased for the sum over all.
    """
    flat = labels.ravel()
    known = np.flatnonzero(flat != VOID)
    if known.size == 0:
        return flat[:0], known, np.zeros(0)
    present, sizes = np.unique(flat[known], return_counts=True)
    uniform = positions - positions // 2
    each = positions // 2 // len(present)
    per_value = (rng.choice(np.flatnonzero(flat == value), each) for value in present)
    cells = np.concatenate([rng.choice(known, uniform), *per_value])
    expected = uniform / known.size + each / sizes
    weights = 1 / expected[np.searchsorted(present, flat[cells])]
    return flat[cells], cells, weights


def cell_features(
    maps: Mapping[str, Tensor], taps: Sequence[Tap], cells: NDArray[np.int64], grid: Shape
) -> Tensor:
    """What the taps of one image say at flat cells of a grid (h, w): (n, D) float32.

    Equal to the maps resized bilinearly to the grid and read at the cells.
    """
    h, w = grid
    centres = np.stack([(cells % w + 0.5) / w, (cells // w + 0.5) / h], axis=-1)
    where = torch.as_tensor(centres * 2 - 1, dtype=torch.float32)[None, None]
    parts = []
    for tap in taps:
        pooled = pool(maps[tap.layer].float(), tap.window)
        read = F.grid_sample(
            pooled, where.to(pooled.device), padding_mode="border", align_corners=False
        )
        parts.append(read[0, :, 0].T)  # (1, C, 1, n) -> (n, C)
    return torch.cat(parts, dim=1)
