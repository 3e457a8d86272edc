"""What the C library does with memory that is no longer used."""

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 2**31 - 1, 2**30


def keep_freed_memory() -> None:
    """Let this process use the memory of its last step for the next one.

    PyTorch asks for the tensors of each step anew on a CPU. glibc gives those of over 32 MB back to the system at once, and
    the system clears each page when it is touched again: a quarter of a training step of MobileNet V2. In other threads
    than the first one it needs MALLOC_ARENA_MAX=1 in the environment too, since their memory is given back in any case.
    Where there is another C library, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
