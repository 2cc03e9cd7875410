"""Tests of the commands in a shell: exit codes and files."""

import shutil
from pathlib import Path

import pytest

from segrec_batch.evaluation.report import read_metrics
from segrec_batch.model.bundle import load_model
from tests.support.commands import ROOT, exit_code, job

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the reference data is not here")


def run(program: str, *arguments: object) -> None:
    """Run a program in this process, where all that it imports is there already."""
    assert exit_code(program, *map(str, arguments)) == 0


def labelled(scenes: Path) -> list[object]:
    return [
        "--images", scenes / "images", "--masks", scenes / "masks",
        "--classes", scenes / "classes.json",
    ]  # fmt: skip


def segrec_figures(report: Path) -> dict[tuple[str, str, str], float]:
    """Figures of the proposed method by measure, setting and class."""
    return {
        (m["measure"], m["setting"], m["class"]): m["value"]
        for m in read_metrics(str(report))["measures"]
        if m["method"] == "segrec"
    }


@pytest.mark.slow
def test_train_index_evaluate_query(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, index = tmp_path / "model", tmp_path / "index"
    trained = job(
        "jobs/train.py", *labelled(scenes), "--output", model, "--backbone-weights", "random:0",
        "--input-size", 96, "--layers", "conv5_3", "conv4_3,conv5_3", "--augment", "flip",
        "--positions", 200,
    )  # fmt: skip
    assert "24 labelled images in 4 groups" in trained.stderr
    assert "Untrained backbone (random:0)" in trained.stderr
    assert load_model(str(model)).spec.training["variants"] == 2

    indexed = job(
        "jobs/index.py", "--images", scenes / "images", "--model", model, "--index", index
    )
    assert "24 new, 0 changed" in indexed.stderr
    assert "24 images" in indexed.stdout
    run("jobs/index.py", "--images", scenes / "images", "--model", model, "--index", index)
    assert "24 unchanged" in capsys.readouterr().err

    report = tmp_path / "report"
    run("jobs/evaluate.py", "segmentation", *labelled(scenes), "--model", model, "--report", report)
    value = segrec_figures(report)
    for name in ("car", "person", "tree"):
        assert value["iou", "pixels", name] is not None
    assert value["iou", "pixels", "mean"] > 0.1
    assert value["pixel_accuracy", "pixels", ""] > 0.5
    confusion = read_metrics(str(report))["details"]["confusion"]["given"]["segrec"]["pixels"]
    assert sum(map(sum, confusion)) == 24 * 160 * 120
    assert (report / "report.html").exists()

    capsys.readouterr()
    run("segrec", "sql", "--index", index, "SELECT count(*) FROM regions")
    assert "count_star()" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--backbone-weights": "/nowhere.pth"}, "cannot be read"),
        ({"--backbone-weights": "random:x"}, "whole number"),
        ({"--layers": "conv9_9"}, "no such layer"),
        ({"--masks": "IMAGES/place_00"}, "a mask in JPEG is refused: its lossy compression"),
        ({"--images": "/nowhere"}, "no images found"),
    ],
)
def test_train_explains_bad_input(
    scenes: Path,
    tmp_path: Path,
    change: dict[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = dict(zip(*[iter(map(str, labelled(scenes)))] * 2, strict=True))
    given |= {"--output": str(tmp_path / "model"), "--backbone-weights": "random:0"} | change
    given = {k: v.replace("IMAGES", str(scenes / "images")) for k, v in given.items()}
    assert exit_code("jobs/train.py", *(x for pair in given.items() for x in pair)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_index_needs_a_model(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--images": scenes / "images", "--model": tmp_path, "--index": tmp_path / "index"}
    assert exit_code("jobs/index.py", *(str(x) for pair in given.items() for x in pair)) == 1
    assert "train a model with segrec train" in capsys.readouterr().err


def test_class_without_pixels_is_an_error(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = tmp_path / "classes.json"
    classes.write_text('{"car": [1], "boat": [77, 78]}')
    given = [
        *labelled(scenes)[:4], "--classes", classes, "--output", tmp_path / "m",
        "--backbone-weights", "random:0", "--input-size", 64,
    ]  # fmt: skip
    assert exit_code("jobs/train.py", *map(str, given)) == 1
    stderr = capsys.readouterr().err
    assert (
        "no labelled pixels of: boat [77, 78]; the masks of 24 images have the values 0, 1"
        in stderr
    )


@pytest.mark.slow
@needs_data
def test_trained_weights_beat_random_weights(tmp_path: Path) -> None:
    for split, every in (("train", 16), ("val", 12)):
        for kind in ("images", "masks"):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            for source in sorted((DATA / "camvid" / split / kind).iterdir())[::every]:
                shutil.copy(source, folder)
    classes = tmp_path / "classes.json"
    classes.write_text('{"car": [8], "person": [9], "tree": [5], "ignore": [11]}')
    quality = {}
    model, report = tmp_path / "model", tmp_path / "report"
    for weights in ("random:0", DATA / "vgg16_imagenet_fp16.pth"):
        folders = lambda s: ["--images", tmp_path / s / "images", "--masks", tmp_path / s / "masks"]  # noqa: E731
        run(
            "jobs/train.py", *folders("train"), "--classes", classes, "--output", model,
            "--backbone-weights", weights, "--input-size", 224, "--C", 1, "--positions", 300,
        )  # fmt: skip
        run(
            "jobs/evaluate.py", "segmentation", *folders("val"), "--classes", classes,
            "--model", model, "--report", report,
        )  # fmt: skip
        quality[str(weights)] = segrec_figures(report)["iou", "pixels", "mean"]
    random, trained = quality.values()
    assert trained > random + 0.1
    assert trained > 0.4
