"""Tests of storage and listing on a real S3 server: odd keys, credentials, failing stores."""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pytest

from segrec_batch.common.errors import InputError, StorageError
from segrec_batch.sources import storage
from segrec_batch.sources.listing import SOURCES, iter_images, list_images
from tests.support.builders import ODD_NAMES
from tests.support.s3 import FaultyProxy, environment, new_bucket, put

pytestmark = [pytest.mark.usefixtures("s3"), pytest.mark.slow]

NO_FILE_NAMES = ["/leading.jpg", "two//slashes.jpg", "dots/../up.jpg", "./here.jpg"]


def listed(uri: str) -> dict[str, dict[str, Any]]:
    """URI → row; every row is there once."""
    table = pa.Table.from_batches(iter_images(uri), SOURCES)
    result = {row["uri"]: row for row in table.to_pylist()}
    assert len(result) == table.num_rows
    return result


def fails(what: Callable[[], Any], error: type[Exception]) -> tuple[str, float]:
    """The message of the error that `what` raises, and the seconds that it took."""
    start = time.monotonic()
    with pytest.raises(error) as caught:
        what()
    return str(caught.value), time.monotonic() - start


@pytest.fixture(scope="module")
def bucket(s3: dict[str, str]) -> str:
    """A bucket with one image, `a.jpg`."""
    uri = new_bucket()
    put({f"{uri}/a.jpg": b"image"})
    return uri


def test_thousands_of_keys_come_page_by_page(s3: dict[str, str]) -> None:
    bucket = new_bucket()
    contents = {f"{bucket}/images/{i % 7}/{i:05}.jpg": b"%d" % i for i in range(2_000)}
    put(contents)
    put({f"{bucket}/images/notes.txt": b"", f"{bucket}/images2/b.jpg": b""})
    with FaultyProxy(s3["AWS_ENDPOINT_URL"]) as proxy, environment(**proxy.env):
        assert set(listed(f"{bucket}/images/")) == set(contents)
        assert proxy.requests == {"GET": 3}
        uris = list(contents)[:500]
        assert storage.read_many(uris, [9] * 500) == [contents[uri] for uri in uris]
        assert proxy.requests == {"GET": 503}
        result = {uri for uri, _, _ in storage.find_files(f"{bucket}/images", ".jpg")}
        assert result == set(contents)
        storage.delete([*uris, *(f"{bucket}/images/not-there-{i}.jpg" for i in range(600))])
        assert proxy.requests["POST"] == 2
    kept = {uri for uri, _, _ in storage.find_files(bucket)}
    others = {f"{bucket}/images/notes.txt", f"{bucket}/images2/b.jpg"}
    assert kept == set(contents) - set(uris) | others


def test_odd_keys_are_listed_read_and_deleted() -> None:
    bucket = new_bucket()
    fs, _ = storage.filesystem(bucket)
    uris = [f"{bucket}/odd *[1]/{key}" for key in ODD_NAMES + NO_FILE_NAMES]
    for uri in uris:
        storage.write_bytes(uri, uri.encode())
    rows = listed(f"{bucket}/odd *[1]")
    assert set(rows) == set(uris)
    assert {row["problem"] for row in rows.values()} == {None}
    assert storage.read_many(uris, [1000] * len(uris)) == [uri.encode() for uri in uris]
    assert [storage.read_bytes(uri) for uri in uris] == [uri.encode() for uri in uris]
    storage.delete([uri for uri in uris if "\x01" not in uri])  # XML cannot say that one
    assert len(list(storage.find_files(bucket))) == 1
    fs.call_s3("put_object", Bucket=bucket.removeprefix("s3://"), Key="v?versionId=1.jpg", Body=b"")
    assert "versionId" in listed(bucket)[f"{bucket}/v?versionId=1.jpg"]["problem"]


def test_a_folder_is_not_its_neighbours() -> None:
    bucket = new_bucket()
    keys = ["images/a.jpg", "images2/b.jpg", "images.jpg", "images-old/c.jpg", "d.jpg"]
    put({f"{bucket}/{key}": key.encode() for key in keys})
    storage.filesystem(bucket)[0].call_s3(
        "put_object", Bucket=bucket.removeprefix("s3://"), Key="images/x.jpg/", Body=b""
    )  # a directory marker
    assert list(listed(f"{bucket}/images")) == [f"{bucket}/images/a.jpg"]
    assert list(listed(f"{bucket}/images/")) == [f"{bucket}/images/a.jpg"]
    assert list(listed(f"{bucket}/images.jpg")) == [f"{bucket}/images.jpg"]
    assert list(listed(f"s3a://{bucket[5:]}/images.jpg")) == [f"{bucket}/images.jpg"]
    assert set(listed(bucket)) == {f"{bucket}/{key}" for key in keys}
    with pytest.raises(InputError, match="no images found"):
        list_images(f"{bucket}/image")
    with pytest.raises(InputError, match="no images found"):
        list_images(f"{bucket}/images/x.jpg")


def test_etag_and_size_are_those_of_the_store(bucket: str) -> None:
    (row,) = listed(f"{bucket}/a.jpg").values()
    assert row["source_etag"] == hashlib.md5(b"image").hexdigest()  # noqa: S324
    assert row["source_size"] == len(b"image")
    ((_, size, modified),) = storage.find_files(bucket, "a.jpg")
    assert size == len(b"image")
    assert abs(time.time() - modified) < 3600


def test_large_files_go_in_parts(s3: dict[str, str]) -> None:
    uri = f"{new_bucket()}/large.bin"
    data = random.Random(0).randbytes(60 * 2**20)  # noqa: S311
    with FaultyProxy(s3["AWS_ENDPOINT_URL"]) as proxy, environment(**proxy.env):
        proxy.fault("slow_down", every=3, method="PUT")
        proxy.fault("drop", every=2, method="GET")
        storage.write_bytes(uri, data)
        assert proxy.requests["PUT"] > 4  # parts of 16 MiB, one of them again
        assert storage.read_bytes(uri) == data
        assert storage.read_many([uri], [5]) == [data[:5]]
        assert proxy.faults["slow_down"] == proxy.faults["drop"] == 1


def test_objects_that_changed_since_they_were_listed(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/grown", b"123456")
    storage.write_bytes(f"{bucket}/emptied", b"")
    uris = [f"{bucket}/{name}" for name in ("grown", "emptied", "gone", "grown", "grown")]
    grown, emptied, gone, none, shrunk = storage.read_many(uris, [4, 4, 4, 0, 100])
    assert (grown, emptied, none, shrunk) == (b"1234", b"", b"", b"123456")
    assert isinstance(gone, FileNotFoundError)
    assert "NoSuchKey" in str(gone)
    assert storage.read_bytes(uris[1]) == b""
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uris[2])


def test_forbidden_object_is_error_of_that_object() -> None:
    bucket = new_bucket()
    put({f"{bucket}/open.jpg": b"1", f"{bucket}/closed.jpg": b"2"})
    rule = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:PutObject"],
        "Resource": f"arn:aws:s3:::{bucket.removeprefix('s3://')}/closed.jpg",
    }
    storage.filesystem(bucket)[0].call_s3(
        "put_bucket_policy",
        Bucket=bucket.removeprefix("s3://"),
        Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}),
    )
    opened, closed = storage.read_many([f"{bucket}/open.jpg", f"{bucket}/closed.jpg"], [9, 9])
    assert opened == b"1"
    assert isinstance(closed, PermissionError)
    assert "AccessDenied" in str(closed)
    with pytest.raises(StorageError, match=r"closed.jpg: PermissionError: AccessDenied"):
        storage.write_bytes(f"{bucket}/closed.jpg", b"3")
    assert len(listed(bucket)) == 2


WRONG: dict[str, tuple[dict[str, str | None], str]] = {
    "secret": ({"AWS_SECRET_ACCESS_KEY": "wr0ng-s3cret"}, "SignatureDoesNotMatch"),
    "key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId"),
    "none": (
        {
            "AWS_ACCESS_KEY_ID": None,
            "AWS_SECRET_ACCESS_KEY": None,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
        },
        "NoCredentialsError",
    ),
    "address": ({"AWS_ENDPOINT_URL": "127.0.0.1:1"}, "Invalid endpoint"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_credentials_are_the_stores_problem(bucket: str, wrong: str) -> None:
    changes, code = WRONG[wrong]
    image = f"{bucket}/a.jpg"
    with environment(**changes):
        message, _ = fails(lambda: list_images(bucket), InputError)
        assert message.startswith(f"{bucket} cannot be listed: ")
        assert message.endswith("; check the name and AWS_*")
        messages = [message]
        for what in (
            lambda: storage.read_many([image], [9]),
            lambda: storage.read_bytes(image),
            lambda: storage.write_bytes(image, b""),
            lambda: storage.delete([image]),
            lambda: list(storage.find_files(bucket)),
        ):
            message, _ = fails(what, StorageError)
            assert message.startswith(bucket)
            messages.append(message)
    for message in messages:
        assert code in message
        assert "s3cret" not in message
        assert "\n" not in message


def test_a_missing_bucket_is_not_a_missing_image() -> None:
    uri = "s3://no-such-bucket/a.jpg"
    assert "NoSuchBucket" in fails(lambda: list_images("s3://no-such-bucket"), InputError)[0]
    for what in (
        lambda: storage.read_many([uri], [9]),
        lambda: storage.read_many([uri]),
        lambda: storage.write_bytes(uri, b""),
        lambda: storage.delete([uri]),
        lambda: list(storage.find_files("s3://no-such-bucket")),
    ):
        assert "NoSuchBucket" in fails(what, StorageError)[0]
    assert "bucket" in fails(lambda: list_images("s3://"), InputError)[0]
    assert "bucket" in fails(lambda: list_images("s3://not a name"), InputError)[0]


def test_faults_that_pass_are_not_seen(s3: dict[str, str]) -> None:
    bucket = new_bucket()
    contents = {f"{bucket}/{i}.jpg": b"%d" % i * 1000 for i in range(60)}
    put(contents)
    with FaultyProxy(s3["AWS_ENDPOINT_URL"]) as proxy, environment(**proxy.env):
        for kind in ("slow_down", "error", "drop"):
            proxy.fault(kind, probability=0.1)
        proxy.fault("delay", every=20, seconds=0.3)
        assert set(listed(bucket)) == set(contents)
        assert storage.read_many([*contents], [5000] * 60) == [*contents.values()]
        for i in range(5):
            storage.write_bytes(f"{bucket}/new/{i}", b"new")
        assert len(list(storage.find_files(f"{bucket}/new"))) == 5
        storage.delete([f"{bucket}/new/{i}" for i in range(5)])
        assert list(storage.find_files(f"{bucket}/new")) == []
        assert min(proxy.faults[k] for k in ("slow_down", "error", "drop", "delay")) > 0


def test_faults_that_stay_end_in_storage_errors(s3: dict[str, str], bucket: str) -> None:
    faults = {"drop": "payload is not completed", "error": "InternalError: on order"}
    put({f"{bucket}/{kind}.jpg": b"image" for kind in faults})
    with FaultyProxy(s3["AWS_ENDPOINT_URL"]) as proxy, environment(**proxy.env):
        for kind, text in faults.items():
            proxy.fault(kind, probability=1, path=f"{kind}.jpg")
            uris = [f"{bucket}/a.jpg", f"{bucket}/{kind}.jpg"]
            message, seconds = fails(partial(storage.read_many, uris, [9, 9]), StorageError)
            assert message.startswith(uris[1])
            assert text in message
            assert seconds < 17


def test_dead_store_is_reported_in_time_and_used_again(s3: dict[str, str], bucket: str) -> None:
    uri = f"{bucket}/a.jpg"
    with FaultyProxy(s3["AWS_ENDPOINT_URL"]) as proxy, environment(**proxy.env):
        assert storage.read_bytes(uri) == b"image"
        proxy.kill()
        attempts: list[tuple[Callable[[], Any], type[Exception]]] = [
            (lambda: list_images(bucket), InputError),
            (lambda: storage.read_many([uri] * 4, [9] * 4), StorageError),
            (lambda: storage.write_bytes(uri, b"x"), StorageError),
            (lambda: storage.delete([uri]), StorageError),
        ]
        with ThreadPoolExecutor(len(attempts)) as pool:
            for message, seconds in pool.map(lambda attempt: fails(*attempt), attempts):
                assert "EndpointConnectionError" in message
                assert seconds < 17
        proxy.revive()
        assert storage.read_bytes(uri) == b"image"


def test_a_short_outage_is_waited_for(s3: dict[str, str], bucket: str) -> None:
    uris = [f"{bucket}/a.jpg"] * 64
    with FaultyProxy(s3["AWS_ENDPOINT_URL"]) as proxy, environment(**proxy.env):
        proxy.kill()
        with ThreadPoolExecutor() as pool:
            contents = pool.submit(storage.read_many, uris, [9] * 64)
            time.sleep(0.5)
            proxy.revive()
            assert contents.result() == [b"image"] * 64
