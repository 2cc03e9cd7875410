"""The policies of cluster/ with a bucket filled in, and their form for Ceph."""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.cluster_files import Document
from tests.support.s3 import FaultyProxy

NIGHTLY, READ = "s3-policy.json", "s3-policy-read.json"
NAMED = "streets"  # the bucket that `load` fills in

Grant = tuple[str, str]  # action, folder of the bucket


def listed(value: Any) -> list[Any]:
    """Return a list unchanged, another value in a list."""
    return value if isinstance(value, list) else [value]


def grants(policy: Document) -> set[Grant]:
    """Return the grants of a policy: an action and the folder, as written."""
    return {
        (action, folder)
        for statement in policy["Statement"]
        for action in listed(statement["Action"])
        for folder in folders(statement)
    }


def folders(statement: Document) -> Iterator[str]:
    """Return the first part of each key or prefix in a statement."""
    for condition in statement.get("Condition", {}).values():
        for prefix in listed(condition["s3:prefix"]):
            yield prefix.partition("/")[0]
        return
    for resource in listed(statement["Resource"]):
        yield resource.partition("/")[2].partition("/")[0]


def bucket_policy(bucket: str, users: Mapping[str, Document]) -> str:
    """Return the policies of some users as one bucket policy with a principal for each user.

    Ceph 16 checks the right to delete a batch of objects twice: for the bucket, then for each
    object.
    """
    statements = [
        {**statement, "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]}}
        for user, policy in users.items()
        for statement in policy["Statement"]
    ]
    for number, statement in enumerate(statements):
        statement["Sid"] += str(number)
        if "s3:DeleteObject" in statement["Action"]:
            statement["Resource"] = [*listed(statement["Resource"]), f"arn:aws:s3:::{NAMED}"]
    text = json.dumps({"Version": "2012-10-17", "Statement": statements})
    return text.replace(f":::{NAMED}", f":::{bucket}")


class Recorder(FaultyProxy):
    """A proxy that records the grants that its requests need."""

    def __init__(self, upstream: str) -> None:
        self.requested: set[Grant] = set()
        super().__init__(upstream)

    def draw(self, method: str, path: str) -> Any:
        self.requested.add(_grant(method, path))
        return super().draw(method, path)


def _grant(method: str, path: str) -> Grant:
    url = urlsplit(path)
    query = parse_qs(url.query, keep_blank_values=True)
    _, _, *key = url.path.split("/")
    if "delete" in query:
        return "s3:DeleteObject", "index"  # keys are in the body; others are refused
    if "list-type" in query:
        return "s3:ListBucket", query["prefix"][0].partition("/")[0]
    if method == "DELETE":
        assert "uploadId" in query, path
        return "s3:AbortMultipartUpload", key[0]
    return {"GET": "s3:GetObject", "HEAD": "s3:GetObject"}.get(method, "s3:PutObject"), key[0]
