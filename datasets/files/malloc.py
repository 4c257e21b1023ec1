"""How the C library of a worker process deals with the memory of images."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h; and the most that it takes as the first of the two.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 * 2**20


def keep_freed_memory() -> None:
    """Reuse it. As it comes, glibc gives much of it back to the system after each image and takes it anew, zeroed page
    by page. A process may keep 64 MiB more than it uses. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)
