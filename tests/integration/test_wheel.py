"""Tests of the wheel: installed elsewhere, `segrec` does everything without the repository."""

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Installation:
    """An environment that has the wheel and sees the libraries of this one, not the checkout."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "venv" / "bin" / "python"
        self.work = folder / "work"
        self.work.mkdir()
        wheels = folder / "wheels"
        self._run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels, cwd=ROOT)
        self._run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
        (wheel,) = wheels.glob("*.whl")
        (packages,) = (folder / "venv" / "lib").glob("python3.*/site-packages")
        install = ["-m", "pip", "--python", self.python, "install", "--no-deps", "--no-index"]
        self._run(sys.executable, *install, wheel)
        links = packages / "libraries"  # not a .pth: one of these packages adds the checkout
        links.mkdir()
        for folder_of in site.getsitepackages():
            for path in Path(folder_of).iterdir():
                if path.suffix != ".pth" and not path.name.startswith(("segrec_batch", "__")):
                    (links / path.name).symlink_to(path)
        (packages / "libraries.pth").write_text(f"{links}\n")

    def _run(self, *command: object, cwd: Path | None = None) -> str:
        environment = {
            k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        environment["PATH"] = f"{self.python.parent}:{environment['PATH']}"
        done = subprocess.run(
            [str(c) for c in command],
            cwd=cwd or self.work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def segrec(self, *arguments: object) -> str:
        """Run `segrec` in the working directory and return its stdout."""
        return self._run(self.python.parent / "segrec", *arguments)

    def code(self, code: str) -> str:
        """Run Python code and return its stdout."""
        return self._run(self.python, "-c", code)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("installation"))


@pytest.mark.slow
def test_package_is_that_of_the_wheel(installation: Installation) -> None:
    printed = installation.code("import segrec_batch; print(segrec_batch.__file__)")
    assert Path(printed.strip()).is_relative_to(installation.python.parents[1])
    assert ROOT not in Path(printed.strip()).parents
    assert installation.segrec("--version") == "segrec 0.1.0\n"
    as_module = installation._run(installation.python, "-m", "segrec_batch", "--help")
    assert as_module == installation.segrec("--help")


@pytest.mark.slow
def test_wheel_trains_indexes_queries_and_evaluates(installation: Installation) -> None:
    segrec = installation.segrec
    segrec("scenes", "--output", "scenes", "--count", 12)
    labelled = ["--images", "scenes/images", "--masks", "scenes/masks"]
    labelled += ["--classes", "scenes/classes.json"]
    small = ["--input-size", 64, "--layers", "conv5_3", "--C", 1, "--positions", 50]
    weights = ["--backbone-weights", "random:0"]
    printed = segrec("train", *labelled, "--output", "model", *weights, *small)
    assert "written to" in printed
    printed = segrec("index", "--images", "scenes/images", "--model", "model", "--index", "index")
    assert "12 images" in printed
    sql = "SELECT image_id, uri FROM images ORDER BY uri"
    rows = json.loads(segrec("sql", "--index", "index", "--format", "json", sql))
    assert len(rows) == 12
    query = ["query", "--index", "index", "--format", "json", "-k", 3]
    results = json.loads(segrec(*query, "--image-id", rows[0]["image_id"]))
    assert [r["rank"] for r in results] == [1, 2, 3]
    assert rows[0]["uri"] not in [r["uri"] for r in results]
    (first,) = json.loads(segrec(*query[:-1], 1, "--image", rows[0]["uri"]))
    assert first["uri"] == rows[0]["uri"]
    labels = ["--labels", "masks", *labelled[2:], "--window", 0, 1]
    report = ["--methods", "pearson,random", "--feedback-rounds", 0, "--report", "report"]
    assert "report.html" in segrec("evaluate", "retrieval", "--index", "index", *labels, *report)
    measures = json.loads((installation.work / "report" / "metrics.json").read_text())
    assert {"pearson", "random"} <= {m["method"] for m in measures["measures"]}
    assert "12 images" in segrec("maintain", "--index", "index", "verify")


@pytest.mark.slow
def test_completion_knows_commands_and_options(installation: Installation) -> None:
    script = installation.segrec("completion", "bash")
    for text in ("recommend", "--near-duplicates", "--retention-hours"):
        assert text in script
    (installation.work / "completion.sh").write_text(script)
    installation._run("bash", "-n", "completion.sh")
