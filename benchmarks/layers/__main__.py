r"""Segmentation quality of the default layers against each single layer and the majority class.

    python -m benchmarks.layers --train DIR --val DIR --classes classes.json \
        --backbone-weights vgg16.safetensors --report DIR

DIR holds images/ and masks/. One pass of the backbone over each set serves all layer sets. The
benchmark prints a Markdown table and writes one JSON file per layer set, NUMBER.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from segrec_batch.cli.options import add_engine
from segrec_batch.common import console
from segrec_batch.evaluation.segmentation.counts import count_pixels
from segrec_batch.evaluation.segmentation.figures import MEAN, Pixels, majority, ratio_measures
from segrec_batch.evaluation.statistics import Key
from segrec_batch.images.decode import fit, shapes_of_size
from segrec_batch.labels.labelled import Classes, LabelledImage, load_classes, pair_images
from segrec_batch.model.backbones import DEFAULT_BACKBONE
from segrec_batch.model.bundle import Model
from segrec_batch.model.engine_choice import choose_engine
from segrec_batch.model.head import LinearHead, resize
from segrec_batch.model.torch_engine import as_tensors
from segrec_batch.model.weights import load_weights
from segrec_batch.training.trainer import DEFAULT_SIZE, Settings, Trainer

LAYER_SETS = (
    "conv3_3",
    "conv4_3",
    "conv5_3",
    "conv3_3,conv4_3,conv5_3",
    DEFAULT_BACKBONE.default_layers,
)


def fit_models(trainer: Trainer) -> dict[str, Model]:
    """Return the model with the best C for each layer set."""
    models = {}
    for name in LAYER_SETS:
        candidates = [c for c in trainer.settings.candidates if str(c).split()[0] == name]
        best = max(trainer.validate(candidates), key=lambda v: v.mean_iou)
        models[name] = trainer.fit(best)
    return models


def count_confusions(
    models: dict[str, Model], trainer: Trainer, images: list[LabelledImage], classes: Classes
) -> dict[str, np.ndarray]:
    """Return the confusion matrix of each model at the resolution of the images."""
    heads = {
        name: LinearHead(as_tensors(m.svm_weights), torch.from_numpy(m.svm_bias), m.spec.components)
        for name, m in models.items()
    }
    k = len(classes.names) + 1
    confusions = {name: np.zeros((k, k), np.int64) for name in models}
    for item in console.track(images, "validation"):
        image, labels = item.load(classes)
        maps = trainer.feature_maps(fit(image, trainer.settings.shapes)[None])
        truth = classes.to_classes(labels)
        for name, head in heads.items():
            predicted = resize(head(maps), labels.shape).argmax(dim=1)[0].cpu().numpy()
            confusions[name] += count_pixels(truth, predicted, k)
    return confusions


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option in ("--train", "--val", "--classes", "--backbone-weights", "--report"):
        parser.add_argument(option, required=True)
    parser.add_argument("--input-size", type=int, default=DEFAULT_SIZE)
    add_engine(parser)
    a = parser.parse_args()
    classes = load_classes(a.classes)
    engine = choose_engine(a.engine, a.precision)
    settings = Settings(
        layers=LAYER_SETS,
        shapes=shapes_of_size(a.input_size, DEFAULT_BACKBONE.stride),
        engine=engine,
    )
    train = pair_images(f"{a.train}/images", f"{a.train}/masks")
    trainer = Trainer(train, classes, load_weights(a.backbone_weights), settings)
    models = fit_models(trainer)
    val = pair_images(f"{a.val}/images", f"{a.val}/masks")
    names = ("background", *classes.names)
    report = Path(a.report)
    report.mkdir(parents=True, exist_ok=True)
    print(f"| layers | pixel accuracy | {' | '.join(classes.names)} | mean IoU |")
    print("|---|---|" + "---|" * len(classes.names) + "---|")
    for number, (name, confusion) in enumerate(
        count_confusions(models, trainer, val, classes).items()
    ):
        measures = ratio_measures(Pixels.of(confusion[None]), names, Key(""))
        figures = {k: m.value for k, m in measures.items()}
        content = {
            "layers": name,
            "weights": a.backbone_weights,
            "figures": {str(key): value for key, value in figures.items()},
            "confusion": confusion.tolist(),
        }
        (report / f"{number}.json").write_text(json.dumps(content, indent=2))
        cells = [
            " / ".join(
                f"{figures[Key(m, cls=c)] or 0:.3f}" for m in ("iou", "precision", "recall", "f1")
            )
            for c in classes.names
        ]
        print(
            f"| {name} | {figures[Key('pixel_accuracy')]:.3f} | {' | '.join(cells)} "
            f"| {figures[Key('iou', cls=MEAN)]:.3f} |"
        )
    commonest = majority(confusion[None])
    share = confusion[commonest].sum() / confusion.sum()
    print(f"| all {names[commonest]} | {share:.3f} | {'0 | ' * len(classes.names)}0 |")


if __name__ == "__main__":
    main()
