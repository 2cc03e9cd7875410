"""Tests of the layout: imports, the wheel, documents and commands."""

import ast
import io
import os
import re
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from segrec_batch.cli.main import COMMANDS
from tests.support.commands import exit_code
from tests.support.modules import MODULES, PACKAGE, ROOT

DOORS = {  # each heavy library is imported in these packages only
    "ray": {"distributed", "pipeline"},
    "duckdb": {"search"},
    "deltalake": {"index"},
    "sklearn": {"training"},
    "matplotlib": {"evaluation"},
    "cv2": {"descriptors"},
    "skimage": {"descriptors"},
    "ncnn": {"model"},
}
GROUPS = ("evaluate", "feedback", "maintain")  # commands of commands
REPORTS = ("segmentation", "retrieval", "drift", "compare")
LEVELS = [  # a package imports from those before it only
    "common",
    "images",
    "sources",
    "sample_data",
    "model",
    "labels",
    "index",
    "distributed",
    "training",
    "descriptors",
    "sheets",
    "search",
    "pipeline",
    "maintenance",
    "evaluation",
    "doctor",
    "api",
    "cli",
    "__main__",
]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_library_is_imported_in_one_package(path: Path) -> None:
    for library, door in DOORS.items():
        used = any(name.split(".")[0] == library for name in imports(path))
        assert not used or part(path) in door, f"{library} belongs in {door}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    if part(path) == "__init__":
        return
    allowed = {*LEVELS[: LEVELS.index(part(path)) + 1], "__version__"}
    used = {n.split(".")[1] for n in imports(path) if n.startswith("segrec_batch.")}
    assert used <= allowed


def test_modules_have_at_most_300_lines() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > 300} == {}


def test_folders_have_at_most_20_files() -> None:
    for folder in {path.parent for path in MODULES}:
        assert len([path for path in folder.iterdir() if path.is_file()]) <= 20, folder


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_images_are_opened_in_named_formats_only(path: Path) -> None:
    """Some of Pillow's plug-ins start other programs: that of EPS runs Ghostscript."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "Image.open",
            "PIL.Image.open",
        ):
            assert "formats" in {keyword.arg for keyword in node.keywords}, node.lineno


def test_import_of_the_package_is_light() -> None:
    code = "import segrec_batch, sys; print(*(m.split('.')[0] for m in sys.modules))"
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "ray", "duckdb", "deltalake", "sklearn", "pyarrow", "PIL", "numpy"}
    assert not heavy & set(completed.stdout.split())


def test_reading_modules_do_not_import_torch() -> None:
    """It costs a reading or writing worker, or a query, seconds and half a gigabyte."""
    code = "import {0}.pipeline.run, {0}.search.database, {0}.maintenance.verify, sys"
    code = code.format("segrec_batch") + "; print(*sys.modules)"
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "torch" not in completed.stdout.split()


def test_ncnn_query_does_not_import_torch() -> None:
    """Torch takes longer to import than all the rest; torchvision as long again."""
    code = "import {0}.search.recommend, {0}.model.ncnn_engine, sys; print(*sys.modules)"
    code = code.format("segrec_batch")
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "ncnn" in completed.stdout.split()
    assert not {"torch", "torchvision"} & set(completed.stdout.split())
    code = "import segrec_batch.model.torch_engine, sys; print(*sys.modules)"
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "torch" in completed.stdout.split()
    assert "torchvision" not in completed.stdout.split()


@cache
def help_of(*command: str) -> str:
    """Return the output of a program of the project for --help."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert exit_code(*command, "--help") == 0
    return out.getvalue()


UPKEEP = ("compact", "vacuum", "purge", "verify", "rollback", "history")
STEPS = ("start", "mark", "show", "replay")
JOBS = ("train", "index", "describe", "recommend", "evaluate", "maintain")
HELP = [
    (),
    *((command,) for command in COMMANDS),
    *(("evaluate", report) for report in REPORTS),
    *(("feedback", step) for step in STEPS),
    *(("maintain", "--index", ".", task) for task in UPKEEP),
]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_command_help_has_examples(command: tuple[str, ...]) -> None:
    text = help_of("segrec", *command)
    assert "examples:" in text
    assert "exit codes: 0 done; 1 failed, or a limit was exceeded; 2 wrong usage" in text
    if command and command not in [(group,) for group in GROUPS]:
        assert "--log-format" in text
        assert "--quiet" in text


@pytest.mark.parametrize("command", [c for c in HELP if c and c[0] in JOBS], ids=" ".join)
def test_jobs_have_the_help_of_commands(command: tuple[str, ...]) -> None:
    assert help_of(f"jobs/{command[0]}.py", *command[1:]) == help_of("segrec", *command)


@pytest.mark.parametrize("job", JOBS)
def test_jobs_are_executable_programs_of_a_few_lines(job: str) -> None:
    path = ROOT / "jobs" / f"{job}.py"
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env python\n")
    assert len(path.read_text().splitlines()) <= 15


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_heavy_library(command: str) -> None:
    code = (
        "import sys\nfrom segrec_batch.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(*(m.split('.')[0] for m in sys.modules), file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, *([command] if command else []), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout
    assert not {"torch", "ray", "duckdb", "deltalake", "sklearn"} & set(done.stderr.split())
    assert command or "numpy" not in done.stderr.split()


def test_document_links_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_documented_options_exist() -> None:
    helps: dict[str, str] = {}
    for command in HELP:
        words = [word for word in command if word not in ("--index", ".")]
        if not words or words in ([g] for g in GROUPS):
            continue
        helps[f"segrec {' '.join(words)}"] = help_of("segrec", *command)
        if command[0] in JOBS:
            of = "maintain.py" if command[0] == "maintain" else f"jobs/{command[0]}.py"
            helps[" ".join([of, *words[1:]])] = help_of("segrec", *command)
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "Makefile"]:
        text = document.read_text().replace("\\\n", " ")
        text = re.sub(r"segrec maintain --index \S+ ", "segrec maintain ", text)
        for line in text.splitlines():
            for name, known in helps.items():
                if name in line:
                    for option in re.findall(r"(?<=\s)(--?[A-Za-z][\w-]*)", line.split(name)[1]):
                        assert option in known, f"{document.name}: {name} has no {option}"


def test_wheel_has_schemas_and_templates(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        tmp_path,
    ]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"segrec_batch/schemas/{p.name}" for p in (ROOT / "schemas").iterdir()}
    assert names > shipped | {
        "segrec_batch/sheets/sheet.html.j2",
        "segrec_batch/sheets/palette.css",
        "segrec_batch/evaluation/report.html.j2",
        "segrec_batch/py.typed",
    }
    assert not any(name.startswith(("tests/", "jobs/")) for name in names)


def test_no_registry_address() -> None:
    for path in (*ROOT.glob("requirements*.lock"), ROOT / "pyproject.toml", ROOT / "Makefile"):
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", path.read_text())


def test_locks_agree() -> None:
    pins = [
        dict(re.findall(r"^([\w.-]+)==([\w.]+)(?: ;|\s)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements.lock", "requirements-dev.lock")
    ]
    assert pins[0].items() < pins[1].items()
    assert {"ray", "torch", "duckdb", "hatchling"} <= pins[0].keys()
    assert not {"pytest", "moto", "mypy"} & pins[0].keys()


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")], ids=lambda p: p.name)
def test_documents_have_no_placeholders(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [
        line for line in lines if re.fullmatch(r"[A-Z]{4,}|.*\b(TODO|TBD|FIXME)\b.*", line)
    ] == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: p.name)
def test_no_test_module_imports_another(path: Path) -> None:
    tests = {name for name in imports(path) if name.startswith("tests.")}
    assert [
        name for name in tests if not name.startswith(("tests.support", "tests.conftest"))
    ] == []


def test_architecture_names_existing_modules_and_all_packages() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    paths = set(re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|sql))?)`", text))
    assert len(paths) > 10
    assert [p for p in paths if not (PACKAGE / p).exists() and not (ROOT / p).exists()] == []
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert [name for name in packages if f"| `{name}` |" not in text] == []
