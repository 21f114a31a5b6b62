"""What the C library keeps of memory that was freed."""

import ctypes
import sys

_MMAP_THRESHOLD = -3  # of mallopt
_LARGE = 16 * 2**20


def return_large_arrays() -> None:
    """Arrays of 16 MiB and more are given back to the system once they are freed, in this process from now on.

    glibc raises the size from which it does so to 32 MiB as soon as such arrays come and go, and takes what is smaller
    from heaps that other threads' small arrays keep from shrinking: a pass over many classes grew with its blocks.
    Does nothing with other C libraries.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _LARGE)
