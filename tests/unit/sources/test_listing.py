"""Tests of listings of local images: odd names, odd files, links, memory."""

import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segrec_batch.common.errors import InputError
from segrec_batch.sources import listing
from segrec_batch.sources.listing import SOURCES, FileCounts, iter_images, list_images
from segrec_batch.sources.recognise import EXTENSIONS, JPEG_EXTENSIONS
from tests.support.builders import ODD_NAMES, encoded, smooth_pixels

NOBODY = 65534


def listed(uri: str | Path) -> dict[str, tuple[int, str, str | None]]:
    """URI → (size, etag, problem); every row is there once."""
    rows = pa.Table.from_batches(iter_images(str(uri)), SOURCES).to_pylist()
    result = {r["uri"]: (r["source_size"], r["source_etag"], r["problem"]) for r in rows}
    assert len(result) == len(rows)
    return result


def problems(uri: str | Path) -> dict[str, str | None]:
    """File name → problem."""
    return {u.rpartition("/")[2]: problem for u, (_, _, problem) in listed(uri).items()}


@contextmanager
def unprivileged() -> Iterator[None]:
    """Not root for a while: root may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everyone can reach: pytest's own are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_listing_finds_images_by_extension_with_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.JPG").write_bytes(b"123")
    (tmp_path / "deep" / "notes.txt").write_bytes(b"")
    (tmp_path / "jpg").write_bytes(b"")  # no extension
    (tmp_path / "b.png").write_bytes(b"")
    os.utime(tmp_path / "b.png", ns=(0, 1_700_000_000_123_456_700))
    os.utime(tmp_path / "deep" / "er" / "a.JPG", ns=(0, -1_500_000_000))
    assert listed(tmp_path) == {
        str(tmp_path / "b.png"): (0, "1700000000.123457", None),
        str(tmp_path / "deep" / "er" / "a.JPG"): (3, "-1.500000", None),
    }


def test_one_file_is_a_listing_too(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"1")
    assert [*listed(file)] == [str(file)]
    with pytest.raises(InputError, match=r"no images found \(1 other files"):
        list_images(str(file.rename(tmp_path / "a.txt")))


def test_the_table_is_sorted(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.jpg", "a.jpg", "é.jpg", "B.jpg", "a/b/c.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    table = list_images(str(tmp_path))
    assert table.schema == SOURCES
    assert table["uri"].to_pylist() == sorted(str(tmp_path / name) for name in names)


def test_no_images_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"found \(1 other files: .txt 1; looked for avif, bmp"):
        list_images(str(tmp_path))
    with pytest.raises(InputError, match="no images found"):
        next(iter_images(str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="nosuch"):
        next(iter_images("nosuch://bucket/folder"))


def test_odd_names_are_kept(tmp_path: Path) -> None:
    paths = [tmp_path / "odd\n[1] *" / name for name in ODD_NAMES]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert set(listed(tmp_path)) == {str(path) for path in paths}


name_characters = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))


@settings(max_examples=60, deadline=None)
@given(st.sets(st.text(name_characters, min_size=1, max_size=20), max_size=10), st.data())
def test_any_name_is_listed_once(
    tmp_path_factory: pytest.TempPathFactory, stems: set[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("names")
    extension = data.draw(st.sampled_from([*sorted(EXTENSIONS), "txt"]))
    names = {f"{stem}.{extension}" for stem in stems} | {"always.jpg"}
    for name in names:
        (folder / name).touch()
    expected = {
        str(folder / n)
        for n in names
        if (extension != "txt" and not n.startswith("._")) or n == "always.jpg"
    }
    counts = FileCounts()
    actual = [b["uri"].to_pylist() for b in iter_images(str(folder), counts)]
    assert sorted(uri for uris in actual for uri in uris) == sorted(expected)
    assert counts.total == len(names) == len(expected) + counts.left_out.total()


def test_names_that_are_not_utf8_are_shown_escaped(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path)
    os.mkdir(raw + b"/caf\xe9")  # noqa: PTH102
    for name in (b"/bad\xff.jpg", b"/caf\xe9/in.jpg", b"/good.jpg"):
        with open(raw + name, "wb"):  # noqa: PTH123
            pass
    result = listed(tmp_path)
    assert {uri: problem for uri, (_, _, problem) in result.items()} == {
        f"{tmp_path}/bad\\xff.jpg": "file name is not UTF-8 (shown escaped)",
        f"{tmp_path}/caf\\xe9/in.jpg": "file name is not UTF-8 (shown escaped)",
        f"{tmp_path}/good.jpg": None,
    }


def test_listing_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    (outside / "o.jpg").touch()
    (root / "a" / "1.jpg").touch()
    (root / "a" / "b" / "2.jpg").touch()
    (root / "out").symlink_to(outside)
    (root / "again.jpg").symlink_to(outside)  # the name of an image, but a folder
    (root / "a" / "b" / "up").symlink_to("..")
    (root / "a" / "b" / "root").symlink_to(root)
    (root / "self").symlink_to(".")
    (outside / "back").symlink_to(root)
    result = {uri.removeprefix(f"{root}/") for uri in listed(root)}
    assert result == {"a/1.jpg", "a/b/2.jpg", "out/o.jpg", "again.jpg/o.jpg"}


def test_links_to_images_are_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"123")
    os.utime(tmp_path / "a.jpg", ns=(0, 10**9))
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert listed(tmp_path)[str(tmp_path / "b.jpg")] == (3, "1.000000", None)


def test_broken_links_are_listed_with_their_problem(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    targets = {"gone.jpg": "nowhere", "self.jpg": "self.jpg", "under.jpg": "plain/x"}
    targets |= {"long.jpg": "x" * 300}
    for name, target in targets.items():
        (tmp_path / name).symlink_to(target)
        (tmp_path / name.removesuffix(".jpg")).symlink_to(target.removesuffix(".jpg"))
    assert problems(tmp_path) == {
        "gone.jpg": "broken link: No such file or directory",
        "self.jpg": "broken link: Too many levels of symbolic links",
        "under.jpg": "broken link: Not a directory",
        "long.jpg": "broken link: File name too long",
    }
    size, etag, _ = listed(tmp_path)[str(tmp_path / "gone.jpg")]
    assert size == 0
    assert float(etag) == pytest.approx((tmp_path / "gone.jpg").lstat().st_mtime)


def test_pipes_sockets_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    assert problems(tmp_path) == dict.fromkeys(("pipe.jpg", "null.jpg"), "not a regular file")


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o100], ids=["none", "names only", "no names"])
def test_a_folder_that_cannot_be_read_ends_the_listing(public: Path, mode: int) -> None:
    closed = public / "closed"
    closed.mkdir()
    (public / "a.jpg").touch()
    (closed / "b.jpg").touch()
    if not os.geteuid():
        os.chown(closed, NOBODY, NOBODY)
    closed.chmod(mode)
    try:
        error = r"cannot be listed: PermissionError: .*closed"
        with unprivileged(), pytest.raises(InputError, match=error):
            list_images(str(public))
    finally:
        closed.chmod(0o700)


def test_links_into_a_closed_folder(public: Path) -> None:
    for name in ("closed", "open"):
        (public / name).mkdir()
        (public / name).chmod(0o755)
    (public / "closed" / "a.jpg").touch()
    (public / "open" / "a.jpg").symlink_to(public / "closed" / "a.jpg")
    (public / "closed").chmod(0o700 if not os.geteuid() else 0)
    try:
        with unprivileged():
            assert problems(public / "open") == {"a.jpg": "broken link: Permission denied"}
            with pytest.raises(InputError, match="PermissionError"):  # may be a folder of images
                list_images(str(public / "closed" / "folder"))
    finally:
        (public / "closed").chmod(0o700)


def test_files_that_vanish_meanwhile_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(10):
        (tmp_path / f"{i}.jpg").touch()
        (tmp_path / f"folder{i}").mkdir()
        (tmp_path / f"folder{i}" / "in.jpg").touch()
    monkeypatch.setattr(listing, "BATCH_ROWS", 1)
    batches = iter_images(str(tmp_path))
    kept = next(batches)["uri"][0].as_py()
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        if str(path) != kept and not kept.startswith(f"{path}/"):
            path.rmdir() if path.is_dir() else path.unlink()
    assert list(batches) == []


def test_folder_deleted_during_listing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.jpg").touch()
    monkeypatch.setattr(listing, "BATCH_ROWS", 1)
    batches = iter_images(str(root))
    next(batches)
    root.rename(tmp_path / "away")
    with pytest.raises(InputError, match="cannot be listed: FileNotFoundError"):
        list(batches)


def test_every_file_is_listed_or_counted_by_its_kind(tmp_path: Path) -> None:
    left_out = {
        ".heic": ["a.heic", "B.HEIC"], ".txt": ["notes.txt"], "._*": ["._a.jpg", "._folder"],
        "Thumbs.db": ["Thumbs.db", "thumbs.db"], ".DS_Store": [".DS_Store"], "*~": ["a.jpg~"],
        ".*": [".a.jpg.Xa3b2c", ".nfs000000000001"], ".part": ["a.jpg.part"],
        "no extension": ["LICENSE", "empty", "scan.2018", "nothing", "pipe"],
    }  # fmt: skip
    for name in (name for names in left_out.values() for name in names):
        (tmp_path / name).write_bytes(b"Mary had a little lamb, and BM was her name")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "nothing").unlink()
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "pipe").unlink()
    os.mkfifo(tmp_path / "pipe")
    images = {f"a.{e}" for e in JPEG_EXTENSIONS} | {"b.JFIF", "0f3a9c", "scan.2019", "c.avif"}
    for name in images:
        (tmp_path / name).write_bytes(encoded(smooth_pixels(8, 8), "JPEG"))
    counts = FileCounts()
    result = pa.Table.from_batches(iter_images(str(tmp_path), counts), SOURCES)
    assert {Path(uri).name for uri in result["uri"].to_pylist()} == images
    assert dict(counts.left_out) == {kind: len(names) for kind, names in left_out.items()}
    assert counts.total == len(list(tmp_path.iterdir()))


def test_kinds_are_bounded() -> None:
    counts = FileCounts()
    for i in range(3000):
        counts.leave_out(f".x{i}")
    assert len(counts.left_out) <= 1001
    assert counts.left_out.total() == 3000


def test_batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(10):
        (tmp_path / f"{i}.jpg").touch()
    monkeypatch.setattr(listing, "BATCH_ROWS", 4)
    assert [b.num_rows for b in iter_images(str(tmp_path))] == [4, 4, 2]
    monkeypatch.setattr(listing, "BATCH_ROWS", 5)
    assert [b.num_rows for b in iter_images(str(tmp_path))] == [5, 5]


def peak(uri: Path) -> tuple[int, int]:
    """Images under `uri`, and bytes of Python and Arrow at most held while listing them."""
    pool = pa.default_memory_pool()
    arrow, start = 0, pool.bytes_allocated()
    tracemalloc.start()
    count = 0
    for batch in iter_images(str(uri)):
        count += batch.num_rows
        arrow = max(arrow, pool.bytes_allocated() - start)
        del batch
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return count, python + arrow


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "BATCH_ROWS", 2_000)
    peaks = {}
    for count, folders in ((4_000, 2), (100_000, 10)):
        root = tmp_path / str(count)
        for f in range(folders):
            folder = root / f"{f:04}"
            folder.mkdir(parents=True)
            (folder / "000000.jpg").touch()
            for i in range(1, count // folders):  # links cost less than files
                os.link(folder / "000000.jpg", folder / f"{i:06}.jpg")
        result, peaks[count] = peak(root)
        assert result == count
    assert peaks[100_000] < 1.3 * peaks[4_000] < 8e6


def test_other_stores_can_be_listed() -> None:
    fs = fsspec.filesystem("memory")
    for path in ("/tests-listing/a.jpg", "/tests-listing/b/c.png", "/tests-listing/d.txt"):
        fs.pipe_file(path, b"12")
    try:
        result = listed("memory://tests-listing")
        assert sorted(result) == [
            "memory:///tests-listing/a.jpg",
            "memory:///tests-listing/b/c.png",
        ]
        assert {size for size, _, _ in result.values()} == {2}
        assert [*listed("memory://tests-listing/a.jpg")] == ["memory:///tests-listing/a.jpg"]
        with pytest.raises(InputError, match="no images found"):
            list_images("memory://tests-nowhere")
    finally:
        fs.rm("/tests-listing", recursive=True)
