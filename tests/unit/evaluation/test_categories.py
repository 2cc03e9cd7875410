"""Tests of the categories report against scikit-learn's metrics."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from segrec_batch.api.categories import evaluate_categories
from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.categories.figures import RIGHT, evaluate
from segrec_batch.evaluation.categories.study import SVM
from segrec_batch.evaluation.report import read_counts, read_metrics
from segrec_batch.evaluation.segmentation.figures import MEAN
from segrec_batch.evaluation.statistics import Key
from segrec_batch.index import snapshot as store
from segrec_batch.model import pooling
from segrec_batch.model.backbones import DEFAULT_BACKBONE
from segrec_batch.model.spec import Scaling
from segrec_batch.model.torch_engine import FeatureMaps, Normalise
from segrec_batch.model.weights import load_weights
from tests.support.feature_index import Bundle, image_files

DATA = Path(__file__).parents[4] / "shared" / "data"
METHODS = [SVM, "logistic regression", "random forest", "k-NN"]


def _write(
    index: str, folders: list[str], features: NDArray[np.float32], contents: list[str] | None = None
) -> None:
    uris = [f"/images/{folder}/{i:04}.jpg" for i, folder in enumerate(folders)]
    base = store.create(index, Bundle())  # type: ignore[arg-type]
    store.commit(base, image_files(index, uris, features, None, contents))


def _clusters(sizes: dict[str, int], noise: float) -> tuple[list[str], NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    folders = [name for name, size in sizes.items() for _ in range(size)]
    centres = {name: rng.normal(size=16) for name in sizes}
    drawn = np.array([centres[f] for f in folders]) + noise * rng.normal(size=(len(folders), 16))
    return folders, np.abs(drawn).astype(np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("categories")
    _write(str(folder / "index"), *_clusters({"car": 60, "person": 40, "tree": 20}, 0.6))
    evaluate_categories(str(folder / "index"), report=str(folder / "report"), seed=3)
    return folder / "report"


def test_values_equal_those_of_scikit_learn(report: Path) -> None:
    counts = read_counts(str(report))
    assert counts is not None
    names = ["car", "person", "tree"]
    (evaluation,) = evaluate(counts)
    for method in METHODS:
        rows = [row for row in counts.to_pylist() if row["method"] == method]
        true, predicted = ([row[name] for row in rows] for name in ("category", "predicted"))
        assert np.bincount(true).tolist() == [18, 12, 6], "30 % of each category"
        assert all(f"/{names[row['category']]}/" in row["image"] for row in rows)
        expected = precision_recall_fscore_support(true, predicted, labels=[0, 1, 2])
        for ratio, values in zip(("precision", "recall", "f1"), expected, strict=False):
            for name, value in zip(names, values, strict=True):
                measured = evaluation.measures[Key(ratio, method, cls=name)].value
                assert measured == pytest.approx(value), (method, ratio, name)
            mean = evaluation.measures[Key(ratio, method, cls=MEAN)].value
            assert mean == pytest.approx(values.mean())
        against = [accuracy_score(np.array(true) == k, np.array(predicted) == k) for k in range(3)]
        mean = evaluation.measures[Key("accuracy", method, cls=MEAN)].value
        assert mean == pytest.approx(np.mean(against))
        right = evaluation.measures[Key(RIGHT, method)].value
        assert right == pytest.approx(accuracy_score(true, predicted))
        matrix = read_metrics(str(report))["details"]["confusion"][method]
        assert matrix == confusion_matrix(true, predicted).tolist()
    assert evaluation.measures[Key(RIGHT, "all car")].value == pytest.approx(18 / 36)


def test_the_svm_beats_the_largest_category(report: Path) -> None:
    rows = json.loads((report / "metrics.json").read_text())["measures"]
    right = {row["method"]: row["value"] for row in rows if row["measure"] == RIGHT}
    assert list(right) == [*METHODS, "all car"]
    assert right[SVM] > right["all car"] + 0.2
    page = (report / "report.html").read_text()
    assert "Confusion matrix of the SVM" in page


def test_copies_are_on_one_side_only(tmp_path: Path) -> None:
    folders, features = _clusters({"car": 30, "tree": 30}, 1.0)
    contents = [f"{i // 2:032x}" for i in range(60)]  # every image twice
    _write(str(tmp_path / "index"), folders, features, contents)
    found = evaluate_categories(str(tmp_path / "index"))
    assert len(set(found.counts["image"].to_pylist())) == 9, "30 % of 30 contents"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"car": 9}, "two categories"),
        ({"car": 9, "tree": 1}, "category tree has one image"),
        (dict.fromkeys("abcdef", 2), "cannot be split"),
    ],
)
def test_too_few_images_are_refused(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    _write(str(tmp_path / "index"), *_clusters(sizes, 1.0))
    with pytest.raises(InputError, match=message):
        evaluate_categories(str(tmp_path / "index"))


def test_labels_without_categories_are_refused(tmp_path: Path) -> None:
    _write(str(tmp_path / "index"), *_clusters({"car": 9, "tree": 9}, 1.0))
    with pytest.raises(InputError, match="give folder or masks"):
        evaluate_categories(str(tmp_path / "index"), "csv")
    with pytest.raises(InputError, match="need masks and classes"):
        evaluate_categories(str(tmp_path / "index"), "masks")
    with pytest.raises(InputError, match="test share"):
        evaluate_categories(str(tmp_path / "index"), test_share=1.0)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs shared/data")
def test_features_of_photographs_tell_their_folder(tmp_path: Path) -> None:
    weights = load_weights(str(DATA / "vgg16_imagenet_fp16.pth"), DEFAULT_BACKBONE)
    normalise = Normalise(Scaling(True, weights.mean, weights.std))
    maps = FeatureMaps(weights.state, ["conv5_3"], normalise, "cpu")
    files = [f for name in ("airplane", "frog", "truck") for f in _first(DATA / "cifar10" / name)]
    pixels = np.stack([np.array(Image.open(f).convert("RGB").resize((64, 64))) for f in files])
    features = pooling.global_mean(maps(pixels)["conv5_3"]).numpy()
    _write(str(tmp_path / "index"), [f.parent.name for f in files], features)
    found = evaluate_categories(str(tmp_path / "index"))
    right = {e.key.method: e.value for e in found.estimates if e.key.name == RIGHT}
    assert right[SVM] is not None
    assert right[SVM] > 0.6, "chance is 1/3"


def _first(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())[:30]
