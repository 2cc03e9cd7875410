"""Tests of files on local disk, and of the translation of errors."""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import botocore.exceptions
import fsspec
import pytest

from segrec_batch.common.errors import InputError, SegrecError, StorageError
from segrec_batch.sources import storage, store_errors

NAMES = ["a::b.jpg", "100%41.jpg", "s*[a-z]?.jpg", "new\nline.jpg", "~.jpg", "#.jpg", "é 😀.jpg"]


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_under_any_name(tmp_path: Path, name: str) -> None:
    uri = str(tmp_path / "not there yet" / name)
    storage.write_bytes(uri, b"first")
    storage.write_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"second"
    assert storage.read_many([uri, uri], [3, 100]) == [b"sec", b"second"]
    assert storage.absolute(uri) == uri
    assert [file for file, _, _ in storage.find_files(str(tmp_path))] == [uri]
    storage.delete([uri])
    assert not os.path.lexists(uri)


def test_uris_of_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "a.txt")
    for uri in ("a.txt", "./a.txt", expected, f"file://{expected}", "x/../a.txt"):
        assert storage.absolute(uri) == expected
    with pytest.raises(InputError, match="nosuch"):
        storage.absolute("nosuch://bucket/a.txt")


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_failed_write_leaves_only_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = f"""
import resource, signal
from segrec_batch.common.errors import StorageError
from segrec_batch.sources import storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a full disk
try:
    storage.write_bytes({str(path)!r}, bytes(5000))
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: OSError: [Errno 27] File too large\n"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208


def test_devices_are_written_to_and_stay(tmp_path: Path) -> None:
    storage.write_bytes("/dev/null", b"x")
    assert not Path("/dev/null").is_file()
    with pytest.raises(StorageError, match=r"/dev/full: OSError: .*No space left on device"):
        storage.write_bytes("/dev/full", b"x")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        storage.write_bytes(str(pipe), b"through")
        assert read.result(5) == b"through"


def test_writes_that_cannot_be_are_storage_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for uri in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match=rf"{uri}: \w+Error: "):
            storage.write_bytes(str(uri), b"")


def test_concurrent_writers_leave_one_whole_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "a")
    storage.write_bytes(uri, b"0" * 100_000)
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            content = storage.read_bytes(uri)
            assert len(content) == 100_000
            assert len(set(content)) == 1

    with ThreadPoolExecutor() as pool:
        watching = pool.submit(watch)
        list(pool.map(lambda i: storage.write_bytes(uri, b"%d" % (i % 10) * 100_000), range(50)))
        done.set()
        watching.result(10)
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208


def test_read_many_returns_content_or_error_per_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123456")
    uris = [str(tmp_path / name) for name in ("a", "gone", "a", ".", "a/b")]
    contents = storage.read_many(uris, [4, 4, 0, 4, 4])
    assert contents[0::2][:2] == [b"1234", b""]
    assert [type(c) for c in contents] == [
        bytes,
        FileNotFoundError,
        bytes,
        IsADirectoryError,
        NotADirectoryError,
    ]
    assert storage.read_many(uris[:1]) == [b"123456"]
    assert storage.read_many([]) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uris[1])


def test_delete_and_find_files(tmp_path: Path) -> None:
    names = ["a.parquet", "deep/er/b.parquet", "c.json"]
    for name in names:
        storage.write_bytes(str(tmp_path / name), b"12")
    (tmp_path / "circle").symlink_to(".")
    result = sorted(storage.find_files(str(tmp_path), ".parquet"))
    assert [(uri, size) for uri, size, _ in result] == [(str(tmp_path / n), 2) for n in names[:2]]
    for uri, _, modified in result:
        assert modified == Path(uri).stat().st_mtime
    storage.delete([uri for uri, _, _ in result] * 2 + [str(tmp_path / "gone")])
    assert [uri for uri, _, _ in storage.find_files(str(tmp_path))] == [str(tmp_path / "c.json")]
    assert list(storage.find_files(str(tmp_path / "nowhere"), ".parquet")) == []
    with pytest.raises(StorageError, match="deep"):
        storage.delete([str(tmp_path / "deep")])
    storage.delete([])


def test_other_stores(tmp_path: Path) -> None:
    uri = "memory://tests-storage/a.bin"
    storage.write_bytes(uri, b"1234")
    try:
        assert storage.read_many([uri, f"{uri}.gone"], [2, 2])[0] == b"12"
        assert isinstance(storage.read_many([uri, f"{uri}.gone"])[1], FileNotFoundError)
        ((result, size, _),) = storage.find_files("memory://tests-storage", ".bin")
        assert (result, size) == (storage.absolute(uri), 4)
        storage.delete([uri, uri])
        assert list(storage.find_files("memory://tests-storage")) == []
    finally:
        fsspec.filesystem("memory").store.clear()


def from_s3(code: str) -> botocore.exceptions.ClientError:
    return botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "No"}}, "GetObject")


def caused(error: OSError, code: str) -> OSError:
    """As s3fs translates errors."""
    error.__cause__ = from_s3(code)
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError("x"), "PermissionError: x"),
        (TimeoutError("slow"), "TimeoutError: slow"),
        (OSError("Generic S3 error: a\n  b"), "OSError: Generic S3 error: a b"),
        (from_s3("SlowDown"), "ClientError: SlowDown: No"),
        (caused(PermissionError("None"), "ExpiredToken"), "PermissionError: ExpiredToken: No"),
        (caused(FileNotFoundError(), "NoSuchBucket"), "FileNotFoundError: NoSuchBucket: No"),
        (
            botocore.exceptions.NoCredentialsError(),
            "NoCredentialsError: Unable to locate credentials",
        ),
        (aiohttp.ClientPayloadError("cut"), "ClientPayloadError: cut"),
    ],
)
def test_failures_of_a_store_are_storage_errors(error: Exception, text: str) -> None:
    with pytest.raises(StorageError) as caught, store_errors.store_errors("s3://b/k"):
        raise error
    assert str(caught.value) == f"s3://b/k: {text}"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [FileNotFoundError("x"), caused(FileNotFoundError(), "NoSuchKey"), ValueError("bug")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, store_errors.store_errors("s3://b/k"):
        raise error
    assert caught.value is error


def test_credentials_do_not_get_into_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret/+")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t0ken")
    error = OSError("http://me:pass@host:1/b?x=@ refuses s3cret/+ and t0ken; http://host/a@b")
    assert store_errors.describe(error) == (
        "OSError: http://host:1/b?x=@ refuses $AWS_SECRET_ACCESS_KEY and $AWS_SESSION_TOKEN; "
        "http://host/a@b"
    )


def test_storage_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StorageError("s3://b: no")))  # noqa: S301
    assert (type(error), str(error)) == (StorageError, "s3://b: no")
    assert isinstance(error, SegrecError)


def test_a_folder_that_cannot_be_listed_is_not_empty() -> None:
    if os.geteuid():
        pytest.skip("needs root, to become nobody")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "closed").mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(StorageError, match="closed"):
                list(storage.find_files(folder))
            with pytest.raises(StorageError, match="PermissionError"):
                storage.write_bytes(f"{folder}/new", b"")
        finally:
            os.seteuid(0)
