"""Connect to the Ray cluster or start a private Ray, and convert errors of Ray.

A private Ray runs on this machine and ends with the run; other users cannot reach it.
"""

import errno
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
import ray.util.client
from ray._private import ray_constants
from ray._private.services import resolve_ip_for_localhost
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationTokenLoader,
    Config,
    GcsClient,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segrec_batch.common.errors import ClusterError, SegrecError
from segrec_batch.common.host import usable_cores

_UDF_SUFFIX = "\nFailed to apply UDF"  # Ray Data appends this to the text of an error
_CONNECT_SECONDS = 10.0  # seconds until a cluster must accept a connection
_WORKER_SECONDS = 300.0  # seconds until each node must have started a worker
_ENVIRONMENT_SECONDS = 1800.0  # the same if Ray has to set up an environment for the job first
_INIT_OPTIONS: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
_ADDRESS_HINT = "give HOST:PORT of its head (6379, not 10001), or submit the job: ray job submit"
_JOIN_ERRORS = (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError)


@contextmanager
def join() -> Iterator[None]:
    """Join the Ray cluster at `RAY_ADDRESS` for the block, or start a private one.

    Without an address, Ray itself would join a cluster that another program has started on this
    machine. A cluster that this process has joined already is used and stays joined.

    Raises:
        ClusterError: the cluster cannot be joined, runs another version of Ray, or a node starts no
            worker. Ray itself would wait without a limit.
    """
    if ray.util.client.ray.is_connected():
        raise ClusterError(f"Ray Client (ray://) is not supported: {_ADDRESS_HINT}")
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    cluster = _join_cluster(address) if address else _run_private_ray()
    with ExitStack() as stack:
        try:
            # under `uv run` Ray would upload the driver's folder and make a new environment for
            # workers; they must use the packages of their machine
            with _set_ray_constant("RAY_ENABLE_UV_RUN_RUNTIME_ENV", False):
                logs = stack.enter_context(cluster)
        except Exception as error:
            # a bare Exception says that a node of Ray has not started within 30 s
            if isinstance(error, _JOIN_ERRORS) or type(error) is Exception:
                raise ClusterError(_describe_join_error(address, error)) from error
            raise
        _await_workers(logs)
        yield


@contextmanager
def _join_cluster(address: str) -> Iterator[None]:
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS={address}: no address of this kind is supported; {_ADDRESS_HINT}"
        )
    address_rule: AbstractContextManager[None] = nullcontext()
    if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        if _is_private(host, int(port)):
            address_rule = _use_loopback()
        elif not GcsClient(address=address).get_all_job_info(timeout=_CONNECT_SECONDS):
            _join_in_subprocess(address)
    with address_rule:
        ray.init(address=address, **_INIT_OPTIONS)
    try:
        yield
    finally:
        ray.shutdown()


def _join_in_subprocess(address: str) -> None:
    """Join a cluster without jobs from another process, and leave it again.

    The first driver of a cluster waits for the first worker in a call that cannot be interrupted;
    another process can be killed.

    Raises:
        ClusterError: no worker starts.
    """
    command = [sys.executable, "-c", "import sys, ray; ray.init(sys.argv[1])", address]
    environment = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    try:  # any other error is reported when this process joins
        subprocess.run(command, env=environment, capture_output=True, timeout=_WORKER_SECONDS)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            _describe_missing_worker("the node that was joined", _WORKER_SECONDS, None)
        ) from error


def _describe_join_error(address: str | None, error: Exception) -> str:
    reason = str(error).removesuffix(".")
    if not address:
        return (
            f"Ray cannot be started on this machine: {reason}; run `segrec doctor` to see what "
            "is missing"
        )
    return (
        f"the Ray cluster of RAY_ADDRESS={address} cannot be joined: {reason}; give HOST:PORT "
        "of its head (and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, if it needs one), or unset "
        "RAY_ADDRESS to run on this machine alone"
    )


def _await_workers(logs: Path | None) -> None:
    """Wait until each node has started a worker. Raises ClusterError.

    `logs` is the log folder of a private Ray. Nodes that leave the cluster meanwhile are ignored.
    """
    probe = ray.remote(num_cpus=0, max_retries=0)(_do_nothing)
    nodes = {
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"]
    }
    has_environment = bool(ray.get_runtime_context().runtime_env)
    seconds = _ENVIRONMENT_SECONDS if has_environment else _WORKER_SECONDS
    _, pending = ray.wait(list(nodes), num_returns=len(nodes), timeout=seconds, fetch_local=False)
    if not pending:
        return
    where = "this machine" if logs else "node " + ", ".join(sorted({nodes[ref] for ref in pending}))
    raise ClusterError(_describe_missing_worker(where, seconds, logs))


def _describe_missing_worker(where: str, seconds: float, logs: Path | None) -> str:
    return (
        f"Ray has started no worker on {where} within {seconds:,.0f} s{_read_last_error(logs)}; "
        f"look into {logs or 'the logs of that node (`ray logs`)'} for why: a full disk, too "
        "little memory, another Python or packages that are missing there"
    )


def _do_nothing() -> None:
    """Do nothing; a call that returns shows that a worker runs."""


def _read_last_error(logs: Path | None) -> str:
    """Return the last line that workers wrote to stderr, in brackets; empty if there is none."""
    if logs is None:
        return ""
    with suppress(OSError):
        lines = (logs / "raylet.err").read_text(errors="replace").split("\n")
        texts = [line.strip() for line in lines if line.strip()]
        return f" ({texts[-1]:.200})" if texts else ""
    return ""


@contextmanager
def _run_private_ray() -> Iterator[Path]:
    """Start a private Ray for the block; yield the folder of its logs.

    Its servers listen on the loopback interface only and require a token that is generated for this
    run. Driver and workers know the token; the environment of this process does not keep it. Files
    and sockets of Ray lie in a folder that only this user can enter. The folder stays, for its
    logs, if Ray does not start or the block raises ClusterError.

    Raises:
        Exception: any error of `ray.init`.
    """
    base = tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR") or None)
    has_failed = True
    try:
        _start_private_ray(Path(base, "r"))
        has_failed = False
        yield Path(base, "r", "session_latest", "logs")
    except ClusterError:
        has_failed = True
        raise
    finally:
        ray.shutdown()
        read_authentication()
        if not has_failed:
            shutil.rmtree(base, ignore_errors=True)


def _start_private_ray(folder: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with _set_environment(**token), _use_loopback():
        read_authentication()
        ray.init(
            address="local",
            # Ray itself counts cores that a container's quota or CPU affinity takes away
            num_cpus=usable_cores(),
            include_dashboard=False,
            _temp_dir=str(folder),  # Ray makes this folder accessible to all users
            # otherwise `ray.init` waits for the first worker without a limit and ignores Ctrl-C
            _system_config={"prestart_worker_first_driver": False},
            **_INIT_OPTIONS,
        )


def _is_private(host: str, port: int) -> bool:
    """Return whether the Ray at this address listens on loopback only, as a private one does.

    `ray.init` replaces 127.0.0.1 by the external address of this machine, and would try for a
    minute to connect there.
    """
    external = resolve_ip_for_localhost(host)
    if external == host:
        return False
    with socket.socket(socket.AF_INET6 if ":" in external else socket.AF_INET) as probe:
        return probe.connect_ex((external, port)) == errno.ECONNREFUSED


def read_authentication() -> None:
    """Make Ray read authentication mode and token from the environment again."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _use_loopback() -> AbstractContextManager[None]:
    """Make Ray use 127.0.0.1 as the address of this machine, as it does on Windows."""
    return _set_ray_constant("ENABLE_RAY_CLUSTER", False)


@contextmanager
def _set_ray_constant(name: str, value: bool) -> Iterator[None]:
    """Change a constant of Ray inside the block.

    Ray reads it from the environment when it is imported, possibly before this package.
    """
    previous = getattr(ray_constants, name)
    setattr(ray_constants, name, value)
    try:
        yield
    finally:
        setattr(ray_constants, name, previous)


@contextmanager
def _set_environment(**variables: str) -> Iterator[None]:
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def convert_ray_errors() -> Iterator[None]:
    """Raise our errors of tasks and stages unwrapped, and other errors of Ray as ClusterError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            # an error of a class that Ray derives from both has a stack trace as its text
            if isinstance(cause, SegrecError) and not isinstance(cause, ray.exceptions.RayError):
                raise type(cause)(str(cause).partition(_UDF_SUFFIX)[0]) from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise ClusterError(f"Ray ended the run: {error}") from error
