"""Tests of the segmentation report: a model, splits, leaks, files."""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.report import Report, read_metrics
from segrec_batch.evaluation.segmentation.counts import counts_table
from segrec_batch.evaluation.segmentation.figures import (
    AUGMENTED_FIRST,
    GROUPED,
    RANDOM,
    SPLITS,
    estimates,
)
from segrec_batch.evaluation.segmentation.report import segmentation_report
from segrec_batch.evaluation.segmentation.study import (
    Rival,
    Settings,
    labelled_images,
    run_study,
    split_images,
)
from segrec_batch.evaluation.statistics import Estimate, Key
from segrec_batch.images.decode import shapes_of_size
from segrec_batch.labels.labelled import load_classes
from segrec_batch.training.holdout import hold_out
from segrec_batch.training.rivals.base import ClassMap, Methods, NotRun
from segrec_batch.training.sampling import Sampling
from segrec_batch.training.trainer import Settings as Training
from segrec_batch.training.trainer import Trainer
from tests.support.builders import smooth_pixels, write_png

TRAINING = Training(
    layers=("conv3_3",),
    c=(1.0,),
    shapes=shapes_of_size(96, 16),
    sampling=Sampling(positions=60, kinds=("flip",)),
)


def settings(folder: Path, **other: object) -> Settings:
    images, masks, classes = (str(folder / p) for p in ("images", "masks", "classes.json"))
    options = {"weights": "random:0", "training": TRAINING, **other}
    return Settings(images, masks, classes, **options)  # type: ignore[arg-type]


def value(report: Report, key: Key) -> float | None:
    return next(e.value for e in report.estimates if e.key == key)


def study_estimates(options: Settings, draws: int = 200) -> dict[Key, Estimate]:
    """Return the metric values without a page."""
    classes = load_classes(options.classes)
    study = run_study(options, *labelled_images(options), classes, [])
    counts = counts_table(study.rows, classes.names)
    return {e.key: e for e in estimates(counts, options.seed, draws)}


class Blank:
    """Method that predicts background everywhere."""

    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {"blank": {"eyes": 0}}

    def __call__(self, image: Image.Image) -> dict[str, ClassMap]:
        labels = np.zeros((image.height, image.width), np.uint8)
        return {"blank": ClassMap(labels, None)}


def blank(trainer: Trainer) -> Methods:
    assert trainer.samples.features.shape[0] == len(trainer.samples.values)
    return Blank()


def too_deep(trainer: Trainer) -> Methods:
    raise NotRun("no memory for it")


@pytest.mark.slow
def test_model_report_follows_from_its_counts(scenes: Path, model_dir: str, tmp_path: Path) -> None:
    report = segmentation_report(settings(scenes, model=model_dir, seed=5), [Rival(("lr",), blank)])
    report.write(str(tmp_path))
    metrics = read_metrics(str(tmp_path))
    counts = pq.read_table(io.BytesIO((tmp_path / "counts.parquet").read_bytes()))
    again = {e.key: e for e in estimates(counts, seed=5)}
    assert len(again) == len(metrics["measures"])
    for row in metrics["measures"]:
        key = Key(*(row[n] for n in ("measure", "method", "split", "setting", "class", "k")))
        assert [row[n] for n in ("value", "low", "high", "units")] == [
            again[key].value, again[key].low, again[key].high, again[key].units
        ]  # fmt: skip
    assert counts.num_rows == 24
    confusion = metrics["details"]["confusion"]["given"]["segrec"]
    assert np.sum(confusion["pixels"]) == 24 * 160 * 120
    assert np.sum(confusion["dominant"]) == 24
    assert "--train" in metrics["not_run"]["lr"]
    page = (tmp_path / "report.html").read_text()
    assert "Untrained backbone" in page
    assert page.count("by the labels</p>") == 12
    assert metrics["provenance"]["model_id"] in page
    assert "car" in str(report.headline.rows)


@pytest.mark.slow
def test_splits_share_test_images_and_list_rivals(scenes: Path, tmp_path: Path) -> None:
    rivals = [Rival(("blank",), blank, every_split=True), Rival(("unet", "rcnn"), too_deep)]
    report = segmentation_report(settings(scenes), rivals)
    rows = report.counts.to_pylist()
    images = {
        split: {r["image"] for r in rows if (r["split"], r["method"]) == (split, "segrec")}
        for split in SPLITS
    }
    assert len(images[GROUPED]) >= 2
    assert images[GROUPED] == images[RANDOM] == images[AUGMENTED_FIRST]
    assert {r["method"] for r in rows if r["split"] == AUGMENTED_FIRST} == {"segrec", "blank"}
    assert report.not_run == {"unet": "no memory for it", "rcnn": "no memory for it"}
    blank_iou = Key("iou", "blank", GROUPED, "pixels", "mean")
    assert value(report, blank_iou) == 0
    assert report.details["methods"][RANDOM]["blank"] == {"eyes": 0}
    models = {split: of["segrec"] for split, of in report.details["methods"].items()}
    assert models[AUGMENTED_FIRST]["positions"] > models[RANDOM]["positions"]
    assert models[RANDOM]["images"] == models[GROUPED]["images"]
    report.write(str(tmp_path))
    assert "Splits and leak" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_copies_of_test_images_in_training_leak(tmp_path: Path) -> None:
    """Each place has one texture, whose classes cannot be learned from other places."""
    rng = np.random.default_rng(0)
    for place in range(6):
        image = Image.fromarray(smooth_pixels(60, 80, seed=place))
        mask = np.kron(rng.integers(0, 3, (2, 4)), np.ones((30, 20))).astype(np.uint8)
        for i in range(4):
            write_png(tmp_path / "images" / f"p{place}_{i}.png", image)
            write_png(tmp_path / "masks" / f"p{place}_{i}.png", mask)
    (tmp_path / "classes.json").write_text(json.dumps({"car": [1], "tree": [2]}))
    values = study_estimates(settings(tmp_path))
    for split in (RANDOM, AUGMENTED_FIRST):
        leak = values[Key("leak_iou", "segrec", f"{split} − {GROUPED}", "pixels", "mean")]
        assert leak.low is not None
        assert leak.low > 0.05


@pytest.mark.slow
def test_separate_test_images_without_a_class(scenes: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        shutil.copytree(scenes / kind / "place_00", tmp_path / kind)
    for mask in (tmp_path / "masks").iterdir():
        labels = np.array(Image.open(mask))
        write_png(mask, np.where(labels == 2, 255, labels).astype(np.uint8))  # no person
    test = {"test_images": str(tmp_path / "images"), "test_masks": str(tmp_path / "masks")}
    values = study_estimates(settings(scenes, **test))
    assert {key.split for key in values} == {"given"}
    assert values[Key("iou", "segrec", "given", "pixels", "person")].value is None
    assert values[Key("iou", "segrec", "given", "pixels", "mean")].units == 6
    with pytest.raises(InputError, match="test images are for --train"):
        segmentation_report(settings(scenes, **test, model="m"))


GROUPS = [f"g{i}" for i in (0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 5, 5, 5, 5, 6, 6, 6, 6)]


@pytest.mark.parametrize("seed", range(5))
def test_split_images_shares_no_group_or_test_image(seed: int) -> None:
    splits = split_images(GROUPS, seed)
    group = np.array(GROUPS)
    assert not set(group[splits.test]) & set(group[splits.grouped])
    assert len(splits.random) == len(splits.grouped)
    assert not set(splits.random) & set(splits.test)
    held = hold_out(GROUPS, seed)
    assert 0.2 <= held.mean() <= 0.4
    assert set(splits.test) < set(np.flatnonzero(held))


@pytest.mark.parametrize("groups", [["a"] * 9, ["a"] * 5 + ["b"] * 5])
def test_split_images_refuses_too_few_groups(groups: list[str]) -> None:
    with pytest.raises(InputError, match="--groups folder, prefix or none"):
        split_images(groups, 0)


def test_split_images_refuses_one_held_out_image() -> None:
    with pytest.raises(InputError, match="one image only"):
        split_images(["a", "b", "c"], 0)
