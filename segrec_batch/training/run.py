"""Training, from labelled images to a model bundle in memory."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segrec_batch.common import console
from segrec_batch.common.errors import InputError
from segrec_batch.common.host import usable_cores, usable_memory
from segrec_batch.images.decode import Shape, shapes_of_size
from segrec_batch.labels.labelled import VOID, Classes, LabelledImage, describe_unnamed, fingerprint
from segrec_batch.model import describe
from segrec_batch.model.architecture import Tap
from segrec_batch.model.backbone import Weights
from segrec_batch.model.bundle import Array, Model
from segrec_batch.model.engines import PER_PIXEL, EngineChoice, choose_engine, load_feature_maps
from segrec_batch.model.spec import ModelSpec, Scaling
from segrec_batch.training.sample import Samples, Sampling, sample_images
from segrec_batch.training.tune import (
    Candidate,
    Components,
    Validation,
    cross_validate,
    fit_all,
    judged_classes,
    split_groups,
)

log = logging.getLogger(__name__)

DEFAULT_LAYERS = "conv3_3,conv4_3,conv5_3,conv4_3@5,conv5_3@11"
DEFAULT_SIZE = 624
_SHOWN = 20  # mask values that a message names at most
MAX_POSITIONS = 400_000  # in all, which bounds the memory of the fit at about 5 GB


@dataclass(frozen=True)
class Settings:
    """Choices of training. Of several `layers` or `c`, cross-validation takes the best."""

    layers: tuple[str, ...] = (DEFAULT_LAYERS,)
    c: tuple[float, ...] = (1.0, 3.0)
    shapes: tuple[Shape, ...] = shapes_of_size(DEFAULT_SIZE)
    minmax: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    engine: EngineChoice = field(default_factory=choose_engine)

    @property
    def candidates(self) -> list[Candidate]:
        """All pairs of layers and C."""
        combinations = [
            tuple(dict.fromkeys(Tap.parse(t) for t in text.split(","))) for text in self.layers
        ]
        return [Candidate(taps, c) for taps in combinations for c in self.c]


class Trainer:
    """Positions sampled once from labelled images, for as many fits as are wanted.

    `extra`: kinds of augmentation for some of the images, by number, in place of the settings'.
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        classes: Classes,
        weights: Weights,
        settings: Settings,
        extra: Mapping[int, tuple[str, ...]] | None = None,
    ) -> None:
        self.images = images
        self.classes = classes
        self.weights = weights
        self.settings = settings
        every = (tap for candidate in settings.candidates for tap in candidate.taps)
        self.taps = tuple(dict.fromkeys(every))
        scaling = Scaling(settings.minmax, weights.mean, weights.std)
        # ncnn: a thread for each image, as far as memory goes; torch: all threads on one
        self._workers = _count_workers(settings) if settings.engine.engine == "ncnn" else 1
        threads = max(usable_cores() // self._workers, 1)
        self._maps = load_feature_maps(
            weights.arrays, self.taps, settings.engine, scaling, threads, self._workers
        )
        self._check_groups()
        self.samples = self._sample(extra or {})
        self._check_classes()
        self._say_background()
        self.components = Components.of(self.samples.values, classes)

    def feature_maps(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Run the backbone: uint8 (B, H, W, 3) of one shape → {layer: (B, C, h, w)}."""
        return {layer: torch.as_tensor(maps) for layer, maps in self._maps(pixels).items()}

    def subset(self, rows: NDArray[np.bool_]) -> "Trainer":
        """The same with some of the sampled positions only, rows (n,); the backbone does not run.

        Raises InputError if they are of one group, or lack a class.
        """
        part = copy(self)
        part.__dict__.pop("data", None)
        samples = self.samples.rows(rows)
        kept, numbers = np.unique(samples.images, return_inverse=True)
        part.images = [self.images[i] for i in kept]
        pixels = [samples.pixels[i] for i in kept]
        part.samples = replace(samples, images=numbers, pixels=pixels)
        part._check_groups()
        part._check_classes()
        part.components = Components.of(part.samples.values, self.classes)
        return part

    def _sample(self, extra: Mapping[int, tuple[str, ...]]) -> Samples:
        wanted = self.settings.sampling
        special = {number: replace(wanted, kinds=kinds) for number, kinds in extra.items()}
        images = sum(special.get(number, wanted).variants for number in range(len(self.images)))
        positions = max(min(wanted.positions, MAX_POSITIONS // images), 20)
        return sample_images(
            self.images,
            self.classes,
            self.taps,
            self.settings.shapes,
            self.feature_maps,
            replace(wanted, positions=positions),
            lambda items: console.track(items, "backbone"),
            {number: replace(plan, positions=positions) for number, plan in special.items()},
            self._workers,
        )

    def _check_groups(self) -> None:
        if len({item.group for item in self.images}) < 2:
            raise InputError(
                "cross-validation needs labelled images of at least two groups: put images of one "
                "place into one folder or name (--groups folder, prefix or none says which)"
            )

    @property
    def _pixels(self) -> Counter[int]:
        """Pixels of all masks by value."""
        return sum((Counter(pixels) for pixels in self.samples.pixels), Counter())

    def _check_classes(self) -> None:
        """Raise InputError if a class has no position to learn from; the background need not."""
        pixels = self._pixels
        if not pixels.keys() - {VOID}:
            raise InputError("the masks have no pixel that is labelled: all are to be ignored")
        sampled = {self.classes.class_of(int(v)) for v in np.unique(self.samples.values)}
        missing = [
            (name, values, sum(pixels[value] for value in values))
            for k, (name, values) in enumerate(self.classes.values.items(), start=1)
            if k not in sampled
        ]
        absent = [f"{name} {list(values)}" for name, values, count in missing if not count]
        if absent:
            present = ", ".join(str(value) for value in sorted(pixels.keys() - {VOID})[:_SHOWN])
            raise InputError(
                f"no labelled pixels of: {', '.join(absent)}; the masks of {len(self.images):,} "
                f"images have the values {present}: correct the class file, or leave these out"
            )
        if missing:
            few = ", ".join(f"{name} ({count:,})" for name, _, count in missing)
            raise InputError(
                f"too few labelled pixels to learn from: {few}; none is at the centre of a cell of "
                "the feature map: label more, leave the class out, or try a larger --input-size"
            )

    def _say_background(self) -> None:
        """Say what counts as background, or that nothing does."""
        if unnamed := describe_unnamed(self._pixels, self.classes):
            log.info(unnamed)
        found = {self.classes.class_of(int(v)) for v in np.unique(self.samples.values)}
        if found == {1}:
            log.warning(
                f"every labelled pixel is of class {self.classes.names[0]}: there is nothing to "
                "tell apart, and the model will find this class everywhere"
            )
        elif 0 not in found:
            log.info(
                "no position is background: the model will give every pixel one of the classes"
            )

    @cached_property
    def data(self) -> str:
        """Fingerprint of the labelled images: one more read of them all, so only once."""
        return fingerprint(self.images, self.classes)

    def validate(self, candidates: Sequence[Candidate]) -> list[Validation]:
        """Cross-validate each candidate over groups, and print the table."""
        seed = self.settings.sampling.seed
        judged = list(
            cross_validate(self.samples, self.taps, candidates, self.components, self.classes, seed)
        )
        rows = [
            [str(v.candidate), *(f"{x:.3f}" for x in v.iou[1:]), f"{v.mean_iou:.3f}"]
            for v in judged
        ]
        header = ("layers, C", *self.classes.names, "mean")
        title = "IoU on held-out groups (cross-validation)"
        console.show(console.table(title, header, rows))
        self._say_unjudged()
        return judged

    def _say_unjudged(self) -> None:
        """Warn of classes whose figures in the table say nothing."""
        labels = self.classes.to_classes(self.samples.values).astype(np.int64)
        judged = judged_classes(labels, split_groups(self.samples.groups))
        names = [name for k, name in enumerate(self.classes.names, 1) if k not in judged]
        if names:
            log.warning(
                f"too few groups have pixels of {', '.join(names)} for cross-validation to "
                "judge: an IoU of 0 says nothing of them; label them in images of more groups"
            )

    def best(self) -> Model:
        """Choose layers, C and offsets by grouped cross-validation, fit on all positions."""
        judged = self.validate(self.settings.candidates)
        return self.fit(max(judged, key=lambda v: v.mean_iou), judged)

    def fit(self, chosen: Validation, judged: Sequence[Validation] = ()) -> Model:
        """Fit the chosen candidate on all positions; `judged` goes into the bundle."""
        taps, seed = chosen.candidate.taps, self.settings.sampling.seed
        owners = list(self.components.classes)
        svm = fit_all(
            self.samples.columns(self.taps, taps),
            self.components.targets(self.samples.values),
            len(owners),
            chosen.candidate.c,
            seed,
        )
        bias = svm.bias + chosen.offsets[owners]
        spec = ModelSpec(
            classes=self.classes.names,
            taps=tuple(map(str, taps)),
            components=self.components.classes,
            shapes=self.settings.shapes,
            mean=self.weights.mean,
            std=self.weights.std,
            weights=self.weights.origin,
            weights_fingerprint=self.weights.fingerprint,
            minmax=self.settings.minmax,
            training={
                "data": self.data,
                "images": len(self.images),
                "variants": self.settings.sampling.variants,
                "positions": len(self.samples.values),
                "groups": len(set(self.samples.groups)),
                "seed": seed,
                "c": chosen.candidate.c,
                "validation": [_validation_json(v, self.classes) for v in judged],
            },
        )
        tensors = _head_tensors(taps, svm.weights, bias, self.samples.centre)
        return Model(spec, tensors, self.weights.arrays)


def _count_workers(settings: Settings) -> int:
    """Return how many images may be in ncnn at a time: half of the memory is for them."""
    pixels = max(height * width for height, width in settings.shapes)
    fit = usable_memory() // 2 // (PER_PIXEL * pixels)
    return max(min(usable_cores(), fit), 1)


def train(
    images: Sequence[LabelledImage], classes: Classes, weights: Weights, settings: Settings
) -> Model:
    """Sample positions, choose layers, C and offsets by grouped cross-validation, fit on all."""
    return Trainer(images, classes, weights, settings).best()


def _head_tensors(
    taps: Sequence[Tap],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    centre: Tensor,
) -> dict[str, Array]:
    stops = np.cumsum([tap.source.channels for tap in taps])
    parts = np.split(weights, stops[:-1], axis=1)
    return {
        **{f"svm.{t}": p.copy() for t, p in zip(taps, parts, strict=True)},
        "svm.bias": bias.astype(np.float32),
        "sign_bits.centre": centre.numpy(),
        "sign_bits.rotation": describe.random_rotation(len(centre)).numpy(),
    }


def _validation_json(validation: Validation, classes: Classes) -> dict[str, Any]:
    names = ("background", *classes.names)
    return {
        "layers": ",".join(map(str, validation.candidate.taps)),
        "c": validation.candidate.c,
        "mean_iou": round(validation.mean_iou, 4),
        "iou": {n: _rounded(v) for n, v in zip(names, validation.iou, strict=True)},
        "offsets": {n: float(v) for n, v in zip(names, validation.offsets, strict=True)},
        "accuracy": round(validation.accuracy, 4),
    }


def _rounded(value: float) -> float | None:
    """Return a figure for JSON, which has no NaN: null is what is not defined."""
    return None if np.isnan(value) else round(float(value), 4)
