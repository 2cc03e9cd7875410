"""Irrevocable limits of this process: files, network, processes, memory, CPU time.

The kernel enforces them by several mechanisms:

resource limits   memory, CPU time, no new descriptors, processes or threads, no file content
capabilities      none, also for root
no_new_privs      programs with the set-user-ID bit gain no rights
Landlock          no path can be opened, created, removed or executed; no TCP; no signals to others
seccomp           a list of some 30 system calls; every other one "does not exist" (ENOSYS)

No package is used: packages for Landlock or seccomp are first releases, need libseccomp.so or
Linux 6.7, or do not filter calls of the x32 ABI. The filter takes 50 lines here.
"""

import ctypes
import errno
import os
import resource
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # Landlock's calls on every architecture
_CREATE_RULESET_VERSION = 1
# Landlock: file rights by the ABI that added them; TCP (ABI 4); sockets and signals (ABI 6)
_FILE_RIGHTS = {1: 0x1FFF, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NETWORK_RIGHTS = {4: 0b11}
_SCOPES = {6: 0b11}

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # instructions of classic BPF
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.ENOSYS
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_PROT_EXEC = 4

# On x86_64 and on aarch64. Only what works on memory, on time, and on descriptors that are open
_SYSTEM_CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "setitimer": (38, 103),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "sysinfo": (99, 179),  # size of the memory, for qsort
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
_TO_ITSELF = {"kill": (62, 129), "tgkill": (234, 131)}  # abort() is a signal
_NOT_EXECUTABLE = {"mmap": (9, 222), "mprotect": (10, 226)}  # refused: executable memory
_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""Column in the tables above, AUDIT_ARCH_*, the number of seccomp(2)."""


@dataclass(frozen=True)
class Confinement:
    """Restrictions that the kernel enforces on a confined process.

    Attributes:
        landlock: Version of the Landlock ABI; None if it is not in force.
        seccomp: The filter of system calls is in force.
        gaps: The reason for each restriction that is not in force.
    """

    landlock: int | None
    seccomp: bool
    gaps: tuple[str, ...] = ()


def confine(memory: int, seconds: int) -> Confinement:
    """Confine this process to its open descriptors and its memory.

    The process must have one thread: Landlock and capabilities apply to a thread.

    Args:
        memory: Bytes of address space in addition to those in use.
        seconds: CPU time after which the kernel kills the process.

    Returns:
        The restrictions in force, besides those that always are: resource limits, no capabilities
        and no_new_privs.

    Raises:
        OSError: One of the restrictions that every kernel supports fails.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(OSError):  # killed first when memory is short
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit(resource.RLIMIT_AS, _address_space() + memory)
    _limit(resource.RLIMIT_CPU, seconds)
    _call(libc.prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0)  # no core dumps
    _call(libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    landlock, gaps = None, []
    try:
        landlock = _forbid_paths(libc)
    except OSError as error:
        gaps.append(f"no Landlock: {_reason(error)}")
    for kind in ("CORE", "FSIZE", "NOFILE", "NPROC"):
        _limit(getattr(resource, f"RLIMIT_{kind}"), 0)
    _drop_capabilities(libc)
    try:
        _filter_system_calls(libc)
    except OSError as error:
        gaps.append(f"no seccomp: {_reason(error)}")
    return Confinement(landlock, not any("seccomp" in gap for gap in gaps), tuple(gaps))


def _call(function: "ctypes._NamedFuncPointer", *arguments: object) -> int:
    """Call a function of the C library. Raises OSError if it returns -1."""
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    function.restype = ctypes.c_long
    result = int(function(*plain))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _reason(error: OSError) -> str:
    known = {
        errno.ENOSYS: "this kernel is without",
        errno.EOPNOTSUPP: "it is switched off in this kernel",
        errno.EINVAL: "this kernel is without",
        errno.EPERM: "it is forbidden here",  # by the seccomp profile of a container
        errno.EACCES: "it is forbidden here",
    }
    return known.get(error.errno or 0, error.strerror or str(error))


def _address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def _limit(kind: int, most: int) -> None:
    """Lower a hard limit to `most`; keep a lower one."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call(libc.capset, ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def _forbid_paths(libc: ctypes.CDLL) -> int:
    """Forbid all accesses that Landlock handles; return the version of its ABI."""
    abi = _call(libc.syscall, _CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    handled = [
        sum(bits for since, bits in rights.items() if since <= abi)
        for rights in (_FILE_RIGHTS, _NETWORK_RIGHTS, _SCOPES)
    ]
    fields = [bits for bits in handled if bits]  # older kernels refuse a longer structure
    rules = (ctypes.c_uint64 * len(fields))(*fields)
    size = ctypes.sizeof(rules)
    descriptor = _call(libc.syscall, _CREATE_RULESET, ctypes.byref(rules), size, 0)
    try:
        _call(libc.syscall, _RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)
    return abi


def _filter_system_calls(libc: ctypes.CDLL) -> None:
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        raise OSError(0, f"there is no list of system calls for {os.uname().machine}")
    column, architecture, seccomp = machine
    program = b"".join(_program(column, architecture, os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = _Filter(len(program) // 8, ctypes.addressof(buffer))
    flags = _SECCOMP_FILTER_FLAG_TSYNC
    arguments = (_SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(filter_))
    if thread := _call(libc.syscall, seccomp, *arguments):
        raise OSError(0, f"thread {thread} cannot be filtered")


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))


def _program(column: int, architecture: int, pid: int) -> Iterator[bytes]:
    """Yield the instructions that allow the listed system calls and refuse all others.

    A call in the numbering of another architecture ends the process; numbers of the x32 ABI are not
    on the list.
    """
    yield _instruction(_LOAD, _ARCHITECTURE)
    yield _instruction(_EQUAL, architecture, skip_if=1)
    yield _instruction(_RETURN, _KILL)
    yield _instruction(_LOAD, _NUMBER)
    for numbers in _SYSTEM_CALLS.values():
        yield _instruction(_EQUAL, numbers[column], skip_else=1)
        yield _instruction(_RETURN, _ALLOW)
    for numbers in _TO_ITSELF.values():
        yield _instruction(_EQUAL, numbers[column], skip_else=4)
        yield _instruction(_LOAD, _ARGUMENTS)
        yield _instruction(_EQUAL, pid, skip_else=1)
        yield _instruction(_RETURN, _ALLOW)
        yield _instruction(_RETURN, _REFUSE)
    for numbers in _NOT_EXECUTABLE.values():
        yield _instruction(_EQUAL, numbers[column], skip_else=4)
        yield _instruction(_LOAD, _ARGUMENTS + 2 * 8)
        yield _instruction(_ANY_BIT, _PROT_EXEC, skip_if=1)
        yield _instruction(_RETURN, _ALLOW)
        yield _instruction(_RETURN, _REFUSE)
    yield _instruction(_RETURN, _REFUSE)


def _instruction(code: int, value: int, skip_if: int = 0, skip_else: int = 0) -> bytes:
    """Return a struct sock_filter; both architectures are little-endian."""
    return struct.pack("<HBBI", code, skip_if, skip_else, value)
