"""The Ray cluster, joined for the time of a block, and its errors as our own."""

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

_ADDED = "\nFailed to apply UDF"  # by Ray Data, to the text of an error: how it retries
_ANSWER = 10.0  # seconds for a cluster to take a connection
_WORKER_START = 300.0  # seconds for a first worker on each node
_ENVIRONMENT_START = 1800.0  # the same where the job has an environment to set up before
_USE = "give HOST:PORT of its head (6379, not 10001), or submit the job: ray job submit"
_NOT_JOINED = (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError)


@contextmanager
def joined() -> Iterator[None]:
    """The Ray cluster that `RAY_ADDRESS` names, else one of its own, for the time of a run.

    Left to itself, Ray would join one that another program has started on this machine, and go
    down with it. A cluster that this process has joined already is used, and left as it is.

    Raises:
        ClusterError: it cannot be joined, runs another version of Ray, or a node of it starts no
            worker. Left to itself, Ray tries to start workers for ever.
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
            # as `uv run` has Ray do it, workers would get the driver's folder, uploaded, and an
            # environment made anew; they are to take the packages of their machine
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
    """Join a cluster that nobody has joined before from another process, and leave it again.

    The first that joins is kept waiting for the first worker, in a call that nothing can interrupt.
    Raises ClusterError if there is none.
    """
    command = [sys.executable, "-c", "import sys, ray; ray.init(sys.argv[1])", address]
    environment = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    try:  # what else may be wrong will be said of the process that comes after it
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
    """Wait until each node has started a worker; of a Ray of our own, `logs` is where it logs.

    A node that goes meanwhile does not count. Raises ClusterError.
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
    """Show that there is a worker."""


def _last_words(logs: Path | None) -> str:
    """Return what workers said last on stderr before they ended, on one line."""
    if logs is None:
        return ""
    with suppress(OSError):
        lines = (logs / "raylet.err").read_text(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f" ({said[-1]:.200})" if said else ""
    return ""


@contextmanager
def ray_errors() -> Iterator[None]:
    """Errors of tasks and stages as they were raised; those of Ray itself as ClusterError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            # Ray makes a class of its own that is both, with a stack trace for its text
            if isinstance(cause, SegrecError) and not isinstance(cause, ray.exceptions.RayError):
                raise type(cause)(str(cause).partition(_ADDED)[0]) from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise ClusterError(f"Ray ended the run: {error}") from error
