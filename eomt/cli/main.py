"""The command line that the entry points share: Hydra, the check of values, and errors in one line.

It imports nothing heavy, so that a mistyped key or value is reported at once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import logging
import os
import re
import select
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eomt.cli.arguments import FindLayout, key_of, prepared
from eomt.cli.check import check_roots, check_settings, plain
from eomt.cli.folders import run_id
from eomt.cli.help import help_of, in_our_words
from eomt.cli.meanings import CONFIGS
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


def command(name: str, function: Callable[[DictConfig], None], find_layout: FindLayout | None = None) -> None:
    """Run a command line: compose the configuration, call `function` with it, and end with a clear line.

    Exit status: 0, also when a SLURM job is requeued; 1 for bad input; 130 when Ctrl-C stopped the run, 138 when
    SIGUSR1 did, 143 when SIGTERM did.

    Args:
        name: the name of the configuration in configs/.
        function: the command, called with the configuration.
        find_layout: finds out what `data.root` is where that decides, see `eomt.cli.arguments.with_layout`.
    """
    # Read by libraries when they are imported, which `function` does. Threads of OpenMP that spin while they wait
    # slow each other down on a CPU that is shared with data workers.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # No reports to the makers of packages; and MLflow may write files where no server is named.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A log that cannot be written, for want of space or of a reader, is no reason for stack traces.
    logging.raiseExceptions = False
    # Otherwise Hydra prints errors itself.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Pillow's, on damaged EXIF blocks, which are no orientation, and on large photos, which are meant.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # One name for all that a process does, such as a sweep.
    OmegaConf.register_new_resolver("run_id", functools.cache(run_id), replace=True)
    # Importing takes longer than anything before training: a signal then ends the run in order, too.
    try:
        with listening(_last_words):
            _run(name, function, find_layout)
    finally:
        # Only logs are left to close, also while SLURM ends a job that is requeued.
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        if _is_unread():
            # What is left to print, Python would print at its end, and say that it cannot.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def checked(name: str, cfg: DictConfig) -> dict[str, Any]:
    """A command's configuration as plain values, each of its type.

    Raises:
        InputError: see `check_settings` and `check_roots`.
    """
    settings = plain(cfg)
    check_settings(name, settings)
    check_roots(settings)
    return settings


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


def _run(name: str, function: Callable[[DictConfig], None], find_layout: FindLayout | None = None) -> None:
    job = _job(function)
    try:
        asked = [place for place, word in enumerate(sys.argv) if word in ("-h", "--help")]
        if asked:
            word = (*sys.argv[asked[0] + 1 :], "")[0]
            print(help_of(name, function.__globals__["__doc__"], "" if re.search("[-=]", word) else word))
            return
        with listening() as signals:
            signals.unblock()
        _import_own()
        sys.argv[1:], config = prepared(name, sys.argv[1:], find_layout), name
        if name == "train" and "ckpt" in map(key_of, sys.argv[1:]):
            from eomt.cli.resume import resumed

            sys.argv[1:], config = resumed(sys.argv[1:])
        if not first_task():
            rank = os.environ["SLURM_PROCID"]
            sys.argv += [f"hydra.job.name={name}_rank_{rank}"]
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config)(job)()
    except (*ENDINGS, KeyboardInterrupt) as error:
        _end(in_our_words(error, name))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            sys.exit(_UNREAD)
        if error.filename is None and error.errno not in _FULL:
            raise
        key = "out" if name in ("predict", "export") else "hydra.run.dir"
        # Opening a file names it, writing into it does not.
        where = f"{error.filename}: " if error.filename is not None else ""
        way_out = "free some space, or choose" if error.errno in _FULL else "choose"
        _end(InputError(f"{where}{error.strerror}; {way_out} another folder by {key}="))


def _is_unread() -> bool:
    """True if the output goes into a pipe whose reader has gone, as `head` does when it has enough."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _import_own() -> None:
    """Import the modules that the environment names, such as one that registers a backbone with timm."""
    for module in filter(None, os.environ.get("EOMT_IMPORT", "").split(",")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"EOMT_IMPORT={module}: {error}; is its folder in PYTHONPATH?") from error


def _job(function: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """`function`, whose errors end here, so that Hydra adds no lines of its own."""

    @functools.wraps(function)
    def job(cfg: DictConfig) -> None:
        if not first_rank():
            log.setLevel(logging.WARNING)  # the first process says it for all
        # A process that a launcher of Hydra has started has no handlers yet.
        with listening(_last_words) as signals:
            try:
                signals.unblock()
                function(cfg)
            except (*ENDINGS, KeyboardInterrupt) as error:
                _end(error)
            except Exception as error:
                if isinstance(error, BrokenPipeError) and _is_unread():
                    sys.exit(_UNREAD)
                if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
                    _end(worker_failure(error))
                if isinstance(error, RuntimeError) and _LOST_RANK.search(f"{type(error).__name__} {error}"):
                    if signals.received:
                        _end(stopped_by(signals.received))
                    fault = f"another rank has ended or cannot be reached ({reason(error)[:200]})"
                    _end(InputError(f"{fault}: resume from last.ckpt"))
                for module, words in _LIBRARY_ERRORS.items():
                    if type(error).__module__.startswith(module):
                        _end(InputError(words.format(reason(error))))
                raise

    return job


def _end(error: BaseException) -> NoReturn:
    """Say in one line why the run ended, and exit."""
    sys.exit(_last_words(error))


def _last_words(error: BaseException) -> int:
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
        log.info("%s", message)
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
