"""Ending a run whose score has stopped rising."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping

from eomt.errors import InputError

log = logging.getLogger("eomt")


class EarlyStop(EarlyStopping):
    """Lightning's, which ends the run after `patience` validations without a better score, made to resume exactly.

    A run that had stopped and is gone on with does no further step, unless it is given more patience: Lightning's
    own would train up to the next validation, and keep the old patience.

    Args:
        monitor: the score.
        patience: validations, at least 1.
        min_delta: what a score must be better by, at least 0.
        mode: "max" where higher is better, "min" where lower is.

    Raises:
        InputError: for any other value; and, after the first validation, if there is no such score.
    """

    def __init__(self, monitor: str, patience: int, min_delta: float = 0.0, mode: str = "max"):
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise InputError(
                f"callbacks.early_stopping.patience={patience} must be a whole number of at least 1, or null for none"
            )
        if isinstance(min_delta, bool) or not isinstance(min_delta, int | float) or not 0 <= min_delta < math.inf:
            raise InputError(f"callbacks.early_stopping.min_delta={min_delta} must be a number of at least 0")
        if mode not in self.mode_dict:
            raise InputError(f"callbacks.early_stopping.mode={mode} must be max or min")
        # Each validation is looked at once it is over; Lightning's default hangs on how often there is one.
        super().__init__(monitor, min_delta, patience, mode=mode, check_finite=False, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the patience is this run's."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
            self._say(trainer, "this run had ended before: more callbacks.early_stopping.patience lets it go on")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        validated = trainer.state.fn == "fit" and not trainer.sanity_checking
        if validated and self.monitor not in trainer.callback_metrics:
            raise InputError(
                f"callbacks.early_stopping.monitor={self.monitor} is no score of this run; it has "
                f"{', '.join(sorted(trainer.callback_metrics))}"
            )
        super().on_validation_end(trainer, pl_module)
        if validated and self.wait_count >= self.patience:
            self._say(trainer, f"the run ends here, at step {trainer.global_step}")

    def _say(self, trainer: lightning.Trainer, outcome: str) -> None:
        if trainer.is_global_zero:
            best = f"{self.best_score:.2f}" + (f" + {abs(self.min_delta)}" if self.min_delta else "")
            log.info("%s was no better than %s in %d validations: %s", self.monitor, best, self.wait_count, outcome)
