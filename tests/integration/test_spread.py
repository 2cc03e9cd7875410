"""Tests of a run over several nodes of a cluster."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from PIL import Image
from ray.cluster_utils import Cluster

import segrec_batch
from segrec_batch.common.errors import DeviceError
from segrec_batch.common.host import usable_cores
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, index_images
from tests.support.builders import smooth_pixels, tiny_model

ROOT = Path(__file__).parents[2]
BATCH = 4
SECONDS = 0.1  # per image, of the stand-in for the model
BATCHES = 14  # of a node
IMAGES = 3 * BATCHES * BATCH
FAIR = 0.7  # of what so many nodes could do

Note = dict[str, Any]


@dataclass
class Run:
    """A run of tests/support/timed_index.py over the first images of a folder."""

    folder: Path
    index: Path
    images: int
    seconds: float = SECONDS
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self, address: str, *options: object) -> "Run":
        command = [
            sys.executable, Path(__file__).parents[1] / "support" / "timed_index.py",
            "--images", self.folder / "images", "--model", self.folder / "model",
            "--index", self.index, "--batch-size", BATCH, "--limit", self.images, *options,
        ]  # fmt: skip
        environment = {
            **os.environ, "RAY_ADDRESS": address, "SEGREC_SLEEP": str(self.seconds),
            "SEGREC_NOTES": f"{self.index}.notes",
        }  # fmt: skip
        with Path(f"{self.index}.log").open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=log, stderr=log, cwd=ROOT
            )
        return self

    def log(self) -> str:
        return Path(f"{self.index}.log").read_text()

    def notes(self, stage: str) -> list[Note]:
        path = Path(f"{self.index}.notes")
        lines = path.read_text().splitlines() if path.exists() else []
        return [note for line in lines if (note := json.loads(line))["stage"] == stage]

    def nodes(self, stage: str) -> set[str]:
        return {note["node"] for note in self.notes(stage)}

    def wait_for(self, moment: Callable[[], object], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not moment():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.1)

    def end(self) -> None:
        """Every image has become one row, and been seen once."""
        assert self.process.wait(300) == 0, self.log()
        rows = segrec_batch.connect(str(self.index)).sql("SELECT uri FROM images").fetchall()
        seen = [uri for note in self.notes("segment") for uri in note["uris"]]
        assert len(rows) == len(set(rows)) == self.images
        assert sorted(seen) == sorted(uri for (uri,) in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and model/."""
    folder = tmp_path_factory.mktemp("spread")
    (folder / "images").mkdir()
    for i in range(IMAGES):
        Image.fromarray(smooth_pixels(48, 64, seed=i)).save(folder / "images" / f"{i:03}.png")
    tiny_model(taps=("conv5_3",)).save(str(folder / "model"))
    return folder


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that only leads; nodes are for the tests to add."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


def share_of_ideal(notes: list[Note]) -> float:
    """Images per second over those of so many stand-ins that never wait, while all of them run:
    from when the last has its first batch to when the first has done its last.
    """
    actors = {note["pid"] for note in notes}
    own = [[note for note in notes if note["pid"] == pid] for pid in actors]
    start = max(min(note["start"] for note in batches) for batches in own)
    end = min(max(note["end"] for note in batches) for batches in own)
    assert end - start > BATCHES * BATCH * SECONDS / 4, "too short to say anything"
    done = 0.0
    for note in notes:
        inside = min(end, note["end"]) - max(start, note["start"])
        done += len(note["uris"]) * max(inside, 0) / (note["end"] - note["start"])
    return done / (end - start) * SECONDS / len(actors)


@pytest.mark.slow
def test_throughput_grows_with_nodes(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    nodes: set[str] = set()
    # more nodes than this machine has cores would measure the machine
    for count in range(1, max(2, min(3, usable_cores())) + 1):
        nodes.add(cluster.add_node(num_cpus=2).node_id)
        run = Run(folder, tmp_path / str(count), count * BATCHES * BATCH)
        run.start(cluster.address).end()
        notes = run.notes("segment")
        assert run.nodes("segment") == run.nodes("decode") == nodes
        assert len({note["pid"] for note in notes}) == count, "an actor on each node"
        share = share_of_ideal(notes)
        print(f"{count} nodes: {share * count / SECONDS:.1f} images/s, {share:.2f} of the ideal")
        assert share > FAIR


@pytest.mark.slow
def test_gpu_actors_and_late_nodes(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    plain = cluster.add_node(num_cpus=2).node_id
    first = cluster.add_node(num_cpus=2, num_gpus=1).node_id
    run = Run(folder, tmp_path / "index", IMAGES, seconds=3 * SECONDS)  # a node takes 20 s to join
    run.start(cluster.address, "--gpus", 2)
    run.wait_for(lambda: run.notes("segment"))
    late = cluster.add_node(num_cpus=2, num_gpus=1).node_id
    run.end()
    notes = run.notes("segment")
    assert {note["device"] for note in notes} == {"cuda"}
    assert {note["node"] for note in notes} == {first, late}
    assert len({note["pid"] for note in notes}) == 2
    assert run.nodes("decode") >= {plain, first}
    assert "device: 2 × GPU" in run.log()


def address_of_this_machine() -> str:
    """Return the address that Ray puts in place of 127.0.0.1 where no private Ray runs."""
    command = [sys.executable, "-c", "import ray; print(ray.util.get_node_ip_address())"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


WORKERS = {  # as Ray's launcher takes them
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "max_workers": 2},
}


@pytest.fixture
def from_zero(tmp_path: Path) -> Iterator[str]:
    """The address of a head with Ray's own autoscaler, whose nodes are processes of this machine.

    Not ray.cluster_utils.AutoscalingCluster, whose `ray stop` ends every Ray there is.
    """
    host = address_of_this_machine()
    with socket.socket() as a:
        a.bind((host, 0))
        address = f"{host}:{a.getsockname()[1]}"
    provider = {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True}
    off = {"disable_node_updaters": True, "disable_launch_config_check": True}
    empty = Path(ray.__file__).parent / "autoscaler/_private/readonly/defaults.yaml"
    config = yaml.safe_load(empty.read_text()) | {
        "max_workers": 2, "provider": provider | off, "available_node_types": WORKERS,
        "head_node_type": "ray.head.default", "idle_timeout_minutes": 1,
    }  # fmt: skip
    (tmp_path / "autoscaler.json").write_text(json.dumps(config))
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=0",
        f"--node-ip-address={host}", f"--port={address.split(':')[1]}",
        f"--temp-dir=/tmp/segrec_zero_{os.getpid()}", "--dashboard-agent-listen-port=0",
        "--min-worker-port=0", "--max-worker-port=0",  # free ones; Ray's own range others may use
        "--include-dashboard=false", f"--autoscaling-config={tmp_path}/autoscaler.json",
    ]  # fmt: skip
    environment = {
        **os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while not answers(address):
            assert time.monotonic() < end, (tmp_path / "head.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        root = psutil.Process(head.pid)
        for process in (*root.children(recursive=True), root):  # a SIGTERM waits for 30 s
            if process.is_running():
                process.kill()
        head.wait(60)
        shutil.rmtree(f"/tmp/segrec_zero_{os.getpid()}", ignore_errors=True)


def answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as a:
        return a.connect_ex((host, int(port))) == 0


@pytest.mark.slow
def test_autoscaler_starts_gpus(from_zero: str, folder: Path, tmp_path: Path) -> None:
    run = Run(folder, tmp_path / "index", IMAGES).start(from_zero, "--gpus", 2)
    run.end()
    assert "the Ray cluster has no GPU; requested 2" in run.log()
    assert len(run.nodes("segment")) == 2


@pytest.mark.slow
def test_autoscaler_starts_nodes_for_maintenance(from_zero: str, index: str) -> None:
    completed = subprocess.run(
        [sys.executable, "jobs/maintain.py", "--index", index, "verify"],
        env={**os.environ, "RAY_ADDRESS": from_zero}, cwd=ROOT,
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert "warning: no node of the Ray cluster has 1 CPU; waiting for one" in completed.stderr
    assert "is well" in completed.stdout


def test_missing_gpus_are_an_error(
    ray_cluster: None, images: Path, model_dir: str, tmp_path: Path
) -> None:
    execution = Execution(gpus=2, wait_seconds=0.5)
    with pytest.raises(DeviceError, match=r"no GPU joined the Ray cluster within 0|--wait"):
        index_images(Request(str(images)), model_dir, str(tmp_path / "index"), execution)
