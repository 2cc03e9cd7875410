"""Tests of a job's metrics, scraped from a Ray head."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from segrec_batch.pipeline.metrics import COUNTERS, EXPORTED
from tests.support.head_node import Head, head_node

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SAMPLE = re.compile(r"^(ray_segrec_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def samples_of(head: Head) -> dict[tuple[str, str], float]:
    """Values of segrec's metrics by name and label, from all that Prometheus is told to scrape."""
    (group,) = json.loads((head.folder / "prom_metrics_service_discovery.json").read_text())
    result = {}
    for target in group["targets"]:
        # ports of Ray's own figures, of which the tests' Ray on loopback has the same
        with suppress(ConnectionRefusedError), _opened(target) as answer:
            for name, labels, value in SAMPLE.findall(answer.read().decode()):
                label_values = dict(re.findall(r'(\w+)="([^"]*)"', labels))
                label = COUNTERS.get(name.removeprefix("ray_"), ("", None))[1]
                result[name, label_values.get(label or "", "")] = float(value)
                assert label_values["run_id"]
    return result


def _opened(target: str) -> Any:
    try:
        return urllib.request.urlopen(f"http://{target}/metrics", timeout=30)
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else error from error


@pytest.fixture
def head() -> Iterator[Head]:
    with head_node() as node:
        yield node


def test_prometheus_sees_short_jobs(
    head: Head, images: Path, model_dir: str, tmp_path: Path
) -> None:
    (images / "bad.jpg").write_bytes(b"no image")
    submitted = head.ray(
        "job", "submit", "--", "python", ROOT / "jobs" / "index.py", "--images", images,
        "--model", model_dir, "--index", tmp_path / "index", "--device", "cpu",
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout
    ended = time.monotonic()
    samples = samples_of(head)
    assert {name for name, _ in samples} == EXPORTED
    assert samples["ray_segrec_images_total", "indexed"] == 6
    assert samples["ray_segrec_images_total", "failed"] == 1
    assert samples["ray_segrec_failures_total", "decode: not an image"] == 1
    assert samples["ray_segrec_commits_total", ""] == 1
    read = sum(path.stat().st_size for path in images.iterdir())
    assert samples["ray_segrec_read_bytes_total", ""] == read
    assert samples["ray_segrec_written_bytes_total", ""] > 0
    for stage in ("read", "decode", "segment", "write"):
        assert samples["ray_segrec_stage_seconds_total", stage] > 0
    time.sleep(max(0, ended + 30 - time.monotonic()))
    later = samples_of(head)
    gauges = {"ray_segrec_todo_images", "ray_segrec_last_commit_timestamp_seconds"}
    assert {name for name, _ in later} == EXPORTED - gauges, "no job runs any more"
    assert all(samples[key] == value for key, value in later.items())
