"""Tests of labels without a background class."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.evaluation.segmentation.report import segmentation_report
from segrec_batch.evaluation.segmentation.study import Settings as Evaluation
from segrec_batch.evaluation.statistics import Key
from segrec_batch.images.decode import shapes_of_size
from segrec_batch.labels.labelled import Classes, load_classes, pair_images
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.model.engine_choice import choose_engine
from segrec_batch.model.engines import load_segmenter
from segrec_batch.training.rivals import classical as scorers
from segrec_batch.training.sampling import Sampling
from segrec_batch.training.trainer import Settings, Trainer, train
from segrec_batch.training.validation import (
    LOWEST,
    Components,
    choose_offsets,
    find_evaluable_classes,
)
from tests.support.builders import random_weights, smooth_batch, write_png
from tests.support.commands import exit_code

SETTINGS = Settings(
    layers=("conv4_3,conv5_3",),
    c=(1.0,),
    shapes=shapes_of_size(64, 16),
    sampling=Sampling(positions=60),
)
STREET = 4


@pytest.fixture(scope="module")
def full(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the scenes, in which what was background is a class of its own."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "images").symlink_to(scenes / "images")
    for path in sorted((scenes / "masks").rglob("*.png"))[::2]:
        values = np.array(Image.open(path))
        values[values == 0] = STREET
        write_png(folder / "masks" / path.relative_to(scenes / "masks"), values)
    named = {"car": [1], "person": [2], "tree": [3], "street": [STREET]}
    (folder / "classes.json").write_text(json.dumps(named))
    return folder


@pytest.fixture(scope="module")
def full_model(full: Path) -> Model:
    images = pair_images(str(full / "images"), str(full / "masks"))
    return train(images, load_classes(str(full / "classes.json")), random_weights(), SETTINGS)


def test_train_without_background_adds_one_that_never_wins(full_model: Model) -> None:
    spec = full_model.spec
    assert spec.all_classes == ("background", "car", "person", "tree", "street")
    (place,) = [i for i, k in enumerate(spec.components) if k == 0]
    assert full_model.svm_bias[place] == LOWEST
    assert np.isfinite(full_model.svm_bias).all()
    assert not any(weights[place].any() for weights in full_model.svm_weights.values())
    json.dumps(spec.to_json(), allow_nan=False)
    (result,) = spec.training["validation"]
    assert result["iou"]["background"] is None
    assert result["iou"]["street"] > 0.3


@pytest.mark.parametrize(
    ("engine", "precision"), [("ncnn", "float32"), ("torch", "float32"), ("torch", "bfloat16")]
)
def test_engines_predict_no_background_if_untrained(
    full_model: Model, engine: str, precision: str
) -> None:
    segmenter = load_segmenter(full_model, choose_engine(engine, precision, "cpu"))
    pixels = np.concatenate([smooth_batch(2), np.zeros_like(smooth_batch(1))])
    result = segmenter(pixels, [(50, 70)] * 3)
    assert not result.counts[:, 0].any()
    maps: Sequence[NDArray[np.uint8]] = [result.labels, result.common, *result.masks]
    assert all((labels > 0).all() for labels in maps)
    assert np.isfinite(result.region_features).all()


def test_report_omits_background_absent_from_labels(
    full: Path, full_model: Model, tmp_path: Path
) -> None:
    full_model.save(str(tmp_path))
    places = (str(full / name) for name in ("images", "masks", "classes.json"))
    report = segmentation_report(Evaluation(*places, model=str(tmp_path)))
    value = {e.key: e.value for e in report.estimates}
    of = {cls: value[Key("iou", "segrec", "given", "pixels", cls)] for cls in
          ("background", "street", "mean")}  # fmt: skip
    assert of["background"] is None
    assert of["street"] is not None
    assert of["street"] > 0.3
    assert of["mean"] is not None
    confusion = report.details["confusion"]["given"]["segrec"]["pixels"]
    assert not np.array(confusion)[0].any()
    assert not np.array(confusion)[:, 0].any()


def test_rivals_predict_no_background_if_untrained() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([1, 2], 300).astype(np.int16)
    x = (rng.normal(size=(300, 8)) + values[:, None]).astype(np.float16)
    components = Components.of(values, Classes({"a": (1,), "b": (2,)}))
    targets = components.targets(values)
    for score in (
        scorers.fit_linear(x, targets, components, "squared_hinge", 1.0),
        scorers.fit_forest(x, targets, components, 5, 5, 0),
        scorers.fit_neighbours(x, targets, components, 5),
    ):
        result = score(x)
        assert (result[:, 0] == LOWEST).all()
        labels = values.astype(np.int64)
        offsets = choose_offsets(result, labels, np.ones(300))
        assert (np.argmax(result + offsets, axis=1) > 0).all()


def test_train_on_one_class_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, pixels in enumerate(smooth_batch(3)):
        write_png(tmp_path / "i" / f"x{i}.png", Image.fromarray(pixels))
        write_png(tmp_path / "m" / f"x{i}.png", np.full((64, 96), 1, np.uint8))
    (tmp_path / "classes.json").write_text('{"thing": [1]}')
    ended = exit_code(
        "jobs/train.py", "--images", str(tmp_path / "i"), "--masks", str(tmp_path / "m"),
        "--classes", str(tmp_path / "classes.json"), "--output", str(tmp_path / "model"),
        "--backbone-weights", "random:0", "--input-size", "64", "--layers", "conv4_3", "--C", "1",
    )  # fmt: skip
    assert ended == 0
    stderr = capsys.readouterr().err
    assert (
        "warning: every labelled pixel is of class thing: there is nothing to tell apart" in stderr
    )
    model = load_model(str(tmp_path / "model"))
    result = load_segmenter(model, choose_engine())(smooth_batch(2))
    assert (result.labels == 1).all()


def test_validate_names_class_of_single_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = Classes({"a": (1,), "b": (2,), "rare": (3,)})
    for i, pixels in enumerate(smooth_batch(4)):
        values = np.full((64, 96), 1, np.uint8)
        values[:, 48:] = 2
        values[:32, :48] = 3 if i == 0 else 1
        write_png(tmp_path / "i" / f"x{i}.png", Image.fromarray(pixels))
        write_png(tmp_path / "m" / f"x{i}.png", values)
    images = pair_images(str(tmp_path / "i"), str(tmp_path / "m"))
    trainer = Trainer(images, classes, random_weights(), SETTINGS)
    (result,) = trainer.validate(SETTINGS.candidates)
    assert result.offsets[3] == 0
    assert np.abs(result.offsets).max() < 100
    stderr = capsys.readouterr().err
    assert "warning: too few groups have pixels of rare for cross-validation" in stderr


def test_evaluable_classes_need_two_folds() -> None:
    labels = np.array([0, 1, 1, 2, 2, 0])
    folds = [(np.array([2, 3, 4, 5]), np.array([0, 1])), (np.array([0, 1]), np.array([2, 3, 4, 5]))]
    assert find_evaluable_classes(labels, folds) == [1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_index_without_background_is_complete(
    full: Path, full_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, index = str(tmp_path / "model"), str(tmp_path / "index")
    full_model.save(model)
    images = ["--images", str(full / "images" / "place_01")]
    assert exit_code("jobs/index.py", *images, "--model", model, "--index", index) == 0
    assert exit_code("jobs/maintain.py", "--index", index, "verify") == 0
    capsys.readouterr()
    statement = "SELECT max(coverage_background), count(*) FROM images"
    assert exit_code("segrec", "sql", "--index", index, "--format", "csv", statement) == 0
    assert capsys.readouterr().out.splitlines()[1] == "0.0,6"
