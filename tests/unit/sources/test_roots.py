"""Tests of roots: images of an index are fetched only from below its roots."""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segrec_batch.cli import main as cli
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.index import delta
from segrec_batch.index import snapshot as store
from segrec_batch.index.history import choose_roots
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import dry_run
from segrec_batch.search.filters import Filters
from segrec_batch.search.recommend import QueryImage, Recommendation, Results
from segrec_batch.sheets.card import Card
from segrec_batch.sources.roots import (
    MAX_IMAGE_BYTES,
    ImageRoots,
    OutsideRootsError,
    fetch_images,
    parse_roots,
)
from tests.support.builders import encoded, smooth_pixels
from tests.support.feature_index import SPEC, image_files, write_index

FEATURES = np.random.default_rng(0).random((8, 512), np.float32)


@contextmanager
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback, and what it was asked for."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", requests
        finally:
            http.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("root", "uri", "is_admitted"),
    [
        ("/data/images", "/data/images/a.jpg", True),
        ("/data/images", "/data/images/sub/a b.jpg", True),
        ("/data/images", "file:///data/images/a.jpg", True),
        ("/data/images", "/data/images/../images/a.jpg", True),
        ("/data/images", "/data/images/../secret.jpg", False),
        ("/data/images", "/data/images2/a.jpg", False),
        ("/data/images", "/etc/shadow", False),
        ("/data/images", "/dev/zero", False),
        ("/data/images", "http://169.254.169.254/data/images/a.jpg", False),
        ("/data/images", "s3://data/images/a.jpg", False),
        ("/data/images", "simplecache::file:///data/images/a.jpg", False),
        ("/data/images", "/data/images/a\0.jpg", False),
        ("/data/images/a.jpg", "/data/images/a.jpg", True),
        ("/", "/etc/passwd", True),
        ("s3://bucket/images", "s3://bucket/images/a.jpg", True),
        ("s3://bucket/images", "s3a://bucket/images/a.jpg", True),
        ("s3://bucket/images", "s3://bucket/images/../secret", False),
        ("s3://bucket/images", "s3://bucket/secret", False),
        ("s3://bucket/images", "s3://other/images/a.jpg", False),
        ("s3://bucket/images", "/bucket/images/a.jpg", False),
    ],
)
def test_what_lies_below_a_root(root: str, uri: str, is_admitted: bool) -> None:
    assert ImageRoots.of([root]).admits(uri) == is_admitted
    assert not ImageRoots(()).admits(uri)


@given(st.text(max_size=60) | st.text("./a:", max_size=30))
@settings(deadline=None, max_examples=300, derandomize=True)
def test_no_text_leads_out_of_a_root(tail: str) -> None:
    for uri in (tail, f"/data/{tail}", f"file://{tail}"):
        if ImageRoots(("/data",)).admits(uri):
            place = os.path.normpath(uri.removeprefix("file://"))
            assert Path(os.path.abspath(place)).is_relative_to("/data")  # noqa: PTH100


def test_images_are_read_as_files_of_a_bounded_size(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with server() as (http, requests):
        names = ("a", "link", "pipe", "zero", "large", "gone")
        uris = [*(str(tmp_path / f"{name}.jpg") for name in names), f"{http}/a.jpg", "/etc/passwd"]
        result = fetch_images(uris, ImageRoots((str(tmp_path),)))
    assert not requests
    assert result[:2] == [b"image", b"image"]
    assert "not a regular file" in str(result[2])
    assert "not a regular file" in str(result[3])
    assert str(result[4]).endswith("more than 268,435,456 bytes")
    assert isinstance(result[5], FileNotFoundError)
    assert [isinstance(f, OutsideRootsError) for f in result] == [False] * 6 + [True] * 2


@pytest.mark.parametrize(
    "values",
    [
        None,
        "x",
        [1],
        [""],
        ["http://a/b"],
        ["ftp://a"],
        ["zip::s3://a"],
        ["a\0"],
        ["zip://x/a.jpg::http://a/b.zip"],
        ["gs://a/b::http://c"],
        ["jupyter://a"],
        ["/a"] * 1001,
    ],
)
def test_roots_that_nobody_indexes_from_are_refused(values: object) -> None:
    with pytest.raises(ValueError, match=r"root"):
        parse_roots(values)


@pytest.mark.parametrize(
    "uri",
    ["zip://x/a.jpg::http://a/b.zip", "gs://b/i/a::http://c", "s3://KEY:hunter2@b/i/a", "s3://b/"],
)
def test_rows_of_no_root_are_neither_opened_nor_an_error(uri: str) -> None:
    roots = ImageRoots(("zip://x/a.jpg::http://a/b.zip", "gs://b/i", "s3://b/i"))
    assert not roots.admits(uri)
    assert isinstance(fetch_images([uri], roots)[0], OutsideRootsError)


@pytest.mark.parametrize("uri", ["/data/a::b", "s3://b/i/x://y@z.jpg", "s3://b/i/a::b.jpg"])
def test_odd_names_below_a_root_are_fetched(uri: str) -> None:
    assert ImageRoots(("/data", "s3://b/i")).admits(uri)


@pytest.mark.parametrize("images", ["http://host/images", "zip://x::s3://b/a.zip"])
def test_index_rejects_roots_that_log_cannot_store(images: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="local folders and object stores"):
        list(dry_run(Request(images), str(tmp_path / "model"), str(tmp_path / "index")))


def test_roots_are_kept_without_those_below_others() -> None:
    roots = ImageRoots(()).extend(["/a/b", "s3://c/d"]).extend(["/a", "/a"])
    assert roots.uris == ("s3://c/d", "/a")
    many = ImageRoots(()).extend(f"/{i}" for i in range(1001))
    assert (len(many.uris), many.uris[-1]) == (1000, "/1000")


def _commit(base: store.Snapshot, name: str, root: str | None) -> store.Snapshot:
    files = image_files(base.index, [f"/x/{name}.jpg"], FEATURES[:1])
    return store.commit(base, files, info={"segrec": {"images_root": root}} if root else None)


def test_an_index_remembers_what_it_was_made_from(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    snapshot = write_index(index, FEATURES)
    assert choose_roots(index).uris == ()
    snapshot = _commit(_commit(snapshot, "1", "/one"), "2", "s3://two/x")
    assert choose_roots(index).uris == ("/one", "s3://two/x")
    snapshot = _commit(snapshot, "3", None)  # as compaction does
    assert choose_roots(index).uris == ("/one", "s3://two/x")
    assert choose_roots(index, ["/three", "/three/"]).uris == ("/three",)
    assert choose_roots(str(tmp_path / "gone")).uris == ()
    with server() as (http, requests):
        assert choose_roots(f"{http}/index").uris == ()
    assert not requests
    with pytest.raises(InputError, match="empty"):
        choose_roots(index, [""])


def test_roots_in_a_forged_log_are_refused(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    snapshot = _commit(write_index(index, FEATURES), "1", "/one")
    log = tmp_path / "index/images/_delta_log" / f"{snapshot.version:020}.json"
    log.write_text(log.read_text().replace('"/one"', '"http://one"'))
    assert delta.read_last_commit(delta.open_table(index, "images"))["segrec"] is not None
    with pytest.raises(IndexStateError, match="'http://one' is no root of images"):
        choose_roots(index)
    with pytest.raises(IndexStateError, match="'http://one' is no root of images"):
        _commit(snapshot, "2", "/two")


def test_cards_say_what_was_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    with server() as (http, requests):
        result = [
            Recommendation(i, "x", uri, 0.5, 0.5, None, {}, b"")
            for i, uri in enumerate([str(tmp_path / "gone.png"), f"{http}/b.png", "/dev/zero"], 1)
        ]
        query = QueryImage(Card(str(tmp_path / "a.png"), None, b"", {}, None), "x")
        shown = Results(query, Filters(), result).cards(ImageRoots((str(tmp_path),)))
    assert not requests
    assert [card.image for card in shown] == [b"a", None, None, None]
    assert [card.is_withheld for card in shown] == [False, False, True, True]


def test_backfill_reads_images_below_roots(tmp_path: Path) -> None:
    from segrec_batch.descriptors.inputs import StoredImage, read_pixels
    from segrec_batch.model.segmented_image import SegmentedImage

    content = encoded(smooth_pixels(32, 32), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    content_hash = hashlib.blake2b(content, digest_size=16).hexdigest()
    with server() as (http, requests):
        uris = [str(tmp_path / "a.png"), f"{http}/a.png", "/dev/zero", str(tmp_path / "b.png")]
        zeros = np.zeros((1, 1), np.uint8)
        image = SegmentedImage(zeros, np.ones(1, np.int64), np.ones(1), np.ones((1, 1)), zeros)
        stored = [StoredImage(uri, uri, content_hash, image) for uri in uris]
        rows = read_pixels(stored, [(32, 32)], ImageRoots((str(tmp_path),)))
    assert not requests
    assert rows[0].image.pixels is not None
    assert rows[0].image.pixels.shape == (32, 32, 3)
    outside = "read: the image lies below no folder that the index was made from"
    assert [row.reason for row in rows[:3]] == [None, outside, outside]
    assert str(rows[3].reason).startswith("read: FileNotFoundError")


@pytest.mark.parametrize("mask", [b"", b"%!PS-Adobe-3.0 EPSF-3.0", b"\x89PNG\r\n\x1a\n", "size"])
def test_a_stored_mask_that_is_none_is_refused(mask: bytes | str) -> None:
    from segrec_batch.descriptors.inputs import stored_images

    if isinstance(mask, str):
        mask = encoded(np.zeros((4, 4), np.uint8), "PNG")
    image = {"image_id": "a", "uri": "/a.png", "mask": mask, "mask_grid": b"\0"}
    image |= {"grid_h": 1, "grid_w": 1, "content_hash": "0"}
    images = pa.Table.from_pylist([{**image, "width": 8, "height": 8, "feature": [0.5]}])
    with pytest.raises(IndexStateError, match=r"/a\.png: its mask in the index is damaged"):
        stored_images(images, {}, SPEC)


def test_sheet_of_index_without_roots_names_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, images = str(tmp_path / "index"), tmp_path / "images"
    images.mkdir()
    uris = [str(images / f"{i}.png") for i in range(3)]
    for i, uri in enumerate(uris):
        Path(uri).write_bytes(encoded(smooth_pixels(32, 32, i), "PNG"))
    empty = write_index(index, FEATURES[:0])
    store.commit(empty, image_files(index, uris, FEATURES[:3]))
    page = tmp_path / "sheet.html"
    command = ["query", "--index", index, "--uri", uris[0], "--format", "html", "-k", "2"]
    command += ["--output", str(page)]
    assert cli.main(command) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "3 of 3 images are not fetched, e.g. " + uris[0] in error
    assert "--images-root URI" in error
    assert page.read_text().count("image not fetched") >= 3
    assert "data:image/jpeg" not in page.read_text()
    assert cli.main([*command, "--images-root", str(images)]) == 0
    assert "not fetched" not in capsys.readouterr().err
    assert page.read_text().count("data:image/jpeg") == 3


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_a_new_image_is_a_regular_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "index")
    write_index(index, FEATURES)
    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["query", "--index", index, "--image", str(tmp_path / name)]) == 1
    assert "not a regular file" in capsys.readouterr().err
