"""The end of a command: one line for what a user can mend, and for a stop; its exit status."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from eomt.cli.meant import in_our_words
from eomt.errors import InputError, Stopped, one_line, reason, worker_failure
from eomt.files import locked
from eomt.training.slurm import ENDING, batch_job, first_rank, first_task, requeue
from eomt.training.stop import STOPPING, listening, stopped_by

log = logging.getLogger("eomt")

ENDINGS = (InputError, HydraException, OmegaConfBaseException, Stopped)
"""Errors that a user can mend, and stops: they end a run with one line instead of a stack trace."""

# No room on the disk, none in the quota, or a file larger than is allowed.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# The exit status of a program that nobody reads any more.
_UNREAD = 128 + signal.SIGPIPE

# What Hydra writes into a run folder before the run begins, and each rank's log.
_OWN = re.compile(r"\.lock|\.hydra|config\.yaml|(train|eval|check_data|predict)(_(rank|ddp_process)_\d+)?\.log")

# Errors of PyTorch in which a rank cannot talk to another.
_LOST_RANK = re.compile(r"^Dist\w*Error|gloo|nccl|connection (closed|reset)", re.IGNORECASE)

# Errors of libraries that a value of the configuration causes, by the start of their module, and the way out.
_LIBRARY_ERRORS = {
    "torch._inductor": "the network cannot be compiled here ({}): set compile=false",
    "torch._dynamo": "the network cannot be compiled here ({}): set compile=false",
    "wandb": "wandb: {}; run `wandb login`, or leave logger.wandb.offline at true",
    "lightning.fabric.utilities.exceptions": "trainer: {}",
}


@contextlib.contextmanager
def endings(command: str) -> Iterator[None]:
    """End the process with one line where the block raises what a user can mend, or a stop."""
    try:
        yield
    except BrokenPipeError:
        if is_unread():
            sys.exit(_UNREAD)
        raise
    except (*ENDINGS, KeyboardInterrupt) as error:
        _end(in_our_words(error, command))
    except Exception as error:
        if ours := _mendable(error, command):
            _end(ours)
        raise


def explain(error: BaseException) -> str:
    """One line of at most 1000 characters: our own words for bad input behind the error, or its and its root's text."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    ours = [e for e in chain if isinstance(e, InputError)]
    text = str(ours[-1]) if ours else str(error)
    if not ours and str(chain[-1]) not in text:
        text += f" ({chain[-1]})"
    target = re.search(r"Error locating target '([^']+)'", text)
    if target:
        return f"{target[1]} cannot be imported ({chain[-1]}): is its folder in PYTHONPATH?"
    return one_line(text)


def is_unread() -> bool:
    """True if the output goes into a pipe whose reader has gone, as `head` does when it has enough."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _mendable(error: Exception, command: str) -> BaseException | None:
    """An error of the system or of a library as one that a user can mend; None if it is none."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _FULL):
        key = "out" if command in ("predict", "export") else "hydra.run.dir"
        # Opening a file names it, writing into it does not.
        where = f"{error.filename}: " if error.filename is not None else ""
        if error.errno == errno.ENOENT:
            return InputError(f"{where}{error.strerror}")
        way_out = "free some space, or choose" if error.errno in _FULL else "choose"
        return InputError(f"{where}{error.strerror}; {way_out} another folder by {key}=")
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return worker_failure(error)
    if isinstance(error, RuntimeError) and _LOST_RANK.search(f"{type(error).__name__} {error}"):
        with listening() as signals:
            if signals.received:
                return stopped_by(signals.received)
        fault = f"another rank has ended or cannot be reached ({reason(error)[:200]})"
        return InputError(f"{fault}: resume from last.ckpt")
    for module, words in _LIBRARY_ERRORS.items():
        if type(error).__module__.startswith(module):
            return InputError(words.format(reason(error)))
    return None


def _end(error: BaseException) -> NoReturn:
    """Say in one line why the run ended, and exit."""
    sys.exit(last_words(error))


def last_words(error: BaseException) -> int:
    """Say in one line why the run ended; returns the exit status."""
    _remove_empty_folder()
    if not isinstance(error, Stopped | KeyboardInterrupt):
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            # Other ranks pass them on, and requeuing ends this process by them, which has a log or two to close.
            signal.signal(number, signal.SIG_IGN)
    message, status = str(error) or "stopped by Ctrl-C", 130
    if isinstance(error, Stopped):
        status = error.status
        if error.number in ENDING and batch_job():
            message, status = _requeued(message, status)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # Another status would have Lightning or torchrun kill the first rank before it has closed its logs.
        status = 0
    elif first_task():
        # Hydra sets logs up after the arguments are prepared, which may take long, too.
        log.info("%s", message) if log.hasHandlers() else print(message)
    return status


def _remove_empty_folder() -> None:
    """Remove a run folder in which nothing but Hydra's own files was left."""
    if not (first_rank() and HydraConfig.initialized() and HydraConfig.get().runtime.output_dir):
        return
    folder = Path(HydraConfig.get().runtime.output_dir)
    if not folder.is_dir() or folder.resolve() == Path.cwd():
        return
    # Not while another command writes there.
    with contextlib.suppress(InputError, OSError), locked(folder):
        if all(_OWN.fullmatch(path.name) for path in folder.iterdir()):
            shutil.rmtree(folder)


def _requeued(message: str, status: int) -> tuple[str, int]:
    """Put a stopped job back into the queue; returns what to say and the exit status."""
    if not first_task():
        return message, 0  # another status would let srun end the first task before it has requeued
    refusal = requeue()
    if refusal:
        return f"{message} (not requeued: {refusal})", status
    return f"{message.partition(';')[0]}; the job is requeued and resumes from there by itself", 0
