"""What a process does with memory that it frees."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_INT_MAX = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keeps what this process frees for what it allocates next, from now on to its end.

    A step of training frees hundreds of megabytes that the next one takes again, and the system
    clears every page that it hands out: 5 to 10 % of the step. Holes between what stays make the
    peak up to a tenth higher.

    Returns:
        Whether the C library was told so: glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _INT_MAX))
