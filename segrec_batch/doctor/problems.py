"""Problems of a machine, derived from its facts, and their remedies."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from segrec_batch.common.host import SHARED_MEMORY
from segrec_batch.doctor.facts import Facts
from segrec_batch.images.confinement import Confinement

_GIB = 2**30
# Of Ray: its object store takes this share of memory, so many bytes even without shared memory
_STORE_SHARE, _STORE_FLOOR = 0.3, 10**10
_FULL = 0.95  # share of a disk beyond which Ray writes nothing there
_LITTLE = 2 * _GIB  # of a disk: the temporary files of one run
_SOCKET_PATH = 107  # bytes, the longest that Linux allows
_RAY_SOCKET = "/ray-8c3h4r5s/r/session_2026-11-28_16-46-21_102401_1234567/sockets/plasma_store"
# Peak memory of a run on one machine, docs/operations.md: driver, an actor, any other worker
_DRIVER, _ACTOR, _WORKER = int(0.9 * _GIB), int(2.8 * _GIB), int(0.3 * _GIB)
_WITH_BF16 = 8.0  # compute capability of the first GPUs that compute in bfloat16


@dataclass(frozen=True)
class Problem:
    """A problem and its remedy.

    Attributes:
        code: kind of problem; stable.
        level: `warning`, or `error` if no run can work.
        message: text; may change.
    """

    code: str
    level: str
    message: str


def find_problems(facts: Facts) -> Iterator[Problem]:
    """Yield the problems of a machine with these facts."""
    yield from _shared_memory_problems(facts)
    yield from _temporary_folder_problems(facts)
    yield from _capacity_problems(facts)
    yield from _engine_problems(facts)
    yield from _gpu_problems(facts)
    yield from _decoder_problems(facts.decoder)
    yield from _environment_problems(facts.environment)


def _shared_memory_problems(facts: Facts) -> Iterator[Problem]:
    shared, wanted = facts.shared_memory, _STORE_SHARE * facts.memory.usable
    if shared is None:
        text = (
            f"{SHARED_MEMORY} does not exist, and Ray cannot start without it: mount a tmpfs there"
        )
        yield Problem("shared-memory-missing", _if_ray_runs_here(facts), text)
        return
    wanted = min(wanted, max(_STORE_FLOOR, _FULL * shared.free))
    if shared.free < wanted:
        text = (
            f"{SHARED_MEMORY} has {size(shared.free)} free, and Ray wants {size(wanted)}: it keeps "
            "its objects on disk instead, slowly. Give a container more by "
            f"--shm-size={max(round(1.1 * wanted / 1e9), 1)}g, a pod by an emptyDir of medium "
            "Memory there"
        )
        yield Problem("shared-memory-small", "warning", text)


def _if_ray_runs_here(facts: Facts) -> str:
    return "warning" if "RAY_ADDRESS" in facts.environment else "error"


def _temporary_folder_problems(facts: Facts) -> Iterator[Problem]:
    folder = facts.temporary_folder
    if folder is None:
        text = "no folder of temporary files can be written to: set TMPDIR to one"
        yield Problem("temporary-folder-missing", "error", text)
        return
    if folder.free < max(_LITTLE, (1 - _FULL) * folder.size):
        text = (
            f"{folder.path} has {size(folder.free)} free of {size(folder.size)}. Temporary files "
            f"of a run go there, and Ray writes none to a disk that is {_FULL:.0%} full: free "
            "some space, or set TMPDIR to a folder on another disk"
        )
        yield Problem("temporary-folder-full", "warning", text)
    excess = len(os.fsencode(folder.path + _RAY_SOCKET)) - _SOCKET_PATH
    if excess > 0:
        text = (
            f"the path {folder.path} is {excess} bytes too long for Ray's sockets, and Ray cannot "
            "start: set TMPDIR to a shorter one"
        )
        yield Problem("temporary-folder-path", _if_ray_runs_here(facts), text)


def _capacity_problems(facts: Facts) -> Iterator[Problem]:
    limits = {
        "cgroup": " (a CPU quota allows no more; raise that of the container)",
        "affinity": " (its CPU affinity allows no more; see taskset)",
        None: "",
    }
    if facts.cores.usable == 1:
        text = "this process may use 1 core, which the model, decoding and Ray share"
        yield Problem("one-core", "warning", text + limits[facts.cores.limit])
    actors = max(len(facts.gpus), 1)
    others = 2 * facts.cores.usable if facts.gpus else 2
    needed = _DRIVER + actors * _ACTOR + others * _WORKER
    if facts.memory.usable < needed:
        text = (
            f"an indexing run takes up to {size(needed)} of memory, with {actors} × the model and "
            f"{others} × decoding, and this process may use {size(facts.memory.usable)}"
            f"{' (the limit of its control group)' if facts.memory.limit else ''}: Ray kills "
            "workers when memory is short. Take more memory, or lower --batch-size"
        )
        yield Problem("little-memory", "warning", text)


def _engine_problems(facts: Facts) -> Iterator[Problem]:
    if all(rate.images_per_second is None for rate in facts.engines):
        reasons = dict.fromkeys(f"{rate.engine}: {rate.reason}" for rate in facts.engines)
        yield Problem("no-engine", "error", f"no engine can run a model: {'; '.join(reasons)}")
    for rate in facts.engines:
        if rate.fails:
            text = (
                f"{rate.engine} fails in {rate.precision}: {rate.reason}. Install the package "
                "anew, or choose another --engine or --precision"
            )
            yield Problem("engine-fails", "warning", text)


def _gpu_problems(facts: Facts) -> Iterator[Problem]:
    for gpu in facts.gpus:
        if gpu.problem:
            text = f"{gpu.name}: {gpu.problem}. Update its driver, or say --device cpu"
            yield Problem("gpu-unusable", "warning", text)
        elif float(gpu.compute_capability) < _WITH_BF16:
            text = (
                f"{gpu.name} has compute capability {gpu.compute_capability} and no arithmetic in "
                "bfloat16: say --precision float32"
            )
            yield Problem("gpu-without-bf16", "warning", text)
    if facts.has_nvidia_driver and not facts.gpus:
        hidden = facts.environment.get("CUDA_VISIBLE_DEVICES")
        reason = f"CUDA_VISIBLE_DEVICES={hidden}" if hidden else facts.gpu_notice
        text = (
            f"there is an NVIDIA driver, but torch sees no GPU{reason and f' ({reason})'}: install "
            "a torch for the CUDA of this driver, or say --device cpu"
        )
        yield Problem("gpu-unseen", "warning", text)


def _decoder_problems(decoder: Confinement | None) -> Iterator[Problem]:
    if decoder is None:
        text = "the process that decodes images does not start; its message stands above"
        yield Problem("decoder-fails", "error", text)
    elif not decoder.seccomp:
        text = (
            "an image that takes its decoder over can do more here than compute: "
            f"{'; '.join(decoder.gaps)}. Index images of strangers on Linux 5.13 or newer, x86_64 "
            "or aarch64, in a container whose profile allows seccomp and Landlock, as the default "
            "ones of Docker and Kubernetes do"
        )
        yield Problem("decoder-unconfined", "warning", text)


def _environment_problems(environment: Mapping[str, str]) -> Iterator[Problem]:
    if "://" in environment.get("RAY_ADDRESS", ""):
        text = (
            "RAY_ADDRESS is one of Ray Client or of a web server, which runs do not join: set it "
            "to HOST:PORT of the head (port 6379, not 10001), or use `ray job submit`"
        )
        yield Problem("ray-client", "error", text)
    elif "RAY_ADDRESS" in environment:
        text = (
            "RAY_ADDRESS is set: runs join that cluster, while these facts are of this machine "
            "only. Run `segrec doctor` on its nodes, or unset it to run here"
        )
        yield Problem("ray-address", "warning", text)
    if threads := environment.get("OMP_NUM_THREADS"):
        text = (
            f"OMP_NUM_THREADS={threads}: libraries take that many threads in each process, "
            "whatever its share of the cores is. Unset it unless that is meant"
        )
        yield Problem("omp-threads", "warning", text)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if limit := environment.get(name):
            text = (
                f"{name}={limit}: torch uses no newer instructions of the processor than these. "
                "Unset it unless that is meant"
            )
            yield Problem("onednn-capped", "warning", text)


def size(count: float) -> str:
    """Return a number of bytes as text, in MiB or GiB.

    >>> [size(n) for n in (0, 64 * 2**20, 1.5 * 2**30, 240 * 2**30, 3 * 2**40)]
    ['0 MiB', '64 MiB', '1.5 GiB', '240 GiB', '3,072 GiB']
    """
    gibibytes = count / _GIB
    if gibibytes < 1:
        return f"{count / 2**20:.0f} MiB"
    return f"{gibibytes:.1f} GiB" if gibibytes < 100 else f"{gibibytes:,.0f} GiB"
