"""Connection to the Ray cluster, and conversion of its errors."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import ray
import ray.util.client
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segrec_batch.common.errors import ClusterError, SegrecError
from segrec_batch.distributed.own_ray import OPTIONS, is_own, on_loopback, own_ray, ray_constant

_ADDED = "\nFailed to apply UDF"  # Ray Data appends this to the text of an error
_ANSWER = 10.0  # seconds for a cluster to take a connection
_WORKER_START = 300.0  # seconds for a first worker on each node
_ENVIRONMENT_START = 1800.0  # the same where the job has an environment to set up before
_USE = "give HOST:PORT of its head (6379, not 10001), or submit the job: ray job submit"
_NOT_JOINED = (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError)


@contextmanager
def join() -> Iterator[None]:
    """Join the Ray cluster of `RAY_ADDRESS` for the block, or start a private one.

    By default Ray would join a cluster that another program has started on this machine, and end
    with it. A cluster that this process has joined already is used and stays joined.

    Raises:
        ClusterError: the cluster cannot be joined, runs another version of Ray, or a node starts no
            worker; Ray itself would try for ever.
    """
    if ray.util.client.ray.is_connected():
        raise ClusterError(f"Ray Client (ray://) is not supported: {_USE}")
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    cluster = _cluster_at(address) if address else own_ray()
    with ExitStack() as stack:
        try:
            # under `uv run` Ray would upload the driver's folder and make a new environment for
            # workers; they must use the packages of their machine
            with ray_constant("RAY_ENABLE_UV_RUN_RUNTIME_ENV", False):
                logs = stack.enter_context(cluster)
        except _NOT_JOINED as error:
            raise ClusterError(_explain(address, error)) from error
        _await_workers(logs)
        yield


@contextmanager
def _cluster_at(address: str) -> Iterator[None]:
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise ClusterError(f"RAY_ADDRESS={address}: no address of this kind is supported; {_USE}")
    local: AbstractContextManager[None] = nullcontext()
    if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
        if is_own(host, int(port)):
            local = on_loopback()
        elif not GcsClient(address=address).get_all_job_info(timeout=_ANSWER):
            _send_scout(address)
    with local:
        ray.init(address=address, **OPTIONS)
    try:
        yield
    finally:
        ray.shutdown()


def _send_scout(address: str) -> None:
    """Join a cluster without jobs from another process, and leave it again.

    The first driver waits for the first worker in a call that nothing can interrupt. Raises
    ClusterError if no worker starts.
    """
    command = [sys.executable, "-c", "import sys, ray; ray.init(sys.argv[1])", address]
    environment = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    try:  # any other error is reported when this process joins
        subprocess.run(command, env=environment, capture_output=True, timeout=_WORKER_START)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ClusterError(_no_worker("the node that was joined", _WORKER_START, None)) from error


def _explain(address: str | None, error: Exception) -> str:
    if not address:
        return (
            f"Ray cannot be started on this machine: {error}; `segrec doctor` says what is "
            "missing here"
        )
    return (
        f"the Ray cluster of RAY_ADDRESS={address} cannot be joined: {error}; give HOST:PORT "
        "of its head (and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, if it wants one), or unset "
        "RAY_ADDRESS to run on this machine alone"
    )


def _await_workers(logs: Path | None) -> None:
    """Wait until each node has started a worker. Raises ClusterError.

    `logs` is the log folder of a private Ray. A node that leaves meanwhile does not count.
    """
    probe = ray.remote(num_cpus=0, max_retries=0)(_answer)
    nodes = {
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"]
    }
    has_environment = bool(ray.get_runtime_context().runtime_env)
    seconds = _ENVIRONMENT_START if has_environment else _WORKER_START
    _, silent = ray.wait(list(nodes), num_returns=len(nodes), timeout=seconds, fetch_local=False)
    if not silent:
        return
    where = "this machine" if logs else "node " + ", ".join(sorted({nodes[ref] for ref in silent}))
    raise ClusterError(_no_worker(where, seconds, logs))


def _no_worker(where: str, seconds: float, logs: Path | None) -> str:
    return (
        f"Ray has started no worker on {where} within {seconds:,.0f} s{_last_words(logs)}; look "
        f"into {logs or 'the logs of that node (`ray logs`)'} for why: a full disk, too little "
        "memory, another Python or packages that are missing there"
    )


def _answer() -> None:
    """Do nothing: the call shows that a worker runs."""


def _last_words(logs: Path | None) -> str:
    """Return the last line that workers wrote to stderr, in brackets."""
    if logs is None:
        return ""
    with suppress(OSError):
        lines = (logs / "raylet.err").read_text(errors="replace").split("\n")
        texts = [line.strip() for line in lines if line.strip()]
        return f" ({texts[-1]:.200})" if texts else ""
    return ""


@contextmanager
def ray_errors() -> Iterator[None]:
    """Raise errors of tasks and stages as they were, and errors of Ray as ClusterError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            # Ray derives a class from both, whose text is a stack trace
            if isinstance(cause, SegrecError) and not isinstance(cause, ray.exceptions.RayError):
                raise type(cause)(str(cause).partition(_ADDED)[0]) from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise ClusterError(f"Ray ended the run: {error}") from error
