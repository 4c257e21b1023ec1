"""A progress bar that fits a line."""

from __future__ import annotations

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Shows loss, learning rates (heads/backbone), mask probability per block, and the score so far."""

    def __init__(self, refresh_rate: int = 10):
        super().__init__(refresh_rate=refresh_rate, leave=True)

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict:
        logged = super().get_metrics(trainer, pl_module)
        shown = {}
        if "train/loss" in logged:
            shown["loss"] = f"{logged['train/loss']:.2f}"
            shown["lr"] = f"{logged['lr/head']:.1e}/{logged['lr/backbone']:.1e}"
            shown["masks"] = " ".join(f"{p:.2f}" for p in pl_module.mask_probabilities.tolist())
        if pl_module.task.monitor in logged:
            shown[pl_module.task.monitor] = f"{logged[pl_module.task.monitor]:.1f}"
        return shown
