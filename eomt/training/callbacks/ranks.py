"""A rank that dies ends the whole run, with its reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment

from eomt.errors import InputError

# What PyTorch's errors say where another process has gone or answers no more.
_LOST = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe", "timed out waiting")

# Before a rank is ended from outside: for its own error to come; and, once one has, for an end in order.
_GRACE_SECONDS, _END_SECONDS = 5, 40


class RankWatch(Callback):
    """Lets no rank wait for ever for one that has died.

    Where the first process of a machine starts the others (`trainer.devices=4` without SLURM or torchrun), it ends
    all of them once one of them has failed; and they end when it has died. SLURM's srun and torchrun do so
    themselves. In any case an error of communication becomes one line.
    """

    def __init__(self):
        self._watching: threading.Event | None = None
        self._failing = threading.Event()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or not isinstance(trainer.strategy.cluster_environment, LightningEnvironment):
            return
        if self._watching is not None:
            return
        self._watching = threading.Event()
        started = getattr(trainer.strategy.launcher, "procs", [])
        if started:
            # Lightning's own watch kills this process, too, and gives no reason.
            for thread in threading.enumerate():
                if thread.name == "child-process-observer":
                    thread._child_processes = []
            self._start(_watch_children, started)
        elif trainer.local_rank:
            self._start(_watch_parent, self._watching, os.getppid(), trainer.local_rank)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        # The first process may end before the others, once there is nothing to wait for.
        if self._watching is not None and trainer.local_rank:
            self._watching.set()
            self._watching = None

    def on_exception(self, trainer: lightning.Trainer, pl_module, exception: BaseException) -> None:
        self._failing.set()
        text = " ".join(str(exception).split())
        if trainer.world_size == 1 or not isinstance(exception, RuntimeError):
            return
        if any(words in text.lower() for words in _LOST):
            time.sleep(1)  # a process ends some time after its connections
            reason = _failure(getattr(trainer.strategy.launcher, "procs", [])) or text[:200]
            raise InputError(
                f"rank {trainer.global_rank} of {trainer.world_size} has lost another one after step "
                f"{trainer.global_step}: {reason}; go on from last.ckpt"
            ) from None

    def _start(self, watch: Callable[..., str], *arguments: object) -> None:
        def run() -> None:
            reason = watch(*arguments)
            if reason:
                self._end(reason)

        threading.Thread(target=run, daemon=True, name="rank-watch").start()

    def _end(self, reason: str) -> NoReturn:
        """End this process from whatever it is waiting for, unless it is about to end by itself."""
        if self._failing.wait(_GRACE_SECONDS):
            time.sleep(_END_SECONDS)
        else:
            print(f"error: {reason}; go on from last.ckpt", file=sys.stderr, flush=True)
        os._exit(1)


def _watch_children(processes: Sequence[subprocess.Popen]) -> str:
    while not (reason := _failure(processes)):
        time.sleep(1)
    return f"{reason}, and the run with it"


def _watch_parent(ended: threading.Event, parent: int, rank: int) -> str:
    while not ended.wait(1):
        if os.getppid() != parent:
            return f"local rank {rank} ends, for the first process ({parent}) has died"
    return ""


def _failure(processes: Sequence[subprocess.Popen]) -> str:
    """Which of the processes that this one has started has failed, and how; "" if none has."""
    for rank, process in enumerate(processes, 1):
        status = process.poll()
        if status:
            how = f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"
            return f"local rank {rank} (process {process.pid}) {how}"
    return ""
