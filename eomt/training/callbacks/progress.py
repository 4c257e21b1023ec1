"""Progress bar in one line."""

from __future__ import annotations

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Shows loss, learning rates (heads/backbone), mask probability per block, and the score so far."""

    def __init__(self, refresh_rate: int = 10):
        super().__init__(refresh_rate=refresh_rate, leave=True)

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch. Lightning mistakes the steps that are left for batches, accumulated or not."""
        trainer = self.trainer
        batches = trainer.num_training_batches
        if trainer.max_steps == -1:
            return batches
        # The count of the epoch before stands until the first batch of this one.
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready % batches
        return min(batches, done + (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict:
        logged = super().get_metrics(trainer, pl_module)
        shown = {}
        if "train/loss" in logged:
            shown["loss"] = f"{logged['train/loss']:.2f}"
            shown["lr"] = f"{logged['lr/head']:.1e}/{logged['lr/backbone']:.1e}"
            shown["masks"] = " ".join(f"{p:.2f}" for p in pl_module.probabilities)
        if pl_module.task.monitor in logged:
            shown[pl_module.task.monitor] = f"{logged[pl_module.task.monitor]:.1f}"
        return shown
