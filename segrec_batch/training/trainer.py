"""Training of a model: labelled images in, model bundle in memory out."""

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
from segrec_batch.common.host import usable_cores, usable_memory
from segrec_batch.images.decode import Shape, shapes_of_size
from segrec_batch.labels.labelled import Classes, LabelledImage, fingerprint
from segrec_batch.model import pooling
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec, Tap
from segrec_batch.model.bundle import Array, Model
from segrec_batch.model.engine_choice import choose_engine
from segrec_batch.model.engines import BYTES_PER_PIXEL, EngineChoice, load_feature_maps
from segrec_batch.model.spec import ModelSpec, Scaling
from segrec_batch.model.weights import Weights
from segrec_batch.training import label_checks
from segrec_batch.training.sampling import Samples, Sampling, sample_images
from segrec_batch.training.validation import (
    Components,
    HeadCandidate,
    Validation,
    cross_validate,
    fit_all,
)

DEFAULT_SIZE = 624
MAX_POSITIONS = 400_000  # over all images
MAX_VALUES = MAX_POSITIONS * 2304  # of all positions; bounds the memory of the fit at about 5 GB


@dataclass(frozen=True)
class Settings:
    """Parameters of training; cross-validation selects the best of several `layers` or `c`."""

    layers: tuple[str, ...] = (DEFAULT_BACKBONE.default_layers,)
    c: tuple[float, ...] = (0.03, 0.1, 1.0)
    shapes: tuple[Shape, ...] = shapes_of_size(DEFAULT_SIZE, DEFAULT_BACKBONE.stride)
    minmax: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    engine: EngineChoice = field(default_factory=choose_engine)
    backbone: BackboneSpec = DEFAULT_BACKBONE

    @property
    def candidates(self) -> list[HeadCandidate]:
        """All combinations of layers and C."""
        combinations = [
            tuple(dict.fromkeys(Tap.parse(t, self.backbone) for t in text.split(",")))
            for text in self.layers
        ]
        return [HeadCandidate(taps, c) for taps in combinations for c in self.c]


class Trainer:
    """Positions of labelled images, sampled once, for fitting several models.

    Args:
        extra: augmentations of individual images, by number, in place of those in `settings`.

    Raises:
        InputError: there are fewer than two groups, or a class has no sampled position.
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
        taps = (tap for candidate in settings.candidates for tap in candidate.taps)
        self.taps = tuple(dict.fromkeys(taps))
        scaling = Scaling(settings.minmax, weights.mean, weights.std)
        # ncnn: one thread per image, as many as memory allows; torch: all threads on one image
        self._workers = _count_workers(settings) if settings.engine.engine == "ncnn" else 1
        threads = max(usable_cores() // self._workers, 1)
        self._maps = load_feature_maps(
            weights.arrays,
            self.taps,
            settings.engine,
            scaling,
            threads,
            self._workers,
            weights.backbone,
        )
        label_checks.check_groups({item.group for item in images})
        self.samples = self._sample(extra or {})
        label_checks.check_classes(self.samples, classes)
        label_checks.report_background(self.samples, classes)
        self.components = Components.of(self.samples.values, classes)

    def feature_maps(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Run the backbone on uint8 (B, H, W, 3) and return {layer: (B, C, h, w)}."""
        return {layer: torch.as_tensor(maps) for layer, maps in self._maps(pixels).items()}

    def subset(self, rows: NDArray[np.bool_]) -> "Trainer":
        """Return a trainer with the positions selected by the mask `rows` (n,).

        The backbone does not run again.

        Raises:
            InputError: the positions are of one group, or a class has none.
        """
        trainer = copy(self)
        trainer.__dict__.pop("data_fingerprint", None)
        samples = self.samples.rows(rows)
        old_numbers, new_numbers = np.unique(samples.images, return_inverse=True)
        trainer.images = [self.images[i] for i in old_numbers]
        pixels = [samples.pixels[i] for i in old_numbers]
        trainer.samples = replace(samples, images=new_numbers, pixels=pixels)
        label_checks.check_groups({item.group for item in trainer.images})
        label_checks.check_classes(trainer.samples, self.classes)
        trainer.components = Components.of(trainer.samples.values, self.classes)
        return trainer

    def _sample(self, extra: Mapping[int, tuple[str, ...]]) -> Samples:
        sampling = self.settings.sampling
        special = {number: replace(sampling, kinds=kinds) for number, kinds in extra.items()}
        images = sum(special.get(number, sampling).variants for number in range(len(self.images)))
        width = sum(tap.source.channels for tap in self.taps)
        most = min(MAX_POSITIONS, MAX_VALUES // width)
        positions = max(min(sampling.positions, most // images), 20)
        return sample_images(
            self.images,
            self.classes,
            self.taps,
            self.settings.shapes,
            self.feature_maps,
            replace(sampling, positions=positions),
            lambda items: console.track(items, "backbone"),
            {number: replace(plan, positions=positions) for number, plan in special.items()},
            self._workers,
        )

    @cached_property
    def data_fingerprint(self) -> str:
        """Fingerprint of the labelled images, cached because it reads them all."""
        return fingerprint(self.images, self.classes)

    def validate(self, candidates: Sequence[HeadCandidate]) -> list[Validation]:
        """Cross-validate each candidate over groups and print the table of results."""
        seed = self.settings.sampling.seed
        validations = list(
            cross_validate(self.samples, self.taps, candidates, self.components, self.classes, seed)
        )
        rows = [
            [str(v.candidate), *(f"{x:.3f}" for x in v.iou[1:]), f"{v.mean_iou:.3f}"]
            for v in validations
        ]
        header = ("layers, C", *self.classes.names, "mean")
        title = "IoU on held-out groups (cross-validation)"
        console.show(console.table(title, header, rows))
        label_checks.report_unevaluable(self.samples, self.classes)
        return validations

    def fit_best(self) -> Model:
        """Select layers, C and offsets by grouped cross-validation and fit on all positions."""
        validations = self.validate(self.settings.candidates)
        return self.fit(max(validations, key=lambda v: v.mean_iou), validations)

    def fit(self, best: Validation, validations: Sequence[Validation] = ()) -> Model:
        """Fit the selected candidate on all positions; the bundle records `validations`."""
        taps, seed = best.candidate.taps, self.settings.sampling.seed
        classes = list(self.components.classes)
        svm = fit_all(
            self.samples.columns(self.taps, taps),
            self.components.targets(self.samples.values),
            len(classes),
            best.candidate.c,
        )
        bias = svm.bias + best.offsets[classes]
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
            backbone=self.weights.backbone.name,
            training={
                "data": self.data_fingerprint,
                "images": len(self.images),
                "variants": self.settings.sampling.variants,
                "positions": len(self.samples.values),
                "groups": len(set(self.samples.groups)),
                "seed": seed,
                "c": best.candidate.c,
                "validation": [_to_json(v, self.classes) for v in validations],
            },
        )
        tensors = _make_head(taps, svm.weights, bias, self.samples.centre)
        return Model(spec, tensors, self.weights.arrays)


def _count_workers(settings: Settings) -> int:
    """Return the number of images that ncnn may process at a time in half of the memory."""
    pixels = max(height * width for height, width in settings.shapes)
    fitting = usable_memory() // 2 // (BYTES_PER_PIXEL * pixels)
    return max(min(usable_cores(), fitting), 1)


def train(
    images: Sequence[LabelledImage], classes: Classes, weights: Weights, settings: Settings
) -> Model:
    """Train a model: sample positions, cross-validate, fit the best candidate on all positions."""
    return Trainer(images, classes, weights, settings).fit_best()


def _make_head(
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
        "sign_bits.rotation": pooling.random_rotation(len(centre)).numpy(),
    }


def _to_json(validation: Validation, classes: Classes) -> dict[str, Any]:
    names = ("background", *classes.names)
    return {
        "layers": ",".join(map(str, validation.candidate.taps)),
        "c": validation.candidate.c,
        "mean_iou": round(validation.mean_iou, 4),
        "iou": {n: _round(v) for n, v in zip(names, validation.iou, strict=True)},
        "offsets": {n: float(v) for n, v in zip(names, validation.offsets, strict=True)},
        "accuracy": round(validation.accuracy, 4),
    }


def _round(value: float) -> float | None:
    """Round a value for JSON; NaN becomes None."""
    return None if np.isnan(value) else round(float(value), 4)
