"""What is fitted on what and judged on what: from settings to counts."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.segmentation.counts import SegrecMethod, judge_images
from segrec_batch.evaluation.segmentation.splits import GIVEN, SPLITS, split_images
from segrec_batch.labels.labelled import Classes, LabelledImage, describe_unnamed, pair_images
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.model.engines import EngineChoice, choose_engine, load_segmenter
from segrec_batch.model.weights import load_weights
from segrec_batch.training.augment import KINDS
from segrec_batch.training.rivals.base import Methods, NotRun
from segrec_batch.training.trainer import Settings as Training
from segrec_batch.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What to judge. With `model`, a bundle, it is judged on the labelled images; without, models
    are fitted on them: judged on the test images, if given, else on a part of them (see splits).

    images, masks, classes, test_images, test_masks: URIs. weights: of the backbone. groups: see
    `pair`. seed: of the bootstrap, the splits and the training; with engine it goes before those of
    `training`.
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
    """Methods to compare with: `fit` on what a trainer has sampled, or its images.

    fit raises NotRun, and so may what it returns. every_split: whether it is quick enough for all
    splits; else it is run on the first one.
    """

    names: tuple[str, ...]
    fit: Callable[[Trainer], Methods]
    every_split: bool = False


@dataclass(frozen=True)
class Part:
    """A split: the model of it, the images to judge, and what the model was fitted from, if it
    was fitted here.
    """

    split: str
    model: Model
    judged: Sequence[LabelledImage]
    trainer: Trainer | None = None


@dataclass
class Study:
    """What was found: rows of `counts.SCHEMA`, the model of each split, how all methods of each
    split were made, and what was not run.

    judged: the images of the first split, of which the page shows some.
    """

    engine: EngineChoice
    judged: Sequence[LabelledImage] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The first split: the one that the page is about."""
        return next(iter(self.models))

    @property
    def model(self) -> Model:
        """That of the first split."""
        return self.models[self.main]

    def method(self, split: str) -> SegrecMethod:
        """The proposed method as it was judged on a split."""
        return SegrecMethod(load_segmenter(self.models[split], self.engine))

    def judge_model(self, part: "Part", classes: Classes) -> None:
        """Add what the proposed method says of the images of a split. Says which values of masks
        that were given apart count as background; a trainer says so of its own.
        """
        pixels: Counter[int] = Counter()
        self.judge(part, self.method(part.split), classes, pixels)
        unnamed = describe_unnamed(pixels, classes)
        if part.split == GIVEN and unnamed:
            log.info(f"judged images: {unnamed}")

    def judge(
        self,
        part: "Part",
        methods: Methods,
        classes: Classes,
        pixels: Counter[int] | None = None,
    ) -> None:
        """Add what methods say of the images of a split, see `judge_images`. Raises NotRun."""
        self.rows += judge_images(part.split, part.judged, methods, classes, pixels)
        self.methods.setdefault(part.split, {}).update(methods.settings)


def labelled(settings: Settings) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """The labelled images and the test images. Raises InputError."""
    images = pair_images(settings.images, settings.masks, settings.groups)
    if not settings.test_images:
        return images, []
    if settings.model:
        raise InputError("a model is judged on --images: test images are for --train")
    return images, pair_images(settings.test_images, settings.test_masks, settings.groups)


def conduct(
    settings: Settings,
    images: Sequence[LabelledImage],
    test: Sequence[LabelledImage],
    classes: Classes,
    rivals: Sequence[Rival],
) -> Study:
    """Fit and judge everything, one split after the other."""
    study = Study(settings.engine)
    for part in _parts(settings, images, test, classes):
        study.models[part.split] = part.model
        if part.split == study.main:
            study.judged = part.judged
        study.judge_model(part, classes)
        for rival in rivals:
            if rival.every_split or part.split == study.main:
                _run(rival, part, classes, study)
    return study


def _run(rival: Rival, part: Part, classes: Classes, study: Study) -> None:
    try:
        if part.trainer is None:
            raise NotRun("a model was given and no images to fit on: see --train")
        study.judge(part, rival.fit(part.trainer), classes)
    except NotRun as reason:
        where = "" if part.split == study.main else f" ({part.split})"
        study.not_run |= {f"{name}{where}": str(reason) for name in rival.names}


def _parts(
    settings: Settings,
    images: Sequence[LabelledImage],
    test: Sequence[LabelledImage],
    classes: Classes,
) -> Iterator[Part]:
    if settings.model:
        model = load_model(settings.model)
        known = model.spec.classes
        if known != classes.names:
            raise InputError(f"the model knows {known}, the classes file {classes.names}")
        yield Part(GIVEN, model, images)
    elif test:
        trainer = _trainer(settings, images, classes)
        yield Part(GIVEN, trainer.best(), test, trainer)
    else:
        yield from _splits(settings, images, classes)


def _splits(
    settings: Settings, images: Sequence[LabelledImage], classes: Classes
) -> Iterator[Part]:
    splits = split_images([item.group for item in images], settings.seed)
    judged = [images[i] for i in splits.judged]
    kinds = settings.training.sampling.kinds or KINDS
    every = _trainer(settings, images, classes, {int(i): kinds for i in splits.judged})
    for split in SPLITS:
        trainer = every.subset(splits.rows(split, every.samples))
        log.info(f"split {split}: {len(trainer.images)} training images, {len(judged)} judged")
        yield Part(split, trainer.best(), judged, trainer)


def _trainer(
    settings: Settings,
    images: Sequence[LabelledImage],
    classes: Classes,
    extra: Mapping[int, tuple[str, ...]] | None = None,
) -> Trainer:
    chosen = replace(
        settings.training,
        engine=settings.engine,
        sampling=replace(settings.training.sampling, seed=settings.seed),
    )
    weights = load_weights(settings.weights, chosen.backbone)
    return Trainer(images, classes, weights, chosen, extra)
