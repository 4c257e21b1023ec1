"""Repeated reads after passing errors of a file system."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

from eomt.errors import InputError

PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further attempt."""

# A missing file stays missing; other errors of network file systems and overloaded disks may pass.
_LASTING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


def read_with_retry(read: Callable[[int], Any], index: int) -> Any:
    """Return `read(index)`, attempted again after each of PAUSES if the operating system's error may pass.

    Raises:
        InputError: the last attempt's; one of another cause at once.
    """
    for pause in PAUSES:
        try:
            return read(index)
        except InputError as error:
            number = getattr(error.__cause__, "errno", None)  # Pillow's OSErrors have none
            if number is None or number in _LASTING:
                raise
        time.sleep(pause)
    return read(index)
