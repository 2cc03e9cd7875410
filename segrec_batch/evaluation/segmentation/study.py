"""Training and application of methods on each split of labelled images.

Frames of one video, or images of one place, are near copies. Without separate test images whole
groups are held out, and a random half of the held-out images are the test images of every split.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.common import console
from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.segmentation.counts import SEGREC, count_pixels
from segrec_batch.evaluation.segmentation.figures import AUGMENTED_FIRST, GROUPED, SEPARATE, SPLITS
from segrec_batch.images.decode import fit
from segrec_batch.labels.labelled import (
    Classes,
    LabelledImage,
    count_values,
    describe_unnamed,
    pair_images,
)
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.model.engine_choice import choose_engine
from segrec_batch.model.engines import EngineChoice, load_segmenter
from segrec_batch.model.segmentation import Segmenter
from segrec_batch.model.weights import load_weights
from segrec_batch.sources import storage
from segrec_batch.training.augment import KINDS
from segrec_batch.training.holdout import hold_out
from segrec_batch.training.rivals.base import ClassMap, Methods, NotRun
from segrec_batch.training.trainer import Settings as Training
from segrec_batch.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Inputs of the segmentation report.

    A bundle `model` is evaluated on the labelled images. Without one, models are trained on them
    and evaluated on the test images or, without these, on a part of the images.

    images, masks, classes, test_images, test_masks: URIs. weights: of the backbone. groups: see
    `pair_images`. seed: of the bootstrap, the splits and the training; seed and engine replace
    those of `training`.
    """

    images: str
    masks: str
    classes: str
    model: str = ""
    test_images: str = ""
    test_masks: str = ""
    weights: str = "imagenet"
    training: Training = field(default_factory=Training)
    groups: str = "auto"
    engine: EngineChoice = field(default_factory=choose_engine)
    seed: int = 0


@dataclass(frozen=True)
class Rival:
    """Methods to compare with; `fit` trains them on the samples or images of a trainer.

    fit and its result may raise NotRun. every_split: run on all splits, not on the first only.
    """

    names: tuple[str, ...]
    fit: Callable[[Trainer], Methods]
    every_split: bool = False


@dataclass(frozen=True)
class Split:
    """Model and test images of a split, and the trainer of the model if it was trained here."""

    name: str
    model: Model
    images: Sequence[LabelledImage]
    trainer: Trainer | None = None


class SegrecMethod:
    """The proposed method as `Methods`."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """See `Methods`."""
        spec = self.segmenter.model.spec
        training = {k: v for k, v in spec.training.items() if k != "validation"}
        identity = {"model_id": self.segmenter.model.model_id, "taps": spec.taps}
        return {SEGREC: {**identity, "shapes": spec.shapes, **training}}

    def __call__(self, image: Image.Image) -> Mapping[str, ClassMap]:
        """See `Methods`."""
        pixels = fit(image, self.segmenter.model.spec.shapes)[None]
        segmented = self.segmenter(pixels, [(image.height, image.width)])
        return {SEGREC: ClassMap(segmented.masks[0], segmented.counts[0])}


@dataclass
class Study:
    """Results of all splits; most of the page is about `main`, the first one.

    rows: of `counts.SCHEMA`. methods: settings of each method, by split. not_run: reason by method.
    """

    engine: EngineChoice
    splits: list[Split] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def main(self) -> Split:
        """The first split."""
        return self.splits[0]

    def method(self, split: Split) -> SegrecMethod:
        """Return the proposed method with the model of a split."""
        return SegrecMethod(load_segmenter(split.model, self.engine))

    def apply(self, split: Split, methods: Methods, classes: Classes) -> Counter[int]:
        """Apply methods to the test images of a split; return their mask pixels by value.

        The images have their original resolution.
        """
        pixels: Counter[int] = Counter()
        for item in console.track(split.images, f"evaluated ({split.name})"):
            image, labels = item.load(classes)
            pixels.update(count_values(labels))
            truth = classes.to_classes(labels)
            luminance = float(np.asarray(image.convert("L")).mean()) / 255
            for method, result in methods(image).items():
                confusion = count_pixels(truth, result.labels, len(classes.names) + 1)
                self.rows.append({
                    "split": split.name,
                    "method": method,
                    "image": storage.name(item.image),
                    "group": item.group,
                    "luminance": luminance,
                    "confusion": confusion.ravel().tolist(),
                    "cells": None if result.cells is None else result.cells.tolist(),
                })  # fmt: skip
        self.methods.setdefault(split.name, {}).update(methods.settings)
        return pixels

    def apply_rival(self, rival: Rival, split: Split, classes: Classes) -> None:
        """Train a rival and apply it to a split, or record why it was not run."""
        try:
            if split.trainer is None:
                raise NotRun("a trained model has no training images for it: use --train")
            self.apply(split, rival.fit(split.trainer), classes)
        except NotRun as reason:
            where = "" if split is self.main else f" ({split.name})"
            self.not_run |= {f"{name}{where}": str(reason) for name in rival.names}


def labelled_images(settings: Settings) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Return the labelled images and the separate test images. Raises InputError."""
    images = pair_images(settings.images, settings.masks, settings.groups)
    if not settings.test_images:
        return images, []
    if settings.model:
        raise InputError("a model is evaluated on --images: test images are for --train")
    return images, pair_images(settings.test_images, settings.test_masks, settings.groups)


def run_study(
    settings: Settings,
    images: Sequence[LabelledImage],
    test: Sequence[LabelledImage],
    classes: Classes,
    rivals: Sequence[Rival],
) -> Study:
    """Train and apply all methods, split by split."""
    study = Study(settings.engine)
    for split in _split_models(settings, images, test, classes):
        study.splits.append(split)
        pixels = study.apply(split, study.method(split), classes)
        if split.name == SEPARATE and (unnamed := describe_unnamed(pixels, classes)):
            log.info(f"test images: {unnamed}")  # a trainer logs those of its own images
        for rival in rivals:
            if rival.every_split or split is study.main:
                study.apply_rival(rival, split, classes)
    return study


def _split_models(
    settings: Settings,
    images: Sequence[LabelledImage],
    test: Sequence[LabelledImage],
    classes: Classes,
) -> Iterator[Split]:
    if settings.model:
        model = load_model(settings.model)
        if model.spec.classes != classes.names:
            raise InputError(
                f"the model has the classes {model.spec.classes}, the classes file {classes.names}"
            )
        yield Split(SEPARATE, model, images)
        return
    if test:
        trainer = _trainer(settings, images, classes)
        yield Split(SEPARATE, trainer.fit_best(), test, trainer)
        return
    numbers = split_images([item.group for item in images], settings.seed)
    tested = [images[i] for i in numbers.test]
    kinds = settings.training.sampling.kinds or KINDS
    every = _trainer(settings, images, classes, {int(i): kinds for i in numbers.test})
    samples = every.samples
    for split in SPLITS:
        trained = numbers.grouped if split == GROUPED else numbers.random
        rows = np.isin(samples.images, trained)
        if split == AUGMENTED_FIRST:
            rows |= np.isin(samples.images, numbers.test) & (samples.variants > 0)
        trainer = every.subset(rows)
        log.info(f"split {split}: {len(trainer.images)} training images, {len(tested)} test images")
        yield Split(split, trainer.fit_best(), tested, trainer)


def _trainer(
    settings: Settings,
    images: Sequence[LabelledImage],
    classes: Classes,
    extra: Mapping[int, tuple[str, ...]] | None = None,
) -> Trainer:
    sampling = replace(settings.training.sampling, seed=settings.seed)
    training = replace(settings.training, engine=settings.engine, sampling=sampling)
    weights = load_weights(settings.weights, training.backbone)
    return Trainer(images, classes, weights, training, extra)


class SplitImages(NamedTuple):
    """Sorted numbers of the test images and of the training images of two splits."""

    test: NDArray[np.int64]
    grouped: NDArray[np.int64]
    random: NDArray[np.int64]


def split_images(groups: Sequence[str], seed: int) -> SplitImages:
    """Divide images of these groups (n,). Raises InputError if they are too few."""
    if len(set(groups)) < 3:
        raise InputError(
            f"{len(set(groups))} groups of labelled images are too few to hold one out and "
            "cross-validate on two others: put images of one place into one folder or name "
            "(--groups folder, prefix or none selects the rule), or give --test-images"
        )
    held = np.flatnonzero(hold_out(groups, seed))
    if len(held) < 2:
        raise InputError("the held-out groups have one image only: give more labelled images")
    rng = np.random.default_rng(seed)
    test = np.sort(rng.choice(held, len(held) // 2, replace=False))
    every = np.arange(len(groups))
    grouped, rest = np.setdiff1d(every, held), np.setdiff1d(every, test)
    return SplitImages(test, grouped, np.sort(rng.choice(rest, len(grouped), replace=False)))
