"""The metrics of a job, scraped from a Ray head of its own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from segrec_batch.pipeline.metrics import COUNTERS, EXPORTED
from tests.test_jobs import _away_from_our_ray, _wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
SAMPLE = re.compile(r"^(ray_segrec_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Head:
    """A Ray head: its job server, and what Prometheus is told to scrape."""

    address: str
    folder: Path

    def targets(self) -> list[str]:
        (group,) = json.loads((self.folder / "prom_metrics_service_discovery.json").read_text())
        return list(group["targets"])

    def samples(self) -> dict[tuple[str, str], float]:
        """Values of segrec's metrics by name and label, from all targets."""
        found = {}
        for target in self.targets():
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
                for name, labels, value in SAMPLE.findall(answer.read().decode()):
                    told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
                    label = COUNTERS.get(name.removeprefix("ray_"), ("", None))[1]
                    found[name, told.get(label or "", "")] = float(value)
                    assert told["run_id"]
        return found


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    folder = Path(f"/tmp/segrec_metrics_{os.getpid()}")
    gcs, dashboard, metrics = free_ports(3)
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0",
        f"--metrics-export-port={metrics}", f"--temp-dir={folder}", "--num-cpus=2",
    ]  # fmt: skip
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=_away_from_our_ray(), stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}/api/version")
        yield Head(f"http://127.0.0.1:{dashboard}", folder)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def test_prometheus_sees_what_a_short_job_did_also_after_its_end(
    head: Head, pictures: Path, model_dir: str, tmp_path: Path
) -> None:
    (pictures / "bad.jpg").write_bytes(b"no picture")
    submitted = subprocess.run(
        [
            RAY, "job", "submit", "--address", head.address, "--working-dir", ROOT / "jobs", "--",
            sys.executable, "index.py", "--images", pictures, "--model", model_dir,
            "--index", tmp_path / "index", "--device", "cpu",
        ],
        env=_away_from_our_ray(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    ended = time.monotonic()
    samples = head.samples()
    assert {name for name, _ in samples} == EXPORTED
    assert samples["ray_segrec_images_total", "indexed"] == 6
    assert samples["ray_segrec_images_total", "failed"] == 1
    assert samples["ray_segrec_failures_total", "decode: not a picture"] == 1
    assert samples["ray_segrec_commits_total", ""] == 1
    read = sum(path.stat().st_size for path in pictures.iterdir())
    assert samples["ray_segrec_read_bytes_total", ""] == read
    assert samples["ray_segrec_written_bytes_total", ""] > 0
    for stage in ("read", "decode", "segment", "write"):
        assert samples["ray_segrec_stage_seconds_total", stage] > 0
    time.sleep(max(0, ended + 30 - time.monotonic()))
    later = head.samples()
    gauges = {"ray_segrec_todo_images", "ray_segrec_last_commit_timestamp_seconds"}
    assert {name for name, _ in later} == EXPORTED - gauges, "no job runs any more"
    assert all(samples[key] == value for key, value in later.items())
