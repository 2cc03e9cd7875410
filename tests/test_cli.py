"""The `segrec` command, run in this process."""

import csv
import io
import json
from pathlib import Path

import pytest

from segrec_batch import cli


@pytest.fixture
def tree(index: str) -> tuple[str, str]:
    """The index and the URI of the image fullest of tree."""
    import segrec_batch

    sql = "SELECT arg_max(uri, coverage) FROM regions WHERE class = 'tree'"
    ((uri,),) = segrec_batch.connect(index).sql(sql).fetchall()
    return index, uri


def test_query_prints_a_table_with_pearson_and_coverage(
    tree: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    index, uri = tree
    assert cli.main(["query", "--index", index, "--uri", uri, "--class", "tree", "-k", "3"]) == 0
    out = capsys.readouterr()
    assert "pearson" in out.out
    assert "σ tree" in out.out
    assert "Untrained backbone (random:0)" in out.err


def test_json_and_csv_hold_the_same_rows(
    tree: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    index, uri = tree
    ask = ["query", "--index", index, "--uri", uri, "-k", "4", "--format"]
    assert cli.main([*ask, "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert cli.main([*ask, "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [r["uri"] for r in rows] == [line["uri"] for line in lines]
    assert [r["rank"] for r in rows] == [1, 2, 3, 4]
    assert [f"{r['coverage_tree']}" for r in rows] == [line["coverage_tree"] for line in lines]


def test_a_new_picture_finds_its_indexed_twin_first(
    tree: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    index, uri = tree
    ask = ["query", "--index", index, "--image", uri, "--class", "tree", "-k", "1"]
    assert cli.main([*ask, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["uri"], row["pearson"]) == (uri, pytest.approx(1, abs=1e-4))


def test_the_coverage_window_holds(
    tree: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    index, uri = tree
    ask = ["query", "--index", index, "--uri", uri, "--class", "tree", "--coverage", "0.1", "0.4"]
    assert cli.main([*ask, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(0.1 <= row["coverage_tree"] <= 0.4 for row in rows)


def test_html_is_a_contact_sheet_that_says_the_model_is_untrained(
    tree: tuple[str, str], tmp_path: Path
) -> None:
    index, uri = tree
    page = tmp_path / "sheet.html"
    ask = ["query", "--index", index, "--uri", uri, "--class", "tree", "-k", "3"]
    assert cli.main([*ask, "--format", "html", "--output", str(page)]) == 0
    text = page.read_text()
    assert "Untrained backbone" in text
    assert text.count("data:image/jpeg") == 4


def test_sql_prints_rows(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sql", "--index", index, "SELECT count(*) AS n FROM images"]) == 0
    assert "24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--uri", "/nowhere.jpg"], "/nowhere.jpg is not in the index"),
        (["--image-id", "' OR 1=1 --"], "is not in the index"),
        (["--uri", "BROKEN"], "it failed: decode, not a picture"),
        (["--image", "/nowhere.jpg"], "cannot be read"),
        (["--image", __file__], "not a picture"),
        (["--uri", "TREE", "--class", "bus"], "no class 'bus'"),
        (["--uri", "TREE", "--class", "car", "--coverage", "0.9", "0.2"], "LOW <= HIGH"),
        (["--uri", "TREE", "--coverage", "0.1", "0.2"], "needs a class"),
        (["--uri", "TREE", "-k", "0"], "at least 1"),
        (["--uri", "TREE", "--version", "99"], "version 99"),
    ],
)
def test_errors_say_what_is_wrong_and_exit_with_1(
    tree: tuple[str, str],
    arguments: list[str],
    message: str,
    scenes: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index, uri = tree
    broken = str(scenes / "images" / "place_00" / "broken.jpg")
    given = [{"TREE": uri, "BROKEN": broken}.get(a, a) for a in arguments]
    assert cli.main(["query", "--index", index, *given]) == 1
    assert message in capsys.readouterr().err


def test_bad_sql_is_an_error(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sql", "--index", index, "SELEC 1"]) == 1
    assert "syntax error" in capsys.readouterr().err
