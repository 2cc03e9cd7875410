"""The shape of the project: who imports what, what ships, what the documents say."""

import ast
import io
import re
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

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
    "cli",
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
def test_each_heavy_library_has_one_door(path: Path) -> None:
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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_images_are_opened_in_named_formats_only(path: Path) -> None:
    """Some of Pillow's plug-ins start other programs: that of EPS runs Ghostscript."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "Image.open",
            "PIL.Image.open",
        ):
            assert "formats" in {keyword.arg for keyword in node.keywords}, node.lineno


def test_importing_the_package_stays_light() -> None:
    code = "import segrec_batch, sys; print(*(m.split('.')[0] for m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "ray", "duckdb", "deltalake", "sklearn", "pyarrow", "PIL", "numpy"}
    assert not heavy & set(found.stdout.split())


def test_only_what_computes_imports_torch() -> None:
    """It costs a reading or writing worker, or a query, seconds and half a gigabyte."""
    code = "import {0}.pipeline.run, {0}.search.database, {0}.maintenance.verify, sys"
    code = code.format("segrec_batch") + "; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in found.stdout.split()


def test_a_new_image_waits_for_torch_in_no_engine_but_torch() -> None:
    """Torch takes longer to import than all the rest; torchvision as long again."""
    code = "import {0}.search.recommend, {0}.model.ncnn_engine, sys; print(*sys.modules)"
    code = code.format("segrec_batch")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ncnn" in found.stdout.split()
    assert not {"torch", "torchvision"} & set(found.stdout.split())
    code = "import segrec_batch.model.torch_engine, sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" in found.stdout.split()
    assert "torchvision" not in found.stdout.split()


@cache
def help_of(*command: str) -> str:
    """What a program of the project prints for --help."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert exit_code(*command, "--help") == 0
    return out.getvalue()


@pytest.mark.parametrize(
    "command",
    [
        ("jobs/train.py",),
        ("jobs/index.py",),
        ("jobs/describe.py",),
        ("jobs/maintain.py",),
        ("jobs/recommend.py",),
        *(("jobs/evaluate.py", report) for report in REPORTS),
        ("segrec",),
        ("segrec", "query"),
        ("segrec", "sql"),
        ("segrec", "feedback"),
        ("segrec", "doctor"),
    ],
    ids=" ".join,
)
def test_every_command_has_help_with_examples(command: tuple[str, ...]) -> None:
    assert "examples:" in help_of(*command)


def test_documents_name_only_files_that_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_documented_commands_have_the_options_that_the_documents_use() -> None:
    upkeep = ("compact", "vacuum", "purge", "verify", "rollback", "history")
    helps = {
        **{
            f"jobs/{job}.py": help_of(f"jobs/{job}.py")
            for job in ("train", "index", "describe", "recommend")
        },
        **{
            f"maintain.py {command}": help_of("jobs/maintain.py", "--index", ".", command)
            for command in upkeep
        },
        **{f"jobs/evaluate.py {name}": help_of("jobs/evaluate.py", name) for name in REPORTS},
        **{
            f"segrec {command}": help_of("segrec", command)
            for command in ("query", "sql", "scenes", "doctor")
        },
        **{
            f"segrec feedback {step}": help_of("segrec", "feedback", step)
            for step in ("start", "mark", "show", "replay")
        },
    }
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "Makefile"]:
        text = document.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            for name, known in helps.items():
                if name in line:
                    for option in re.findall(r"(?<=\s)(--?[A-Za-z][\w-]*)", line.split(name)[1]):
                        assert option in known, f"{document.name}: {name} has no {option}"


def test_the_wheel_holds_sql_schemas_and_template(tmp_path: Path) -> None:
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


def test_no_registry_address_is_committed() -> None:
    for path in (*ROOT.glob("requirements*.lock"), ROOT / "pyproject.toml", ROOT / "Makefile"):
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", path.read_text())


def test_what_runs_is_locked_to_the_versions_that_are_tested() -> None:
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
