"""Reading again what a file system would not give at once."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

from eomt.errors import InputError

PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further attempt."""

# What network file systems and overloaded disks answer for a while. A missing file stays missing.
_PASSING = {
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.ENFILE,
    errno.EMFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
}


def read_with_retry(read: Callable[[int], Any], index: int) -> Any:
    """What `read(index)` returns, attempted again after each pause where the operating system's error may pass.

    Raises:
        InputError: the last attempt's, or at once one of another cause.
    """
    for pause in PAUSES:
        try:
            return read(index)
        except InputError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in _PASSING:
                raise
        time.sleep(pause)
    return read(index)
