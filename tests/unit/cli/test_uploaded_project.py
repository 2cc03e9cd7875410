"""Tests of commands in a project that was uploaded to Ray."""

import shutil
from pathlib import Path

import pytest

from segrec_batch.cli.output import check_places
from segrec_batch.common.errors import InputError
from tests.support.commands import exit_code

PACKAGE = (
    "session_2026-11-30_18-00-00_000000_1/runtime_resources/working_dir_files/_ray_pkg_0123abcd"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a job, as Ray makes it; see WorkingDirPlugin."""
    folder = tmp_path / "ray" / PACKAGE
    (folder / "data").mkdir(parents=True)
    (folder / "classes.json").write_text("{}")
    monkeypatch.chdir(folder)
    return folder


RELATIVE = ("index", "./index", "a/b/../index", "file://index", "file:index", "local://index")


@pytest.mark.parametrize("place", RELATIVE)
def test_check_places_refuses_relative_outputs(project: Path, place: str) -> None:
    with pytest.raises(InputError, match=r"^--index \S+ lies in the project .*s3:// URI$"):
        check_places({"--index": place})


def test_check_places_accepts_outputs_elsewhere(project: Path, tmp_path: Path) -> None:
    check_places({"a": "s3://bucket/index", "b": str(tmp_path / "index"), "c": None, "d": ""})
    for place in (project / "index", project, f"file://{project}/index"):
        with pytest.raises(InputError, match="lies in the project"):
            check_places({"--index": place})


def test_check_places_accepts_relative_outputs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("work", "runtime_resources/mine", "working_dir_files/mine"):
        (tmp_path / folder).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / folder)
        check_places({"--index": "index"}, {"--images": "."})
    assert capsys.readouterr().err == ""


def test_check_places_reports_inputs_in_one_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {"--images": "data", "--classes": "classes.json", "--weights": "imagenet", "-x": None}
    check_places({"--output": "s3://bucket/model"}, {**inputs, "--masks": "s3://bucket/masks"})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--images, --classes: read from the project that was uploaded to Ray")
    assert str(project) in line
    check_places({}, {"--masks": "s3://bucket/masks"})
    assert capsys.readouterr().err == ""


INDEX = "--index", "/index"
COMMANDS: list[tuple[str, tuple[str, ...], str]] = [
    ("jobs/index.py", ("--images", "data", "--model", "/model"), "--index"),
    ("jobs/train.py", ("--images", "data", "--masks", "data", "--classes", "x"), "--output"),
    ("jobs/describe.py", (*INDEX, "--add", "hog"), "--output"),
    ("jobs/recommend.py", INDEX, "--output"),
    ("jobs/evaluate.py", ("retrieval", *INDEX, "--labels", "folder"), "--report"),
    ("jobs/evaluate.py", ("drift", *INDEX), "--report"),
    ("jobs/evaluate.py", ("compare", "/a", "/b"), "--report"),
    ("jobs/evaluate.py", ("segmentation", "--images", "data", "--masks", "data", "--classes",
                          "classes.json", "--model", "/model"), "--report"),
    ("segrec", ("scenes",), "--output"),
    ("segrec", ("feedback", "start", *INDEX, "--uri", "x"), "--session"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "arguments", "option"), COMMANDS)
def test_command_refuses_a_relative_output(
    project: Path, program: str, arguments: tuple[str, ...], option: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = sorted(project.rglob("*"))
    assert exit_code(program, *arguments, option, "mine") == 1
    assert f"error: {option} mine lies in the project" in capsys.readouterr().err
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("command", ["compact", "vacuum", "purge --uri x", "rollback --to 1"])
def test_maintain_refuses_an_index_in_the_project(
    project: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("jobs/maintain.py", "--index", "mine", *command.split()) == 1
    assert "error: --index mine lies in the project" in capsys.readouterr().err


def test_index_in_the_project_can_be_read(
    project: Path, index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(index, project / "mine")
    assert exit_code("jobs/maintain.py", "--index", "mine", "history") == 0
    assert "--index: read from the project" in capsys.readouterr().err
    assert exit_code("segrec", "duckdb", "--index", "mine", "c.duckdb") == 1
    assert "error: FILE c.duckdb lies in the project" in capsys.readouterr().err
    sql = "sql", "--index", "mine", "SELECT 1", "--output", "rows.csv"
    assert exit_code("segrec", *sql) == 1
    assert "error: --output rows.csv lies in the project" in capsys.readouterr().err
    assert not list(project.glob("*.csv")) + list(project.glob("*duckdb*"))


def test_folder_names_are_those_of_the_installed_ray() -> None:
    from ray._private import ray_constants
    from ray._private.runtime_env import working_dir

    assert ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME == "runtime_resources"
    assert '"working_dir_files"' in Path(working_dir.__file__).read_text()
