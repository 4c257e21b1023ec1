"""Ctrl-C ends a run between two steps, with its state saved."""

from __future__ import annotations

import signal
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info


class GracefulStop(Callback):
    """On Ctrl-C, finish the step, save `last.ckpt` and end the run. A second Ctrl-C ends it at once.

    A checkpoint taken inside a signal handler would hold a half-updated optimizer, so the handler only
    sets a flag that is read once a step is done.

    Args:
        folder: where `last.ckpt` goes.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "last.ckpt"
        self.stopped_at: int | None = None
        self._asked = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._previous = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module, outputs, batch, batch_idx: int
    ) -> None:
        # Between the micro-batches of an optimizer step there are gradients, which no checkpoint holds.
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        # Asking the other ranks makes the host wait for the device.
        if trainer.world_size > 1 and trainer.global_step % 10:
            return
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            self._restore()
            self.stopped_at = trainer.global_step
            trainer.save_checkpoint(self.path)
            rank_zero_info(
                f"stopped after step {self.stopped_at}; go on by: python train.py ckpt={self.path}"
            )
            raise Stopped(f"stopped by Ctrl-C after step {self.stopped_at}")

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._restore()

    def _ask(self, number: int, frame) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def _restore(self) -> None:
        if getattr(self, "_previous", None) is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class Stopped(Exception):
    """The run was ended by its user, and its state is saved."""
