"""Ending a run whose score has stopped rising."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping


class EarlyStop(EarlyStopping):
    """Lightning's, which ends the run after `patience` validations without a better score, made to resume exactly.

    A run that had stopped and is gone on with does no further step, unless it is given more patience: Lightning's
    own would train up to the next validation, and keep the old patience.

    Args:
        monitor: the score.
        patience: validations.
        min_delta: what a score must be better by.
        mode: "max" where higher is better.
    """

    def __init__(self, monitor: str, patience: int, min_delta: float = 0.0, mode: str = "max"):
        # Each validation is looked at once it is over; Lightning's default hangs on how often there is one.
        super().__init__(monitor, min_delta, patience, mode=mode, check_finite=False, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the patience is this run's."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
