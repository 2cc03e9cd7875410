"""Tests of the policies of cluster/: well formed, exact, sufficient."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import botocore.session
import pytest
from moto.iam.exceptions import MalformedPolicyDocument
from moto.iam.policy_validation import IAMPolicyDocumentValidator

import segrec_batch
from segrec_batch.common.errors import StorageError
from segrec_batch.sources import storage
from tests.support.builders import encoded, smooth_pixels, tiny_model
from tests.support.cluster_files import Document, broken, load
from tests.support.job_server import Done, JobServer
from tests.support.s3 import environment, new_bucket, new_user, put
from tests.support.s3_policies import NAMED, NIGHTLY, READ, Recorder, bucket_policy, grants, listed

LISTING = "s3:ListBucket"  # ListObjectsV2; other actions have the names of the API's operations
WRITING = {"s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}


def check(policy: Document) -> None:
    """Raise AssertionError, or moto's error, for a policy that IAM or our rules refuse."""
    IAMPolicyDocumentValidator(json.dumps(policy)).validate()
    known = botocore.session.get_session().get_service_model("s3").operation_names
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        actions, resources = set(listed(statement["Action"])), listed(statement["Resource"])
        assert actions <= {LISTING, *(f"s3:{name}" for name in known)}
        of_bucket = actions == {LISTING}
        pattern = f"arn:aws:s3:::{NAMED}" + ("" if of_bucket else r"/\w+/\*")
        assert all(re.fullmatch(pattern, resource) for resource in resources)
        # Ceph answers 403, not 404, where an object is missing and a condition needs a prefix
        assert of_bucket == (statement.get("Condition", {}).keys() == {"StringLikeIfExists"})


@pytest.mark.parametrize("name", [NIGHTLY, READ])
def test_policy_is_well_formed(name: str) -> None:
    check(load(name))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Version", "2012-10-18"),
        ("Statement/0/Effect", "Permit"),
        ("Statement/1/Sid", "List"),
        ("Statement/1/Action", "s3:GetObjects"),
        ("Statement/1/Action", "s3:*"),
        ("Statement/1/Action", LISTING),
        ("Statement/1/Resource", "*"),
        ("Statement/1/Resource", f"arn:aws:s3:::{NAMED}/*"),
        ("Statement/1/Resource", f"arn:aws:s3:::{NAMED}/images"),
        ("Statement/0/Condition", {"StringLike": {"s3:prefix": "index/*"}}),
        ("Statement/0/Condition", {"StringLikes": {"s3:prefix": "index/*"}}),
    ],
)
def test_broken_policy_is_found(path: str, value: object) -> None:
    with pytest.raises((AssertionError, MalformedPolicyDocument)):
        check(broken(load(NIGHTLY), path, value))


def test_policies_protect_images_and_reports() -> None:
    nightly, read = grants(load(NIGHTLY)), grants(load(READ))
    written = {folder for action, folder in nightly if action in WRITING}
    assert written == {"index", "reports"}
    assert {folder for action, folder in nightly if action == "s3:DeleteObject"} == {"index"}
    assert not WRITING & {action for action, _ in read}
    config = load("k8s/config.yaml")["data"]
    uris = {config[f"SEGREC_{name}"] for name in ("IMAGES", "INDEX", "REPORTS")}
    assert uris == {f"s3://{NAMED}/{folder}" for _, folder in nightly} - {f"s3://{NAMED}/model"}


@dataclass
class Bench:
    """Jobs with the rights of the nightly job, a reader, and a bucket that neither of them owns."""

    jobs: JobServer
    proxy: Recorder
    bucket: str
    nightly: dict[str, str]
    reader: dict[str, str]

    def index(self, env: dict[str, str] | None = None, expect: int = 0, name: str = "index") -> str:
        return self.run(
            "jobs/index.py", "--images", f"{self.bucket}/images", "--model", f"{self.bucket}/model",
            "--index", f"{self.bucket}/{name}", "--device", "cpu", env=env, expect=expect,
        )  # fmt: skip

    def maintain(self, *command: object, env: dict[str, str] | None = None, expect: int = 0) -> str:
        given = ("--index", f"{self.bucket}/index", *command)
        return self.run("jobs/maintain.py", *given, env=env, expect=expect)

    def run(self, *command: object, env: dict[str, str] | None = None, expect: int = 0) -> str:
        """Return the output of a command, or the error of one that fails."""
        done: Done = self.jobs.run(*command, env=env)
        assert done.code == expect, done.err
        assert "Traceback" not in done.err
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (expect != 0)
        return errors[0] if errors else done.out

    @contextmanager
    def as_(self, user: dict[str, str]) -> Iterator[None]:
        with environment(**self.proxy.env, **user):
            yield


def image(seed: int) -> bytes:
    return encoded(smooth_pixels(48, 80, seed), "JPEG")


@pytest.fixture(scope="module")
def bench(s3: dict[str, str]) -> Iterator[Bench]:
    bucket = new_bucket()
    name = bucket.removeprefix("s3://")
    tiny_model().save(f"{bucket}/model")
    put({f"{bucket}/images/{i}.jpg": image(i) for i in range(4)})
    put({f"{bucket}/secret/1.jpg": b"", f"{bucket}/reports/old": b""})
    users = {f"nightly-{name}": load(NIGHTLY), f"reader-{name}": load(READ)}
    nightly, reader = (new_user(user) for user in users)
    set_policy(bucket, users)
    with (
        Recorder(s3["AWS_ENDPOINT_URL"]) as proxy,
        JobServer(**proxy.env, **nightly) as jobs,
    ):
        yield Bench(jobs, proxy, bucket, nightly, reader)


def set_policy(bucket: str, users: dict[str, Document]) -> None:
    fs, name = storage.filesystem(bucket)
    fs.call_s3("put_bucket_policy", Bucket=name, Policy=bucket_policy(name, users))


@pytest.mark.slow
def test_policies_are_exact(bench: Bench) -> None:
    """The life of an index; then every request was granted, and every grant was requested."""
    bench.proxy.requested.clear()
    bench.index()
    storage.delete([f"{bench.bucket}/images/0.jpg"])
    put({f"{bench.bucket}/images/{i}.jpg": image(9 + i) for i in (1, 5)})
    bench.index()
    drift = ("--index", f"{bench.bucket}/index", "--report", f"{bench.bucket}/reports/1")
    bench.run("jobs/evaluate.py", "drift", *drift)
    assert " files became " in bench.maintain("compact")
    assert "deleted" in bench.maintain("vacuum", "--retention-hours", 0, "--force")
    assert "is well" in bench.maintain("verify")
    with bench.as_(bench.nightly):
        for folder in ("index", "reports"):  # a multipart upload that fails is taken back
            upload = {"Bucket": bench.bucket.removeprefix("s3://"), "Key": f"{folder}/half"}
            fs, _ = storage.filesystem(bench.bucket)
            begun = fs.call_s3("create_multipart_upload", **upload)
            fs.call_s3("abort_multipart_upload", UploadId=begun["UploadId"], **upload)
    assert bench.proxy.requested == grants(load(NIGHTLY))

    bench.proxy.requested.clear()
    ask = ("--index", f"{bench.bucket}/index", "--uri", f"{bench.bucket}/images/1.jpg")
    sheet = bench.run(
        "segrec_batch/cli/main.py", "query", *ask, "--format", "html", env=bench.reader
    )
    assert "not readable" not in sheet
    with bench.as_(bench.reader):
        assert storage.read_bytes(f"{bench.bucket}/reports/1/report.html")
    assert bench.proxy.requested == grants(load(READ))


@pytest.mark.slow
def test_other_calls_are_refused(bench: Bench) -> None:
    other, refused = new_bucket(), "(PermissionError|not deleted): AccessDenied"
    put({f"{other}/index/1.jpg": b""})
    own = {folder: f"{bench.bucket}/{folder}" for folder in ("images", "model", "index", "reports")}
    attempts: dict[Callable[[str], object], list[str]] = {
        lambda uri: storage.write_bytes(uri, b""): [own["images"], own["model"], other],
        lambda uri: storage.delete([uri]): [own["images"], own["model"], own["reports"], other],
        lambda uri: list(storage.find_files(uri.rpartition("/")[0])): [
            own["model"], f"{bench.bucket}/secret", f"{other}/index",
        ],
    }  # fmt: skip
    with bench.as_(bench.nightly):
        for attempt, places in attempts.items():
            for place in places:
                with pytest.raises(StorageError, match=refused):
                    attempt(f"{place}/1.jpg")
        for place in (f"{bench.bucket}/secret", f"{other}/index"):
            with pytest.raises(PermissionError, match="AccessDenied"):
                storage.read_bytes(f"{place}/1.jpg")
    with bench.as_(bench.reader):
        for place in own.values():
            with pytest.raises(StorageError, match=refused):
                storage.write_bytes(f"{place}/1.jpg", b"")
            with pytest.raises(StorageError, match=refused):
                storage.delete([f"{place}/1.jpg"])
    for message in (
        bench.index(name="other", expect=1),
        bench.index(env=bench.reader, expect=1),
        bench.maintain("rollback", "--to", 3, env=bench.reader, expect=1),
    ):
        assert f"error: {bench.bucket}/" in message
        assert "AccessDenied" in message


@pytest.mark.slow
def test_denied_images_keep_rows(bench: Bench) -> None:
    name, index = bench.bucket.removeprefix("s3://"), f"{bench.bucket}/index/hidden"
    images = [f"{bench.bucket}/images/hidden{i}.jpg" for i in range(2)]

    def rows(sql: str) -> list[tuple[str, ...]]:
        with bench.as_(bench.nightly), segrec_batch.connect(index) as connection:
            return connection.sql(sql).fetchall()

    contents = "SELECT uri, content_hash FROM images WHERE uri LIKE '%hidden_.jpg' ORDER BY uri"
    put({uri: image(20 + i) for i, uri in enumerate(images)})
    bench.index(name="index/hidden")
    before = rows(contents)
    put({uri: image(30 + i) for i, uri in enumerate(images)})
    policy = copy.deepcopy(load(NIGHTLY))
    readable = policy["Statement"][1]["Resource"]
    readable[:] = [resource for resource in readable if "/images/" not in resource]
    assert len(readable) == 1
    try:
        set_policy(bench.bucket, {f"nightly-{name}": policy})
        stderr = bench.index(name="index/hidden", expect=1)
        assert "2 of 2 sources could not be read, most often PermissionError" in stderr
        assert rows(contents) == before
        assert [uri for (uri,) in rows("SELECT uri FROM stale ORDER BY uri")] == images
    finally:
        users = {f"nightly-{name}": load(NIGHTLY), f"reader-{name}": load(READ)}
        set_policy(bench.bucket, users)
    bench.index(name="index/hidden")
    assert rows("FROM failures") == []
    after = rows(contents)
    assert [uri for uri, _ in after] == images
    assert not set(after) & set(before)


@pytest.mark.slow
def test_prefix_condition_is_not_enough(bench: Bench) -> None:
    """Then what is not there looks forbidden, as the checkpoint of every young table."""
    name = bench.bucket.removeprefix("s3://")
    policy = copy.deepcopy(load(NIGHTLY))
    condition = policy["Statement"][0]["Condition"]
    condition["StringLike"] = condition.pop("StringLikeIfExists")
    set_policy(bench.bucket, {f"nightly-{name}": policy})
    assert "AccessDenied" in bench.index(expect=1)
