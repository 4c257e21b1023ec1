"""Errors that a user can mend, and stops that were asked for: one line, no stack trace."""

from __future__ import annotations

import signal
from collections.abc import Sequence


class InputError(Exception):
    """Bad input: the message is one line that names the file, key or value and the way out.

    The command line prints the message alone, without a stack trace, and exits with status 1.

    Args:
        message: names the first of several faults.
        details: all of them, a line each, where they are known; `check_data.py` prints these.
    """

    def __init__(self, message: str = "", details: Sequence[str] = ()):
        super().__init__(message)
        self.details = tuple(details)


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(text: str) -> str:
    """A message as one line of at most 1000 characters."""
    # A name in a hostile file may hold a terminal's commands.
    text = "".join(mark if mark.isprintable() else "?" for mark in " ".join(text.split()))
    # And it may be of any length; the way out stands at a message's end.
    return text if len(text) <= 1000 else f"{text[:600]} ... {text[-390:]}"


def worker_failure(error: Exception, timeout: float = 0) -> InputError:
    """The line for PyTorch's error about a data worker that has ended, or about a batch that did not come in time.

    Args:
        error: an error that waiting for a batch raised; or a RuntimeError "DataLoader worker ...", which PyTorch
            raises wherever the main process happens to be when a worker ends.
        timeout: the seconds that the batch was waited for.
    """
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if "timed out" in reason:
        return InputError(
            f"no batch of data within {timeout:g} s (data.timeout): the file system or a data worker hangs; "
            "check that the data can be read, then resume from last.ckpt"
        )
    if "ancdata" in reason or "Too many open files" in reason:
        return InputError(
            f"data workers need more open files than the system allows ({reason}): raise the limit (ulimit -n), or "
            "take fewer data.num_workers or a smaller data.eval_batch_size; resume from last.ckpt"
        )
    return InputError(
        f"a data worker has ended ({reason}): fewer data.num_workers or a smaller data.batch_size take less memory; "
        "resume from last.ckpt"
    )


class Stopped(BaseException):
    """The run was ended by a signal, and its state is saved.

    Not an Exception, like KeyboardInterrupt: it may come anywhere, also within code that catches every Exception.

    Args:
        message: the way to resume.
        number: the signal's number; the command line exits with status 128 + number, 130 for Ctrl-C.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT):
        super().__init__(message)
        self.number = number
        self.status = 128 + number
