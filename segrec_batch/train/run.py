"""Training, from labelled pictures to a model bundle in memory."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segrec_batch import console
from segrec_batch.decode import Shape, shapes_of_size
from segrec_batch.errors import InputError
from segrec_batch.model import describe
from segrec_batch.model.backbone import DEEPEST, Backbone, Weights
from segrec_batch.model.bundle import Model, ModelSpec
from segrec_batch.model.head import Tap
from segrec_batch.model.segmenter import Normalise, resolve_device
from segrec_batch.train.labelled import Classes, LabelledImage, fingerprint
from segrec_batch.train.sample import Samples, Sampling, sample_images
from segrec_batch.train.tune import (
    Candidate,
    Components,
    Validation,
    cross_validate,
    fit_all,
)

DEFAULT_LAYERS = "conv3_3,conv4_3,conv5_3,conv4_3@5,conv5_3@11"
DEFAULT_SIZE = 624
MAX_POSITIONS = 400_000  # in all, which bounds the memory of the fit at about 5 GB


@dataclass(frozen=True)
class Settings:
    """Choices of training. Of several `layers` or `c`, cross-validation takes the best."""

    layers: tuple[str, ...] = (DEFAULT_LAYERS,)
    c: tuple[float, ...] = (1.0, 3.0)
    shapes: tuple[Shape, ...] = shapes_of_size(DEFAULT_SIZE)
    minmax: bool = True
    dtype: str = "bfloat16"
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "cpu"

    @property
    def candidates(self) -> list[Candidate]:
        """All pairs of layers and C."""
        combinations = [tuple(Tap.parse(t) for t in text.split(",")) for text in self.layers]
        return [Candidate(taps, c) for taps in combinations for c in self.c]


class _Maps:
    """The backbone without a head: uint8 pictures → feature maps."""

    def __init__(self, weights: Weights, layers: Sequence[str], settings: Settings) -> None:
        dtype = getattr(torch, settings.dtype)
        self.device = resolve_device(settings.device)
        self.backbone = Backbone(weights.state, layers).to(self.device, dtype)
        self.normalise = Normalise(settings.minmax, weights.mean, weights.std, dtype)
        self.normalise.to(self.device)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> Mapping[str, Tensor]:
        maps: Mapping[str, Tensor] = self.backbone(
            self.normalise(torch.from_numpy(pixels).to(self.device))
        )
        return maps


def train(
    images: Sequence[LabelledImage], classes: Classes, weights: Weights, settings: Settings
) -> Model:
    """Sample positions, choose layers, C and offsets by grouped cross-validation, fit on all."""
    started = time.monotonic()
    candidates = settings.candidates
    taps = tuple(dict.fromkeys(tap for candidate in candidates for tap in candidate.taps))
    samples = _sample(images, classes, weights, settings, taps)
    components = Components.of(samples.values, classes)
    judged = list(
        cross_validate(samples, taps, candidates, components, classes, settings.sampling.seed)
    )
    _print_validations(judged, classes)
    best = max(judged, key=lambda v: v.mean_iou)
    chosen = best.candidate
    svm = fit_all(
        samples.columns(taps, chosen.taps),
        components.targets(samples.values),
        len(components.classes),
        chosen.c,
        settings.sampling.seed,
    )
    bias = svm.bias + best.offsets[list(components.classes)]
    spec = ModelSpec(
        classes=classes.names,
        taps=tuple(map(str, chosen.taps)),
        components=components.classes,
        shapes=settings.shapes,
        mean=weights.mean,
        std=weights.std,
        weights=weights.origin,
        weights_fingerprint=weights.fingerprint,
        minmax=settings.minmax,
        dtype=settings.dtype,
        training={
            "data": fingerprint(images, classes),
            "images": len(images),
            "variants": settings.sampling.variants,
            "positions": len(samples.values),
            "groups": len(set(samples.groups)),
            "seed": settings.sampling.seed,
            "c": chosen.c,
            "validation": [_validation_json(v, classes) for v in judged],
            "seconds": round(time.monotonic() - started, 1),
        },
    )
    return Model(spec, _head_tensors(chosen.taps, svm.weights, bias, samples.centre), weights.state)


def _sample(
    images: Sequence[LabelledImage],
    classes: Classes,
    weights: Weights,
    settings: Settings,
    taps: Sequence[Tap],
) -> Samples:
    if len({item.group for item in images}) < 2:
        raise InputError("cross-validation needs labelled images of at least two groups")
    sampling = settings.sampling
    affordable = MAX_POSITIONS // (len(images) * sampling.variants)
    if affordable < sampling.positions:
        sampling = Sampling(max(affordable, 20), sampling.kinds, sampling.copies, sampling.seed)
    maps = _Maps(weights, list(dict.fromkeys([*(t.layer for t in taps), DEEPEST])), settings)
    samples = sample_images(
        images,
        classes,
        taps,
        settings.shapes,
        maps,
        sampling,
        lambda items: console.track(items, "backbone"),
    )
    found = {classes.class_of(int(v)) for v in np.unique(samples.values)}
    missing = [name for i, name in enumerate(classes.names, start=1) if i not in found]
    if missing or len(found) < 2:
        raise InputError(f"no labelled pixels of {', '.join(missing) or 'the background'}")
    return samples


def _head_tensors(
    taps: Sequence[Tap],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    centre: Tensor,
) -> dict[str, Tensor]:
    stops = np.cumsum([tap.source.channels for tap in taps])
    parts = np.split(weights, stops[:-1], axis=1)
    return {
        **{f"svm.{t}": torch.from_numpy(p.copy()) for t, p in zip(taps, parts, strict=True)},
        "svm.bias": torch.from_numpy(bias.astype(np.float32)),
        "signature.centre": centre.contiguous(),
        "signature.rotation": describe.random_rotation(len(centre)),
    }


def _validation_json(validation: Validation, classes: Classes) -> dict[str, Any]:
    names = ("background", *classes.names)
    return {
        "layers": ",".join(map(str, validation.candidate.taps)),
        "c": validation.candidate.c,
        "mean_iou": round(validation.mean_iou, 4),
        "iou": {n: round(float(v), 4) for n, v in zip(names, validation.iou, strict=True)},
        "offsets": {n: float(v) for n, v in zip(names, validation.offsets, strict=True)},
        "accuracy": round(validation.accuracy, 4),
    }


def _print_validations(validations: Sequence[Validation], classes: Classes) -> None:
    rows = [
        [str(v.candidate), *(f"{x:.3f}" for x in v.iou[1:]), f"{v.mean_iou:.3f}"]
        for v in validations
    ]
    header = ("layers, C", *classes.names, "mean")
    print(console.table("IoU on held-out groups (cross-validation)", header, rows), end="")
