"""Memory of large tensors that goes back to the system when they are freed."""

import ctypes
import os
import sys

M_MMAP_THRESHOLD = -3
"""The number of the option in glibc's `<malloc.h>`."""
_LARGE = 2**20  # bytes


def return_large_blocks() -> bool:
    """Have the allocator of C give blocks of 1 MiB and more back when they are freed.

    glibc takes blocks of up to 32 MiB from one heap, once it has seen some of that size freed. What
    a backward pass needs lies there between tensors that are long gone, and keeps their room. In a
    mapping of its own each goes back at once.

    Nothing is changed under other allocators, or where MALLOC_MMAP_THRESHOLD_ is set.

    Returns:
        Whether it does so now.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, _LARGE))
