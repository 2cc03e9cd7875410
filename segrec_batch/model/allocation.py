"""How this process keeps the memory that it frees, and what tells that a device has too little."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENAS = -1, -4, -8  # of mallopt(3)


def keep_memory() -> None:
    """Let this process keep the memory that it frees, up to 2 GiB, where its C library is glibc.

    Otherwise the kernel hands out and clears the pages of every large array anew, which takes a
    tenth of the time that VGG-16 takes on a CPU. Arrays of other sizes do not fit into what is
    kept: see `give_back`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENAS, 1)):
            mallopt(parameter, value)


def give_back() -> None:
    """Return to the kernel what `keep_memory` has kept, before arrays of other sizes are needed.

    Otherwise each size leaves holes that no other fills, and memory grows to several times as much.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that a device has too little memory; engines have only words for it."""
    said = ("out of memory", "ALLOC_FAILED", "unable to find an engine")  # an engine of cuDNN
    return isinstance(error, MemoryError) or any(text in str(error) for text in said)
