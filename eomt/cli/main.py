"""The command line that the entry points share: Hydra, the check of values, and errors in one line.

It imports nothing heavy, so that a mistyped key or value is reported at once.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from eomt.cli.arguments import prepared
from eomt.cli.check import check_roots, check_settings, plain
from eomt.cli.console import NOTES
from eomt.cli.endings import endings, is_unread, last_words
from eomt.cli.folders import run_id
from eomt.cli.help import help_of
from eomt.cli.layout import FindLayout
from eomt.cli.meanings import CONFIGS
from eomt.cli.overrides import key_of
from eomt.errors import InputError
from eomt.training.slurm import ENDING, first_rank, first_task
from eomt.training.stop import listening

log = logging.getLogger("eomt")
file_log = logging.getLogger("eomt.progress")


def command(name: str, function: Callable[[DictConfig], None], find_layout: FindLayout | None = None) -> None:
    """Run a command line: compose the configuration, call `function` with it, and end with a clear line.

    Exit status: 0, also when a SLURM job is requeued; 1 for bad input; 130 when Ctrl-C stopped the run, 138 when
    SIGUSR1 did, 143 when SIGTERM did.

    Args:
        name: the name of the configuration in configs/.
        function: the command, called with the configuration.
        find_layout: finds out what `data.root` is where that decides, see `eomt.cli.layout.with_layout`.
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
        with listening(last_words):
            _run(name, function, find_layout)
    finally:
        # Only logs are left to close, also while SLURM ends a job that is requeued.
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        if is_unread():
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


def _run(name: str, function: Callable[[DictConfig], None], find_layout: FindLayout | None = None) -> None:
    job = _job(function, name)
    with endings(name):
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


def _import_own() -> None:
    """Import the modules that the environment names, such as one that registers a backbone with timm."""
    for module in filter(None, os.environ.get("EOMT_IMPORT", "").split(",")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"EOMT_IMPORT={module}: {error}; is its folder in PYTHONPATH?") from error


def _job(function: Callable[[DictConfig], None], name: str) -> Callable[[DictConfig], None]:
    """`function`, whose errors end here, so that Hydra adds no lines of its own."""

    @functools.wraps(function)
    def job(cfg: DictConfig) -> None:
        if not first_rank():
            log.setLevel(logging.WARNING)  # the first process says it for all
        # A process that a launcher of Hydra has started has no handlers yet.
        with listening(last_words) as signals, endings(name):
            signals.unblock()
            for text in NOTES:
                file_log.info("%s", text)
            function(cfg)

    return job
