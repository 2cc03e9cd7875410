"""Tests of `segrec query` and `segrec sql`."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import segrec_batch
from segrec_batch.cli import main as cli


@pytest.fixture
def tree(index: str) -> tuple[str, str]:
    """The index and the URI of the image fullest of tree."""
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


def test_query_json_and_csv_have_equal_rows(
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


def test_query_new_image_ranks_its_indexed_copy_first(
    tree: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    index, uri = tree
    ask = ["query", "--index", index, "--image", uri, "--class", "tree", "-k", "1"]
    assert cli.main([*ask, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["uri"], row["pearson"]) == (uri, pytest.approx(1, abs=1e-4))


def test_query_coverage_window_limits_results(
    tree: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    index, uri = tree
    ask = ["query", "--index", index, "--uri", uri, "--class", "tree", "--coverage", "0.1", "0.4"]
    assert cli.main([*ask, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(0.1 <= row["coverage_tree"] <= 0.4 for row in rows)


def test_query_html_sheet_notes_an_untrained_model(tree: tuple[str, str], tmp_path: Path) -> None:
    index, uri = tree
    page = tmp_path / "sheet.html"
    ask = ["query", "--index", index, "--uri", uri, "--class", "tree", "-k", "3"]
    assert cli.main([*ask, "--format", "html", "--output", str(page)]) == 0
    text = page.read_text()
    assert "Untrained backbone" in text
    assert text.count("data:image/jpeg") == 4


def test_query_png_is_a_contact_sheet(tree: tuple[str, str], tmp_path: Path) -> None:
    index, uri = tree
    sheet = tmp_path / "sheet.png"
    ask = ["query", "--index", index, "--uri", uri, "--class", "tree", "--rerank", "mask_iou"]
    assert cli.main([*ask, "-k", "3", "--format", "png", "--output", str(sheet)]) == 0
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_query_new_image_has_the_results_of_the_indexed_one(
    tree: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    index, uri = tree
    how = ["--class", "tree", "--coverage", "0.05", "1", "--rerank", "mask_iou", "--depth", "20"]
    how += ["--epsilon", "0.9", "--penalise", "--keep-copies", "--format", "json", "-k"]
    assert cli.main(["query", "--index", index, "--uri", uri, *how, "6"]) == 0
    indexed = json.loads(capsys.readouterr().out)
    assert cli.main(["query", "--index", index, "--image", uri, *how, "7"]) == 0
    new = [row for row in json.loads(capsys.readouterr().out) if row["uri"] != uri]
    assert [row["uri"] for row in new] == [row["uri"] for row in indexed]
    for a, b in zip(new, indexed, strict=True):
        assert a["pearson"] == pytest.approx(b["pearson"], abs=1e-4)
        assert a["mask_iou"] == pytest.approx(b["mask_iou"], abs=0.02)


def test_query_reads_stdin_and_writes_parquet_to_stdout(tree: tuple[str, str]) -> None:
    index, uri = tree
    command = [sys.executable, "-m", "segrec_batch.cli.main", "query", "--index", index]
    with Path(uri).open("rb") as image:
        done = subprocess.run(
            [*command, "--image", "-", "-k", "2", "--format", "parquet"],
            stdin=image,
            capture_output=True,
            check=True,
        )
    rows = pq.read_table(io.BytesIO(done.stdout)).to_pylist()
    assert [row["rank"] for row in rows] == [1, 2]
    assert rows[0]["uri"] == uri


def test_explain_prints_rows_and_row_groups_read(
    tree: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    index, uri = tree
    ask = ["query", "--index", index, "--uri", uri, "--class", "tree", "--explain"]
    assert cli.main(ask) == 0
    assert re.search(r"read [\d,]+ rows of \d+ of \d+ row groups", capsys.readouterr().err)
    sql = ["sql", "--index", index, "--explain"]
    assert cli.main([*sql, "SELECT sum(coverage) FROM regions WHERE class = 'tree'"]) == 0
    ((trees,),) = (
        segrec_batch.connect(index)
        .sql("SELECT count(*) FROM regions WHERE class = 'tree'")
        .fetchall()
    )
    assert f"read {trees} rows of 1 of 1 row groups" in capsys.readouterr().err


def test_sql_keeps_two_columns_of_one_name(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["sql", "--index", index, "--format", "csv"]
    assert cli.main([*ask, "SELECT 1 AS n, 2 AS n"]) == 0
    (line,) = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]
    assert line == ["1", "2"]


def test_sql_takes_parameters(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["sql", "--index", index, "--format", "json", "-p", "name=it's \"; DROP VIEW images --"]
    assert cli.main([*ask, "SELECT $name AS name"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "it's \"; DROP VIEW images --"}]
    assert cli.main(["sql", "--index", index, "-p", "name", "SELECT 1"]) == 1
    assert "NAME=TEXT" in capsys.readouterr().err


def test_sql_prints_rows(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sql", "--index", index, "SELECT count(*) AS n FROM images"]) == 0
    assert "24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--uri", "/nowhere.jpg"], "/nowhere.jpg is not in the index"),
        (["--image-id", "' OR 1=1 --"], "is not in the index"),
        (["--uri", "BROKEN"], "it failed: decode, not an image"),
        (["--image", "/nowhere.jpg"], "cannot be read"),
        (["--image", __file__], "not an image"),
        (["--uri", "TREE", "--class", "bus"], "no class 'bus'"),
        (["--uri", "TREE", "--class", "car", "--coverage", "0.9", "0.2"], "LOW <= HIGH"),
        (["--uri", "TREE", "--coverage", "0.1", "0.2"], "needs a class"),
        (["--uri", "TREE", "-k", "0"], "at least 1"),
        (["--uri", "TREE", "--epsilon", "3"], "0 to 2"),
        (["--uri", "TREE", "--rerank", "mask_iou", "--depth", "0"], "depth is 0"),
        (["--uri", "TREE", "--version", "99"], "version 99"),
    ],
)
def test_query_error_has_a_message_and_exit_code_1(
    tree: tuple[str, str],
    arguments: list[str],
    message: str,
    scenes: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index, uri = tree
    broken = str(scenes / "images" / "place_00" / "broken.jpg")
    words = [{"TREE": uri, "BROKEN": broken}.get(a, a) for a in arguments]
    assert cli.main(["query", "--index", index, *words]) == 1
    assert message in capsys.readouterr().err


def test_sql_year_above_9999_is_an_error(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sql", "--index", index, "SELECT DATE '20000-01-01' AS day"]) == 1
    assert "cast it to VARCHAR" in capsys.readouterr().err


def test_sql_syntax_error_exits_with_1(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sql", "--index", index, "SELEC 1"]) == 1
    assert "syntax error" in capsys.readouterr().err
