"""Tests of jobs under `ray job submit`, on a cluster with a token."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from segrec_batch.index.snapshot import exists, open_snapshot
from segrec_batch.maintenance.verify import verify
from tests.support.builders import tiny_model, uris, write_images
from tests.support.cluster_files import CLUSTER
from tests.support.head_node import ROOT, Head, head_node

TOKEN = "0123456789abcdef" * 4
INDEX = ROOT / "jobs" / "index.py"
IMAGES = 160  # of which a run is stopped: seconds of work in steps of four


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with head_node(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as node:
        yield node


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    tiny_model(taps=("conv3_3",)).save(folder)
    return folder


def arguments(images: Path, model: str, index: Path) -> list[object]:
    return ["--images", images, "--model", model, "--index", index]


@pytest.mark.slow
def test_index_job_runs_from_uploaded_folder(head: Head, bundle: str, tmp_path: Path) -> None:
    """As the README has it: with the project for --working-dir, here less what is not code."""
    project = copy_project(tmp_path)
    images, index = write_images(tmp_path / "images", 8), tmp_path / "index"
    submit = ["job", "submit", "--log-color", "false", "--working-dir", project, "--"]
    done = head.ray(*submit, "python", "jobs/index.py", *arguments(images, bundle, index))
    assert done.returncode == 0, done.stdout
    assert len(uris(str(index))) == 8
    log = done.stdout
    for line in (
        r"8 new, 0 changed.*",
        r"warning: device: CPU, .* \(--device auto\); model on 1 × CPU, 2 threads",
        r"indexed: 8 in [\d.]+ s",
        rf"{re.escape(str(index))}: version \d+, 8 images, .*",
    ):
        assert re.search(f"^.*{line}$", log, re.MULTILINE), log
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log), "bars and colours have no place in logs"
    assert "Traceback" not in log


def copy_project(folder: Path) -> Path:
    project = folder / "project"
    for name in ("jobs", "segrec_batch", "schemas"):
        shutil.copytree(ROOT / name, project / name)
    return project


@pytest.mark.slow
def test_outputs_in_uploaded_folder_are_refused(head: Head, bundle: str, tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    write_images(project / "images", 2)
    submit = ["job", "submit", "--log-color", "false", "--working-dir", project, "--"]
    job = [*submit, "python", "jobs/index.py", "--images", "images", "--model", bundle, "--index"]
    refused = head.ray(*job, "index")
    assert refused.returncode == 1, refused.stdout
    message = r"error: --index index lies in the project that was uploaded to Ray.* s3:// URI$"
    assert re.search(message, refused.stdout, re.M), refused.stdout
    assert "Traceback" not in refused.stdout
    program = [word for word in job if word != "python"]  # the file itself is executable
    done = head.ray(*program, tmp_path / "index")
    assert done.returncode == 0, done.stdout
    assert re.search("^--images: read from the project .*working_dir_files", done.stdout, re.M)
    assert open_snapshot(str(tmp_path / "index")).rows("images") == 2


@pytest.mark.slow
def test_job_error_fails_the_submission(head: Head, bundle: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    given = arguments(images, "/nowhere", tmp_path / "index")
    failed = head.ray("job", "submit", "--", "python", INDEX, *given)
    assert failed.returncode == 1
    assert re.search(r"^error: .*/nowhere.*train a model with segrec train", failed.stdout, re.M)
    assert "Traceback" not in failed.stdout
    assert not exists(str(tmp_path / "index"))


@pytest.mark.slow
def test_stopped_job_resumes(head: Head, bundle: str, tmp_path: Path) -> None:
    images, index = write_images(tmp_path / "images", IMAGES), tmp_path / "index"
    given = arguments(images, bundle, index)
    submit = ["job", "submit", "--no-wait", "--submission-id", "to-stop", "--", "python", INDEX]
    often = ["--batch-size", 2, "--commit-seconds", 0.1]
    assert head.ray(*submit, *given, *often).returncode == 0
    wait_for_images(str(index))
    assert head.ray("job", "stop", "to-stop").returncode == 0
    stopped = open_snapshot(str(index))
    assert "STOPPED" in head.ray("job", "list").stdout
    assert 0 < stopped.rows("images") < IMAGES
    assert verify(stopped) == []

    done = head.ray("job", "submit", "--", "python", INDEX, *given)
    assert done.returncode == 0, done.stdout
    assert f"{stopped.rows('images')} unchanged" in done.stdout
    assert len(uris(str(index))) == IMAGES


def wait_for_images(index: str) -> None:
    for _ in range(600):
        if exists(index) and open_snapshot(index).rows("images"):
            return
        time.sleep(0.1)
    raise TimeoutError(index)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "another"}, "Invalid authentication token"),
    ],
)
def test_submission_needs_the_token(head: Head, environment: dict[str, str], message: str) -> None:
    refused = head.ray("job", "submit", "--submission-id", "no-token", "--", "true", **environment)
    assert refused.returncode == 1
    assert message in refused.stdout
    assert "no-token" not in head.ray("job", "list").stdout


@pytest.mark.slow
def test_service_discovery_needs_the_token(head: Head) -> None:
    configuration = yaml.safe_load((CLUSTER / "prometheus" / "prometheus.yml").read_text())
    (scraped,) = configuration["scrape_configs"]
    (source,) = scraped["http_sd_configs"]
    url = source["url"].replace("http://127.0.0.1:8265", head.address)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        (result,) = json.load(answer)
    assert result["targets"]


JOIN = """
import os, sys
from segrec_batch.common import logs
from segrec_batch.distributed import cluster

def join():
    with cluster.join():
        pass

for os.environ["RAY_ADDRESS"] in sys.argv[1:]:
    assert logs.run_command(join) == 1
"""


def test_unreachable_cluster_is_an_error() -> None:
    """Join in a separate process, because the tests may be in a cluster already."""
    reasons = {
        "127.0.0.1:1": "Connection refused",
        "[::1]:1": "",  # refused, or no such protocol here
        "nonsense": "Invalid address",
    }
    completed = subprocess.run(
        [sys.executable, "-c", JOIN, *reasons], capture_output=True, text=True, timeout=60
    )
    assert completed.returncode == 0, completed.stderr
    for address, reason in reasons.items():
        line = rf"^error: the Ray cluster of RAY_ADDRESS={re.escape(address)} cannot.*{reason}"
        assert re.search(line, completed.stderr, re.MULTILINE), completed.stderr
    assert completed.stderr.count("or unset RAY_ADDRESS") == len(reasons)
    assert "Traceback" not in completed.stderr


def test_ray_start_failure_is_an_error() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", JOIN, ""], env={**os.environ, "RAY_TMPDIR": "/proc/none"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr.startswith("error: Ray cannot be started on this machine: ")
    assert "/proc/none" in completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.mark.slow
def test_lost_cluster_fails_the_job(bundle: str, tmp_path: Path) -> None:
    images, index = write_images(tmp_path / "images", 1), tmp_path / "index"
    command = [sys.executable, INDEX, *arguments(images, bundle, index)]
    completed = subprocess.run(
        [*map(str, command)], env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert completed.returncode == 1
    assert "error: the Ray cluster of RAY_ADDRESS=127.0.0.1:1 cannot be joined" in completed.stderr
    assert "Traceback" not in completed.stderr
