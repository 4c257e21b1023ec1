"""Ending a run whose score has stopped rising."""

from __future__ import annotations

import logging
from typing import Any, Literal

import lightning
from lightning.pytorch.callbacks import EarlyStopping

log = logging.getLogger("eomt")


class EarlyStop(EarlyStopping):
    """Ends a run after `patience` validations without a better score.

    Args:
        monitor: the score.
        patience: validations, at least 1; a resumed run may be given more.
        min_delta: the least gain that counts, at least 0.
        mode: "max" where higher is better, "min" where lower is.
    """

    def __init__(self, monitor: str, patience: int, min_delta: float = 0.0, mode: Literal["max", "min"] = "max"):
        # After each validation; Lightning's default depends on how often there is one.
        super().__init__(monitor, min_delta, patience, mode=mode, check_finite=False, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume counting with the patience of this run, not that of the checkpoint."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.should_stop and trainer.is_global_zero and self.wait_count >= self.patience:
            best = f"{self.best_score:.2f}" + (f" + {abs(self.min_delta)}" if self.min_delta else "")
            log.info(
                "%s was no better than %s in %d validations: the run ends here, at step %d",
                *(self.monitor, best, self.wait_count, trainer.global_step),
            )
