"""The jobs on a real S3 server: everything there, some of it there, and all that goes wrong there.

All jobs of this file but one run in one process with one Ray, through a proxy that misbehaves on
order. What they left behind is looked at without it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segrec_batch
from segrec_batch.common.errors import IndexStateError
from segrec_batch.index import snapshot as store
from segrec_batch.index.history import history
from segrec_batch.index.schema import TABLES
from segrec_batch.search.cache import refresh_cache
from segrec_batch.sources import storage
from tests.support.builders import ODD_NAMES, encoded, smooth_pixels, tiny_model
from tests.support.job_server import ROOT, Done, JobServer
from tests.support.s3 import CREDENTIALS, FaultyProxy, environment, new_bucket, put

ODD = ODD_NAMES[:8]
COUNT = 40

pytestmark = pytest.mark.slow


@dataclass
class Bench:
    """A job server behind a proxy, and a bucket with a model and images."""

    jobs: JobServer
    proxy: FaultyProxy
    bucket: str
    printed: str = ""

    @property
    def model(self) -> str:
        return f"{self.bucket}/model"

    @property
    def images(self) -> str:
        return f"{self.bucket}/images"

    def index(
        self,
        index: str,
        images: str = "",
        model: str = "",
        env: dict[str, str | None] | None = None,
        expect: int = 0,
    ) -> Done:
        """Run jobs/index.py; small batches and a commit after each part."""
        return self._run(
            "jobs/index.py", "--images", images or self.images, "--model", model or self.model,
            "--index", index, "--device", "cpu", "--batch-size", 2, "--commit-seconds", 0,
            env=env, expect=expect,
        )  # fmt: skip

    def maintain(self, index: str, *command: object, expect: int = 0) -> Done:
        return self._run("jobs/maintain.py", "--index", index, *command, expect=expect)

    def _run(self, *command: object, expect: int, env: Any = None) -> Done:
        done = self.jobs.run(*command, env=env)
        self.printed += done.out + done.err
        assert done.code == expect, done.err
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (expect != 0)
        assert "Traceback" not in done.err
        assert "\x1b[31m" not in done.err
        return done


@pytest.fixture(scope="module")
def bench(s3: dict[str, str]) -> Iterator[Bench]:
    bucket = new_bucket()
    tiny_model().save(f"{bucket}/model")
    put({f"{bucket}/images/{i:02}.jpg": image(i) for i in range(COUNT)})
    with FaultyProxy(s3["AWS_ENDPOINT_URL"]) as proxy, JobServer(**proxy.env) as jobs:
        yield Bench(jobs, proxy, bucket)


@pytest.fixture(autouse=True)
def calm(bench: Bench) -> Iterator[None]:
    """Afterwards the store is well again."""
    yield
    bench.proxy.heal()
    bench.proxy.revive()


def image(seed: int) -> bytes:
    return encoded(smooth_pixels(48 + seed, 80, seed), "JPEG")


def figures(done: Done) -> dict[str, int]:
    """The counts that a run prints."""
    result = re.findall(r"^  +(?:of these, )?([a-z].*?)  +([\d,]+)$", done.out, re.MULTILINE)
    return {name: int(count) for name, count in result}


def query(index: str, sql: str, version: int | None = None) -> list[tuple[Any, ...]]:
    return segrec_batch.connect(index, version).sql(sql).fetchall()


def uris(index: str, version: int | None = None) -> set[str]:
    return {uri for (uri,) in query(index, "SELECT uri FROM images", version)}


def well(bench: Bench, index: str) -> bool:
    return "is well" in bench.maintain(index, "verify").out


def assert_same(index: str, other: str) -> None:
    """The same rows in `images` and `regions`, none of them twice; no failures."""
    for table, columns in {
        "images": ["uri", "content_hash", "width", "coverage_class_1", "feature"],
        "regions": ["uri, class", "content_hash", "cells", "coverage", "feature"],
    }.items():
        sql = f"SELECT {', '.join(columns)} FROM {table} ORDER BY ALL"
        rows, others = query(index, sql), query(other, sql)
        assert [row[:-1] for row in rows] == [row[:-1] for row in others]
        features = [np.array([row[-1] for row in result]) for result in (rows, others)]
        np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-4)
    assert query(index, "SELECT count(*) FROM failures") == [(0,)]


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> str:
    """An index of the images, made while the store was well."""
    index = f"{bench.bucket}/undisturbed"
    assert figures(bench.index(index))["indexed"] == COUNT
    assert store.open_snapshot(index).version > 3, "several commits"
    return index


def test_whole_life_in_a_bucket(bench: Bench) -> None:
    """Images, model and index in S3, all with odd names."""
    images = f"{bench.bucket}/it's [the] images"
    index = f"{bench.bucket}/it's *the* [index] é+&"
    put({f"{images}/{key}": image(i) for i, key in enumerate(ODD)})
    assert figures(bench.index(index, images))["indexed"] == len(ODD)
    assert uris(index) == {f"{images}/{key}" for key in ODD}
    first = store.open_snapshot(index)
    ((image_id,),) = query(index, "SELECT image_id FROM images ORDER BY uri LIMIT 1")
    for extra in ("", ", class := 'class_1'"):
        rows = query(index, f"SELECT rank, pearson FROM recommend('{image_id}', k := 3{extra})")
        assert [rank for rank, _ in rows] == [1, 2, 3]
        assert rows[0][1] >= rows[2][1]

    again = figures(bench.index(index, images))
    assert (again["unchanged"], again["indexed"]) == (len(ODD), 0)
    assert store.open_snapshot(index) == first

    changed, gone, moved, *_ = [f"{images}/{key}" for key in ODD]
    storage.write_bytes(changed, image(99))
    storage.write_bytes(f"{images}/moved/here é.jpg", storage.read_bytes(moved))
    storage.delete([gone, moved])
    counts = figures(bench.index(index, images))
    assert (counts["indexed"], counts["copied from equal bytes"], counts["gone"]) == (2, 1, 2)
    kept = {f"{images}/{key}" for key in ODD} - {gone, moved}
    assert uris(index) == kept | {f"{images}/moved/here é.jpg"}
    assert uris(index, first.version) == {f"{images}/{key}" for key in ODD}, "as it was"

    bench.maintain(index, "compact")
    assert len(store.open_snapshot(index).files["images"]) == 1
    assert well(bench, index)
    assert "deleted" in bench.maintain(index, "vacuum", "--retention-hours", 0, "--force").out
    refused = bench.maintain(index, "rollback", "--to", first.version, expect=1)
    assert "vacuum keeps those of its retention only" in refused.err
    with pytest.raises(IndexStateError, match="vacuum keeps those of its retention only"):
        uris(index, first.version)

    purged = bench.maintain(index, "purge", "--grace-seconds", 0, "--uri", *sorted(kept)[:2])
    assert "2 sources purged" in purged.out
    assert uris(index) == {*sorted(kept)[2:], f"{images}/moved/here é.jpg"}
    assert well(bench, index)
    assert "purge (sources 2)" in bench.maintain(index, "history").out


@pytest.mark.parametrize("in_s3", ["images", "index"])
def test_images_and_index_in_different_stores(bench: Bench, tmp_path: Path, in_s3: str) -> None:
    folders = dict.fromkeys(("images", "index"), str(tmp_path / "it's here"))
    folders |= {in_s3: f"{bench.bucket}/mixed [{in_s3}]"}
    images, index = f"{folders['images']}/i", f"{folders['index']}/x"
    for i, key in enumerate(ODD[:3]):
        storage.write_bytes(f"{images}/{key}", image(i))
    assert figures(bench.index(index, images))["indexed"] == 3
    storage.delete([f"{images}/{ODD[0]}"])
    assert figures(bench.index(index, images))["gone"] == 1
    assert uris(index) == {f"{images}/{key}" for key in ODD[1:3]}
    assert well(bench, index)


NO_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": None,
    "AWS_SECRET_ACCESS_KEY": None,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_CONFIG_FILE": os.devnull,
}
NOWHERE = "s3://no-such-bucket/x"
WRONG: dict[str, tuple[dict[str, str | None], str]] = {
    "secret": ({"AWS_SECRET_ACCESS_KEY": "wr0ng-s3cret"}, "SignatureDoesNotMatch"),
    "key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId"),
    "none": (NO_CREDENTIALS, "no credentials found"),
    "address": ({"AWS_ENDPOINT_URL": "127.0.0.1:1"}, "begins with http:// or https://"),
    "server": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Connection refused"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_denied_access_is_one_line(bench: Bench, images: Path, model_dir: str, wrong: str) -> None:
    env, message = WRONG[wrong]
    for index, source, model in (
        (f"{bench.bucket}/never", "", ""),
        (f"{bench.bucket}/never", str(images), model_dir),
    ):
        failed = bench.index(index, source, model, env, expect=1)
        assert f"error: {index}" in failed.err or "AWS_ENDPOINT_URL" in failed.err
        assert message in failed.err
        assert failed.seconds < 30
    assert "s3cret" not in bench.printed
    assert not store.exists(f"{bench.bucket}/never")


@pytest.mark.parametrize("wrong", WRONG.keys() - {"address"})
def test_unreachable_inputs_leave_local_index(
    bench: Bench, images: Path, model_dir: str, tmp_path: Path, wrong: str
) -> None:
    index = str(tmp_path / "index")
    env, _ = WRONG[wrong]
    failed = bench.index(index, "", model_dir, env, expect=1)
    assert f"error: {bench.images} cannot be listed: " in failed.err
    failed = bench.index(index, str(images), "", env, expect=1)
    assert f"error: {bench.model}/model.json: " in failed.err
    assert not Path(index).exists()


def test_missing_bucket(bench: Bench, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    for index, images, model in (
        (NOWHERE, "", ""),
        (str(tmp_path / "index"), NOWHERE, ""),
        (str(tmp_path / "index"), "", NOWHERE),
    ):
        failed = bench.index(index, images, model, expect=1)
        assert f"error: {NOWHERE}" in failed.err
        assert "NoSuchBucket" in failed.err
    assert not (tmp_path / "index").exists()


def test_wrong_secret_in_a_process(bench: Bench, undisturbed: str) -> None:
    before = store.open_snapshot(undisturbed)
    with environment(**WRONG["secret"][0]):
        failed = subprocess.run(
            [
                sys.executable, "jobs/index.py", "--images", bench.images, "--model", bench.model,
                "--index", undisturbed,
            ],
            cwd=ROOT, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == f"error: {undisturbed}: OSError: SignatureDoesNotMatch\n"
    assert store.open_snapshot(undisturbed) == before


def test_credentials_of_a_profile(bench: Bench, undisturbed: str, tmp_path: Path) -> None:
    profile = tmp_path / "credentials"
    lines = [f"{name.lower()} = {value}\n" for name, value in CREDENTIALS.items()]
    profile.write_text("".join(["[someone]\n", *lines]))
    env = NO_CREDENTIALS | {
        "AWS_SHARED_CREDENTIALS_FILE": str(profile), "AWS_PROFILE": "someone"
    }  # fmt: skip
    assert figures(bench.index(undisturbed, env=env))["unchanged"] == COUNT


def test_transient_faults_leave_no_trace(bench: Bench, undisturbed: str) -> None:
    index = f"{bench.bucket}/disturbed"
    bench.proxy.fault("slow_down", probability=0.1)
    bench.proxy.fault("error", probability=0.05)
    bench.proxy.fault("drop", probability=0.03)
    bench.proxy.fault("delay", probability=0.03, seconds=0.3)
    bench.proxy.faults.clear()
    assert figures(bench.index(index))["indexed"] == COUNT
    assert well(bench, index)
    assert {k for k, n in bench.proxy.faults.items() if n > 5} == {
        "slow_down", "error", "drop", "delay"
    }  # fmt: skip
    assert_same(index, undisturbed)


def test_commit_with_lost_answer_is_made_once(bench: Bench, undisturbed: str) -> None:
    """It took effect: segrec must neither take it for another run's nor make it again."""
    index = f"{bench.bucket}/lost answers"
    for table in store.TABLES:
        bench.proxy.fault("drop", every=2, method="PUT", path=f"/{table}/_delta_log/")
    bench.proxy.faults.clear()
    assert figures(bench.index(index))["indexed"] == COUNT
    assert bench.proxy.faults["drop"] > 6
    assert_same(index, undisturbed)
    runs = [entry.info for entry in history(index) if "segrec" in entry.info]
    assert [r["segrec"]["commits"] for r in runs] == list(range(len(runs), 0, -1))


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/images/2"), ("PUT", "/images/_delta_log/")],
)
def test_server_dies_during_run(bench: Bench, undisturbed: str, method: str, path: str) -> None:
    index = f"{bench.bucket}/died at {method} {path.replace('/', ' ')}"
    bench.proxy.fault("die", every=3, method=method, path=path)
    failed = bench.index(index, expect=1)
    assert failed.seconds < 75
    pattern = "error: s3://.*(Connection refused|EndpointConnectionError)"
    assert re.search(pattern, failed.err), failed.err
    assert "run again to go on" in failed.err
    bench.proxy.heal()
    bench.proxy.revive()
    after = store.open_snapshot(index)
    assert after.rows("failures") == 0
    counts = figures(bench.index(index))
    there = after.rows("images")  # none, if it died before the first commit
    assert (counts["indexed"], counts.get("unchanged", 0)) == (COUNT - there, there)
    assert_same(index, undisturbed)
    assert well(bench, index)


def test_dead_server_is_not_lost_files(bench: Bench, undisturbed: str) -> None:
    bench.proxy.fault("die", every=1, method="GET", path="/undisturbed/images/")
    # the log is read, then the files of the index die away
    failed = bench.index(undisturbed, expect=1)
    assert "lost files" not in failed.err
    assert failed.seconds < 75


def test_query_only_reads_bytes(bench: Bench, undisturbed: str) -> None:
    files = list(store.open_snapshot(undisturbed).all_files)
    with environment(**bench.proxy.env):
        connection = segrec_batch.connect(undisturbed)
        ((image_id,),) = connection.sql("SELECT min(image_id) FROM images").fetchall()
        bench.proxy.requests.clear()
        rows = connection.sql(f"FROM recommend('{image_id}', class := 'class_1')").fetchall()
    assert len(rows) == 10
    assert bench.proxy.requests.keys() == {"GET"}
    assert bench.proxy.requests["GET"] < 3 * len(files), "footer, query image, features"


def test_cache_of_a_bucket(bench: Bench, undisturbed: str, tmp_path: Path) -> None:
    path, sql = (
        str(tmp_path / "c.duckdb"),
        "SELECT COLUMNS(lambda c: c <> 'feature') FROM {} ORDER BY ALL",
    )
    with environment(**bench.proxy.env):
        made = refresh_cache(undisturbed, path)
        assert made.added == made.rows > 0
        remote = segrec_batch.connect(undisturbed)
        expected = [remote.sql(sql.format(table)).fetchall() for table in TABLES]
    local = segrec_batch.connect(path)
    assert [local.sql(sql.format(table)).fetchall() for table in TABLES] == expected
    content = Path(path).read_bytes()
    assert not any(value.encode() in content for value in CREDENTIALS.values())


def test_credentials_do_not_leak(bench: Bench, undisturbed: str) -> None:
    key, secret = CREDENTIALS.values()
    for uri, *_ in storage.find_files(bench.bucket):
        content = storage.read_bytes(uri)
        assert key.encode() not in content, uri
        assert secret.encode() not in content, uri
    assert bench.printed
    assert key not in bench.printed
    assert secret not in bench.printed
    logs = [p for p in bench.jobs.ray_folder.rglob("*") if p.is_file()]
    assert len(logs) > 10
    for path in logs:
        assert secret.encode() not in path.read_bytes(), path
