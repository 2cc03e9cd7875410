"""Tests of hostile names and files through a whole run."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

import segrec_batch
from segrec_batch.common.errors import InputError
from segrec_batch.images import sandbox
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.maintenance.verify import verify
from segrec_batch.pipeline import chain
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, index_images
from segrec_batch.pipeline.run_stats import RunStats
from segrec_batch.pipeline.stage_schema import MANIFEST
from segrec_batch.pipeline.stages import decode_batch
from tests.support.builders import ODD_NAMES, encoded, png_by_hand, smooth_pixels

pytestmark = pytest.mark.slow

GOOD = encoded(smooth_pixels(48, 64), "JPEG")
GIF = encoded(smooth_pixels(48, 64), "GIF")
FINE = {
    "one pixel.png": encoded(smooth_pixels(1, 1), "PNG"),
    "wide.png": encoded(smooth_pixels(10, 20_000), "PNG"),
    "tall.jpg": encoded(smooth_pixels(20_000, 10), "JPEG"),
    "png by another name.jpg": encoded(smooth_pixels(48, 64), "PNG"),
    "grey.png": encoded(Image.new("L", (40, 30), 128), "PNG"),
    "transparent.gif": encoded(Image.new("P", (40, 30)), "GIF", transparency=0),
}
BAD = {
    "empty.jpg": (b"", "empty file"),
    "a web page.jpg": (b"<!DOCTYPE html><html></html>", "not an image"),
    "bomb.png": (png_by_hand(50_000, 50_000), "50000×50000 pixels"),
    "bomb.gif": (GIF[:6] + b"\x50\xc3" * 2 + GIF[10:], "50000×50000 pixels"),
    **{f"quarter {n}.jpg": (GOOD[: len(GOOD) * n // 4], "") for n in (1, 2, 3)},
}
UNREADABLE = {
    "circle.jpg": "broken link",
    "nowhere.jpg": "broken link",
    "pipe.jpg": "not a regular file",
    "vanishes.jpg": "FileNotFoundError",
}
MISNAMED = {"not \\xff UTF-8.jpg": "file name is not UTF-8"}
WANTED = {
    "name": MISNAMED,
    "read": UNREADABLE,
    "decode": {name: reason for name, (_, reason) in BAD.items()},
}


@dataclass
class Indexed:
    folder: Path
    stats: RunStats
    snapshot: Snapshot


@pytest.fixture(scope="module")
def indexed(model_dir: str, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    folder = tmp_path_factory.mktemp("it's 100% [bad]")
    contents = dict.fromkeys(ODD_NAMES, GOOD) | FINE | {name: bad for name, (bad, _) in BAD.items()}
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    Path(os.fsdecode(os.fsencode(folder) + b"/not \xff UTF-8.jpg")).write_bytes(GOOD)
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "nowhere.jpg").symlink_to("no such file")
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "vanishes.jpg").write_bytes(GOOD)
    process = chain.process_images

    def late(*arguments: Any) -> Iterator[pa.Table]:
        (folder / "vanishes.jpg").unlink()
        yield from process(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "process_images", late)
        index = str(folder.parent / "it's an index [of] bad")
        stats, snapshot = index_images(
            Request(str(folder)), model_dir, index, Execution("cpu", batch_size=8)
        )
    return Indexed(folder, stats, snapshot)


def rows(indexed: Indexed, sql: str) -> list[tuple[Any, ...]]:
    return segrec_batch.connect(indexed.snapshot.index).sql(sql).fetchall()


def test_hostile_files_are_all_counted(indexed: Indexed) -> None:
    good, bad = len(ODD_NAMES) + len(FINE), sum(map(len, WANTED.values()))
    assert (indexed.stats.indexed, indexed.stats.failed) == (good, bad)
    assert indexed.stats.listed == good + bad


def test_odd_names_survive_unchanged(indexed: Indexed) -> None:
    result = {uri for (uri,) in rows(indexed, "SELECT uri FROM images")}
    assert result == {f"{indexed.folder}/{name}" for name in (*ODD_NAMES, *FINE)}


@pytest.mark.parametrize("stage", WANTED)
def test_bad_files_fail_with_a_reason(indexed: Indexed, stage: str) -> None:
    actual = rows(indexed, f"SELECT uri, reason FROM failures WHERE stage = '{stage}'")
    reasons = {uri.removeprefix(f"{indexed.folder}/"): reason for uri, reason in actual}
    expected = WANTED[stage]
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
        assert reasons[name]


def test_second_run_retries_only_unread_files(indexed: Indexed, model_dir: str) -> None:
    assert verify(indexed.snapshot) == []
    again, snapshot = index_images(
        Request(str(indexed.folder)), model_dir, indexed.snapshot.index, Execution("cpu")
    )
    assert (again.unchanged, again.gone) == (indexed.stats.indexed, 1)  # what vanished
    assert again.skipped == len(BAD) + len(MISNAMED)
    assert again.retried == again.failed == len(UNREADABLE) - 1
    assert snapshot.rows("images") == indexed.snapshot.rows("images")


def test_image_with_odd_name_is_queried(indexed: Indexed) -> None:
    connection = segrec_batch.connect(indexed.snapshot.index)
    for name in ODD_NAMES:
        ((image_id,),) = connection.execute(
            "SELECT image_id FROM images WHERE uri = ?", [f"{indexed.folder}/{name}"]
        ).fetchall()
        result = connection.execute(
            "SELECT count(*) FROM recommend(?, k := 5)", [image_id]
        ).fetchall()
        assert result == [(5,)]


@pytest.mark.parametrize("images", ["a\0b", "s3://bucket/a\0b", "", "s3://"])
def test_impossible_folder_is_an_error(images: str, model_dir: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        index_images(Request(images), model_dir, str(tmp_path / "index"), Execution("cpu"))


def test_decoder_crash_fails_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "poison.py").write_text(
        "import os, time\n"
        "from segrec_batch.images.decode import decode as real\n"
        "def decode(data, shapes):\n"
        "    if data == b'crash': os.abort()\n"
        "    if data == b'hang': time.sleep(1000)\n"
        "    return real(data, shapes)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    contents = {"a.jpg": GOOD, "b.jpg": b"crash", "c.jpg": GOOD, "d.jpg": b"hang", "e.jpg": GOOD}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    sources = [
        {"uri": str(tmp_path / name), "source_size": len(content), "source_etag": ""}
        for name, content in contents.items()
    ]
    with sandbox.Sandbox(function="poison:decode", seconds=1) as box:
        monkeypatch.setattr(sandbox, "shared", lambda: box)
        decoded = decode_batch(pa.Table.from_pylist(sources, MANIFEST), ((32, 32),)).to_pylist()
    assert [row["reason"] for row in decoded] == [
        None, "decoder crashed (SIGABRT)", None, "took longer than 1 s", None
    ]  # fmt: skip
    assert [bool(row["pixels"]) for row in decoded] == [True, False, True, False, True]
