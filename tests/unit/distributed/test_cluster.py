"""Tests of the private Ray of a run: addresses, token, folder."""

import http.client
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import urllib.request
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import psutil
import pytest
import ray
from ray._raylet import AuthenticationTokenLoader

from tests.support.head_node import ROOT, head_node
from tests.support.modules import MODULES, PACKAGE

CALLS = (  # for each server of Ray one call that reads or changes something
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/GetCoreWorkerStats",
    "ReporterService/ReportOCMetrics",
)
ANSWERED = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE)  # by another server


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """Return addresses and ports on which a process and its descendants listen."""
    sockets = [
        connection.laddr
        for p in (process, *process.children(recursive=True))
        for connection in p.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    return [(address.ip, address.port) for address in sockets]


def is_loopback(address: str) -> bool:
    """Return true if only this machine reaches an address."""
    parsed = ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


@pytest.fixture
def ports(ray_cluster: None) -> list[tuple[str, int]]:
    """Return addresses and ports of the Ray of the tests."""

    @ray.remote(num_cpus=0)
    def work() -> None:
        """Start a worker, which listens too."""

    ray.get(work.remote())
    return listening(psutil.Process())


def test_private_ray_listens_on_loopback_only(ports: list[tuple[str, int]]) -> None:
    assert len(ports) > 8, "servers of head, node, agents, driver and a worker"
    assert [address for address, _ in ports if not is_loopback(address)] == []
    assert not is_loopback("::")
    assert not is_loopback("192.0.2.2")


def call_server(port: int, call: str, token: str) -> grpc.StatusCode:
    """Return the status of one call without arguments."""
    headers = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=10, metadata=headers)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def test_private_ray_servers_demand_the_token(ports: list[tuple[str, int]]) -> None:
    token = AuthenticationTokenLoader.instance().get_raw_token()
    assert len(token) == 64
    answers = {
        credential: {
            (port, call): code
            for _, port in ports
            for call in CALLS
            if (code := call_server(port, call, credential)) not in ANSWERED
        }
        for credential in ("", "0" * 64, token)
    }
    assert {call for _, call in answers[token]} == set(CALLS)
    assert set(answers[token].values()) == {grpc.StatusCode.OK}
    for wrong in ("", "0" * 64):
        assert answers[wrong].keys() == answers[token].keys()
        assert set(answers[wrong].values()) == {grpc.StatusCode.UNAUTHENTICATED}


def read(port: int, path: str) -> str | None:
    """Return the page of a web server of Ray without a token; None if there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            text: str = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    return text


def test_private_ray_without_token_gives_metrics_and_health_only(
    ports: list[tuple[str, int]],
) -> None:
    paths = ("/", "/metrics", "/logs", "/api/job_agent/jobs/", "/api/healthz")
    texts = [text for _, port in ports for path in paths if (text := read(port, path))]
    assert [text for text in texts if not text.startswith(("# HELP ", "raylet: success"))] == []
    assert any(text.startswith("# HELP ") for text in texts)
    secrets = {os.environ["PATH"], AuthenticationTokenLoader.instance().get_raw_token()}
    assert not [secret for secret in secrets for text in texts if secret in text]


def test_private_ray_folder_is_private(ray_cluster: None) -> None:
    """Ray makes its own folder, with its sockets, accessible to all users."""
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    base = session.parents[1]
    assert base.name.startswith("ray-")
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    assert base.stat().st_uid == os.getuid()
    token = AuthenticationTokenLoader.instance().get_raw_token().encode()
    written = [p for p in session.rglob("*") if p.is_file() and not p.is_symlink()]
    assert len(written) > 10
    assert [p for p in written if token in p.read_bytes()] == []


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with nothing of the tests' Ray in its environment."""
    mine = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    clean = {name: value for name, value in os.environ.items() if name not in mine}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip


OWN = """
import os, sys
from pathlib import Path
import ray
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode
from segrec_batch.distributed import cluster
from segrec_batch.distributed.cluster import read_authentication

read_authentication()
before = dict(os.environ)
theirs = AuthenticationTokenLoader.instance().get_raw_token()
with cluster.join():
    assert dict(os.environ) == before
    ours = ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote())
    assert ours == AuthenticationTokenLoader.instance().get_raw_token()
    folder = Path(ray._private.worker._global_node.get_session_dir_path()).parents[1]
    assert folder.exists()
assert not folder.exists()
assert not ray.is_initialized()
assert AuthenticationTokenLoader.instance().get_raw_token() == theirs
assert get_authentication_mode() == AuthenticationMode.TOKEN
assert not (Path.home() / ".ray").exists()
print(ours)
"""


@pytest.mark.slow
def test_private_ray_restores_the_token_of_the_user(ray_cluster: None, tmp_path: Path) -> None:
    done = python(OWN, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="1" * 64, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    another = AuthenticationTokenLoader.instance().get_raw_token()
    assert done.stdout.strip() not in ("1" * 64, another)
    assert "auth" not in done.stderr.lower(), "Ray has nothing to warn of"


UNDER_UV = """
import sys
import ray
from segrec_batch.common import logs
from segrec_batch.distributed import cluster
from ray._private.runtime_env.uv_runtime_env_hook import _get_uv_run_cmdline

def run():
    assert _get_uv_run_cmdline(), "this does look like `uv run` to Ray"
    with cluster.join():
        assert not ray.get_runtime_context().runtime_env, ray.get_runtime_context().runtime_env
        print("joined")

sys.exit(logs.run_command(run))
"""


def test_joined_uploads_nothing_under_uv_run(ray_cluster: None, tmp_path: Path) -> None:
    """A shell by the name of uv is what Ray takes for it; as a worker it ends, lest it fork on."""
    (tmp_path / "uv").symlink_to(shutil.which("bash") or "")
    once = tmp_path / "once"  # or each worker would start the driver, should Ray start it by this
    run = f'[ ! -e "{once}" ] || exit 1; touch "{once}"; "{sys.executable}" -c "$CODE"; exit $?\n'
    (tmp_path / "run").write_text(run)
    done = subprocess.run(
        [tmp_path / "uv", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env={**os.environ, "CODE": UNDER_UV, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "joined\n"), done.stderr


JOIN = """
import sys
from segrec_batch.common import logs
from segrec_batch.distributed import cluster

def join():
    with cluster.join():
        print("joined")

cluster._WORKER_SECONDS = float(sys.argv[1])
sys.exit(logs.run_command(join))
"""


@pytest.mark.slow
def test_private_ray_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    raylet = tmp_path / "raylet"
    raylet.write_text("#!/bin/sh\nexec sleep 60\n")
    raylet.chmod(0o700)
    code = f"import ray\nray._private.services.RAYLET_EXECUTABLE = {str(raylet)!r}\n{JOIN}"
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # sockets need a short path
        done = python(code, 5, RAY_TMPDIR=folder)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: Ray cannot be started on this machine: The current node timed")
    assert line.endswith("overloaded; run `segrec doctor` to see what is missing")


@pytest.fixture
def no_workers(tmp_path: Path) -> str:
    """A PYTHONPATH as on a full disk: workers end while Python starts; Ray starts the next."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('default_worker.py' in word for word in sys.orig_argv):\n"
        "    sys.exit('no space left on device')\n"
    )
    return f"{ROOT}:{tmp_path}"


@pytest.mark.slow
def test_private_ray_without_workers_is_an_error(no_workers: str) -> None:
    done = python(JOIN, 5, PYTHONPATH=no_workers, TMPDIR="/tmp")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: Ray has started no worker on this machine within 5 s (")
    assert "no space left on device); look into /tmp/ray-" in line
    logs = Path(line.partition("look into ")[2].partition(" for why")[0])
    assert (logs / "raylet.out").exists()
    shutil.rmtree(logs.parents[2])


@pytest.mark.slow
def test_joined_cluster_without_workers_is_an_error(no_workers: str) -> None:
    """Both the first driver, which Ray keeps waiting, and the second one fail."""
    with head_node(PYTHONPATH=no_workers) as head:
        file = head.folder / "ray_current_cluster"
        while not file.exists():
            time.sleep(0.1)
        for where in ("the node that was joined", "node [0-9.:]+"):
            done = python(JOIN, 6, RAY_ADDRESS=file.read_text().strip(), RAY_AUTH_MODE="disabled")
            assert (done.returncode, done.stdout) == (1, "")
            line = rf"^error: Ray has started no worker on {where} within 6 s; .*\(`ray logs`\)"
            assert re.search(line, done.stderr, re.MULTILINE), done.stderr


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_joined_refuses_ray_client_addresses(address: str) -> None:
    done = python(JOIN, 10, RAY_ADDRESS=address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: RAY_ADDRESS={address}: no address of this kind is supported; give HOST:PORT of "
        "its head (6379, not 10001), or submit the job: ray job submit\n"
    )


def test_ray_init_is_called_in_one_module() -> None:
    """Other calls of ray.init would start one that is open to everybody."""
    starters = {
        str(path.relative_to(PACKAGE)) for path in MODULES if "ray.init(" in path.read_text()
    }
    assert starters == {"distributed/cluster.py"}
