"""Tests of `segrec describe` on a real index."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import segrec_batch
from segrec_batch import descriptors
from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import localised, summaries
from segrec_batch.descriptors.operators import projection
from segrec_batch.index.snapshot import open_snapshot
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.pipeline import moments
from segrec_batch.pipeline.descriptor_setup import Addition, parse_addition
from segrec_batch.pipeline.samples import IndexSamples
from tests.support.builders import tiny_model
from tests.support.commands import exit_code
from tests.support.feature_index import add_images, write_index

JOB = "jobs/describe.py"


def features(index: str) -> NDArray[np.float32]:
    """Return the rows of all images, by their contents."""
    with segrec_batch.connect(index) as connection:
        result = connection.sql("SELECT feature FROM images ORDER BY uri").to_arrow_table()
    return np.stack(result["feature"].to_numpy())


def ids(model: Model) -> dict[str, str]:
    return {d.name: d.id for d in model.spec.descriptors}


def test_describe_fits_descriptors(
    index: str, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    arguments = ["--add", "pca:dimension=5", "--add", "localised:weights=random:1,category=folder"]
    assert exit_code(JOB, "--index", index, "--output", one, *arguments) == 0
    printed, stderr = capsys.readouterr()
    assert stderr.endswith("Untrained networks of localised, for trying out only.\n")
    first = load_model(one)
    assert first.model_id == model.model_id != first.bundle_id
    assert ids(first).keys() == {"localised", "pca"}
    for name, length in (("localised", 2048), ("pca", 5)):
        assert re.search(rf"{ids(first)[name]} +{length}\n", printed)
    assert f"segrec index --images IMAGES --model {one} --index {index}\n" in printed

    whole = features(index)
    exact = np.cov(whole.T.astype(np.float64), bias=True) * len(whole)
    expected, _ = projection.principal_components(descriptors.Moments(len(whole), whole[0], exact))
    components = first.descriptors["pca"]["components"]
    np.testing.assert_allclose(components, expected[:5], atol=1e-4)
    np.testing.assert_allclose(first.descriptors["pca"]["mean"], whole.mean(axis=0), rtol=1e-5)
    settings = {d.name: d.settings for d in first.spec.descriptors}
    places = [f"place_{k:02}" for k in range(4)]
    assert settings["localised"]["categories"] == places
    assert 0 <= settings["localised"]["accuracy"] <= 1

    arguments = ["--model", one, "--drop", "localised", "--add", "pca:dimension=5"]
    assert exit_code(JOB, "--index", index, "--output", two, *arguments) == 0
    second = load_model(two)
    assert ids(second) == {"pca": ids(first)["pca"]}, "a fit repeats bit by bit"
    assert not (Path(two) / "descriptor-localised.safetensors").exists()


def test_describe_refuses_bad_arguments(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = str(tmp_path / "out"), str(tmp_path / "other")
    tiny_model().save(other)
    cases = {
        (
            "--add",
            "pca",
            "--model",
            other,
        ): r"belongs to model \w+, not to \w+ \(.*other\); give the",
        ("--add", "pac"): "unknown descriptor 'pac'; known are alexnet,",
        ("--add", "pca:dimension=99"): "span only 23 dimensions",
        ("--add", "pca", "--add", "pca:dimension=3"): "--add pca is given twice",
        ("--drop", "pca"): "cannot drop pca: the model has no descriptors",
        ("--add", "pca", "--output", f"{index}/models/new"): "lies in the index",
    }
    for arguments, message in cases.items():
        assert exit_code(JOB, "--index", index, "--output", out, *arguments) == 1
        assert re.search(f"^error: .*{message}", capsys.readouterr().err, re.MULTILINE), arguments
    assert exit_code(JOB, "--index", index, "--output", out) == 2
    assert "give --add or --drop" in capsys.readouterr().err
    assert not Path(out).exists()


@pytest.mark.parametrize(
    "text", ["pca:", "pca:dimension", "pca:=3", "pca:dimension=", "pca:a=1,a=2"]
)
def test_describe_parses_additions(text: str) -> None:
    assert parse_addition("pca") == Addition("pca")
    result = parse_addition("localised:weights=s3://b/a,b.pth,grey=no")
    assert result == Addition("localised", {"weights": "s3://b/a,b.pth", "grey": "no"})
    with pytest.raises(InputError, match="write NAME or NAME:KEY=VALUE"):
        parse_addition(text)


def test_descriptors_have_a_description() -> None:
    result = summaries()
    assert list(result) == descriptors.names()
    for name, text in result.items():
        assert text == str(descriptors.module(name).__doc__).split("\n")[0] != ""


def test_moments_of_an_index(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = rng.random((9000, 32), np.float32)
    snapshot = add_images(write_index(str(tmp_path), whole[:8900]), whole[8900:])
    files = snapshot.files["images"]
    assert len(files) == 2
    merged = moments.compute_file_moments(moments.MomentsTask(str(tmp_path), files))
    expected = moments.compute_moments(whole)
    assert merged.n == expected.n == 9000
    np.testing.assert_allclose(merged.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(
        merged.scatter, expected.scatter, atol=1e-9 * np.trace(expected.scatter)
    )


def _samples(index: str, most: int = 100) -> IndexSamples:
    return IndexSamples(open_snapshot(index), most)


def test_samples_equal_indexed_images(index: str, model: Model) -> None:
    with segrec_batch.connect(index) as connection:
        sql = """SELECT feature, dominant_class, coverage_background, mask_grid,
            (SELECT count(*) FROM regions WHERE regions.image_id = images.image_id) FROM images"""
        rows = {np.float32(row[0]).tobytes(): row[1:] for row in connection.sql(sql).fetchall()}
    seen = 0
    for images in _samples(index).draw_images(100):
        n, height, width, _ = images.pixels.shape
        assert (height, width) in model.spec.shapes
        assert images.labels.shape == (n, height, width)
        assert images.region_features.shape == (n, len(model.spec.all_classes), 512)
        for i, k in enumerate(localised.dominant_classes(images.counts)):
            dominant, background, grid, regions = rows[images.feature[i].tobytes()]
            assert model.spec.all_classes[k] == dominant
            cells = images.counts[i]
            assert cells[0] / cells.sum() == pytest.approx(background)
            assert cells.sum() == len(grid)
            assert (images.region_features[i].any(axis=1) == (cells > 0)).all()
            assert (cells > 0).sum() == regions
            mean = cells @ images.region_features[i] / cells.sum()
            np.testing.assert_allclose(mean, images.feature[i], rtol=1e-3, atol=1e-4)
            outside = (images.labels[i] == 0).mean()
            assert outside == pytest.approx(background, abs=0.15)
        assert images.pixels.std(axis=(1, 2, 3)).min() > 5
        seen += n
    assert seen == len(rows) == 24


def test_samples_repeat_and_are_bounded(index: str) -> None:
    def drawn(most: int, count: int) -> set[bytes]:
        result = _samples(index, most).draw_images(count)
        return {row.tobytes() for images in result for row in images.feature}

    seven = drawn(7, 100)
    assert len(seven) == 7
    assert drawn(100, 7) == seven
    rows, folders = _samples(index, 1).read_labelled_features(10)
    assert (rows.shape, len(folders)) == ((10, 512), 10)
    assert seven < {row.tobytes() for row in rows}
    again, _ = _samples(index).read_labelled_features(10)
    np.testing.assert_array_equal(rows, again)


def test_folder_names_are_labels(index: str, scenes: Path) -> None:
    rows, folders = _samples(index).read_labelled_features(1000)
    with segrec_batch.connect(index) as connection:
        result = connection.sql("SELECT feature, uri FROM images").fetchall()
    places = {np.float32(feature).tobytes(): Path(uri).parent.name for feature, uri in result}
    assert [places[row.tobytes()] for row in rows] == folders
    assert set(folders) == {folder.name for folder in (scenes / "images").iterdir()}


def test_samples_skip_gone_and_changed_images(
    index: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, away = scenes / "images", tmp_path / "away"
    gone, changed, *_ = sorted((images / "place_02").iterdir())
    content = changed.read_bytes()
    gone.rename(away)
    changed.write_bytes(content[:-1])
    try:
        assert sum(map(len, _samples(index).draw_images(100))) == 22
    finally:
        away.rename(gone)
        changed.write_bytes(content)
    stderr = capsys.readouterr().err
    assert "warning: 2 of 24 images to learn from cannot be read any more" in stderr
    images.rename(away)
    try:
        with pytest.raises(InputError, match="none of 24 images can be read any more"):
            list(_samples(index).draw_images(100))
    finally:
        away.rename(images)


def test_describe_refuses_empty_index(tmp_path: Path) -> None:
    write_index(str(tmp_path), np.ones((1, 512), np.float32))
    snapshot = open_snapshot(str(tmp_path), 0)
    with pytest.raises(InputError, match="has no images to learn from"):
        IndexSamples(snapshot, 10)
