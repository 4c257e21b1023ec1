"""Repeated reads after passing errors of a file system."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

from eomt.errors import InputError

PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further attempt."""

# Errors of network file systems and overloaded disks that pass. A missing file stays missing.
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
    """Return `read(index)`, attempted again after each of PAUSES if the operating system's error may pass.

    Raises:
        InputError: the last attempt's; one of another cause at once.
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
