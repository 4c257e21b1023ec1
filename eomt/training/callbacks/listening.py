"""Signals in a run: to our handlers, not to Lightning's."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from eomt.training.stop import StopSignals


class Listening(Callback):
    """Our handlers in place of Lightning's, which talk to other ranks from within a step, as early as a callback can.

    Args:
        signals: the handlers of the whole program.

    Attributes:
        restoring: True from here to the first step of a run, while it may read the checkpoint that it resumes from.
    """

    def __init__(self, signals: StopSignals):
        self.signals = signals
        self.restoring = False

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        # All ranks have been started.
        self.signals.unblock()
        self.restoring = trainer.state.fn == "fit"

    def on_sanity_check_start(self, *_: Any) -> None:
        self.restoring = False
        self.signals.install()

    def on_train_start(self, *_: Any) -> None:
        self.signals.install()

    def on_train_epoch_start(self, *_: Any) -> None:
        # Behind the module's `on_train_start`, which uses what was read.
        self.restoring = False

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.state.fn != "fit":
            self.signals.install()
