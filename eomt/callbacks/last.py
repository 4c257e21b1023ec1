"""`last.ckpt`: the state to go on from, however the run ends."""

from __future__ import annotations

import signal
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Checkpoint

from eomt.errors import Stopped


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` after each validation, every so many steps, at the end, and on Ctrl-C.

    Ctrl-C finishes the step, saves and ends the run; a second one ends it at once. A checkpoint taken
    inside a signal handler would hold a half-updated optimizer, so the handler only sets a flag that is
    read once a step is done.

    Args:
        folder: where `last.ckpt` goes.
        every_n_steps: optimizer steps between checkpoints.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 1000):
        self.path = Path(folder) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved_at: int | None = None
        self._seen_step: int | None = None
        self._between_steps = True
        self._asked = False
        self._previous_handler = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._saved_at = self._seen_step = trainer.global_step
        self._previous_handler = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        # Between the micro-batches of an optimizer step there are gradients, which no checkpoint holds.
        self._between_steps = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        if not self._between_steps:
            return
        # Asking the other ranks makes the host wait for the device.
        look = trainer.world_size == 1 or trainer.global_step % 10 == 0
        stop = look and trainer.strategy.reduce_boolean_decision(self._asked, all=False)
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if stop or due:
            self._save(trainer)
        if stop:
            self._restore_handler()
            step = trainer.global_step
            raise Stopped(f"stopped by Ctrl-C after step {step}; go on by: python train.py ckpt={self.path}")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._between_steps:
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.global_step != self._saved_at:
            self._save(trainer)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._restore_handler()

    def _save(self, trainer: lightning.Trainer) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.path)
            self._saved_at = trainer.global_step

    def _ask(self, number: int, frame) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None
