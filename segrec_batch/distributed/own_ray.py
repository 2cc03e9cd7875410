"""A private Ray on this machine that ends with the run and that nobody else can reach."""

import errno
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.services import resolve_ip_for_localhost
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from segrec_batch.common.errors import ClusterError
from segrec_batch.common.host import usable_cores

OPTIONS: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}


@contextmanager
def own_ray() -> Iterator[Path]:
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
        _start(Path(base, "r"))
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


def _start(folder: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with _environment(**token), on_loopback():
        read_authentication()
        ray.init(
            address="local",
            # Ray itself counts cores that a container's quota or CPU affinity takes away
            num_cpus=usable_cores(),
            include_dashboard=False,
            _temp_dir=str(folder),  # Ray makes this folder accessible to all users
            # otherwise `ray.init` waits for the first worker without a limit and ignores Ctrl-C
            _system_config={"prestart_worker_first_driver": False},
            **OPTIONS,
        )


def is_own(host: str, port: int) -> bool:
    """Return whether the Ray at this address listens on loopback only, as `own_ray` does.

    Ray replaces 127.0.0.1 by the address by which other machines reach this one, and would try for
    a minute to connect there.
    """
    outside = resolve_ip_for_localhost(host)
    if outside == host:
        return False
    with socket.socket(socket.AF_INET6 if ":" in outside else socket.AF_INET) as probe:
        return probe.connect_ex((outside, port)) == errno.ECONNREFUSED


def read_authentication() -> None:
    """Make Ray read mode and token from the environment again; by itself it does so once."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def on_loopback() -> AbstractContextManager[None]:
    """Make Ray use 127.0.0.1 as the address of this machine, as it does on Windows."""
    return ray_constant("ENABLE_RAY_CLUSTER", False)


@contextmanager
def ray_constant(name: str, value: bool) -> Iterator[None]:
    """Change a constant of Ray inside the block.

    Ray reads it from the environment when it is imported, possibly before this package.
    """
    before = getattr(ray_constants, name)
    setattr(ray_constants, name, value)
    try:
        yield
    finally:
        setattr(ray_constants, name, before)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
