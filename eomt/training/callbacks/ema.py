"""An exponential moving average of the weights, which is validated and kept."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from eomt.errors import InputError
from eomt.training.module import EoMTModule


class WeightAverage(WeightAveraging):
    """Average of the weights, made after each optimizer step: `average = d * average + (1 - d) * weights`.

    At step t, counted from 1, d is the smaller of `decay` and (1 + t) / (10 + t), so that the average of a young run
    is one of its last steps, not of its random start.

    Validation, `best.ckpt` and all that reads a checkpoint take the average; a resumed run takes the weights
    themselves, which Lightning keeps beside it. Buffers are not averaged.

    Args:
        decay: such as 0.9999; at least 0, below 1. A third of a run's steps is a long time for 1 / (1 - decay).

    Raises:
        InputError: before training, with weights that are sharded or in half precision.
    """

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self._step = 0

    def setup(self, trainer: lightning.Trainer, pl_module: EoMTModule, stage: str) -> None:
        if stage != "fit":
            return
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise InputError(
                "callbacks.ema does not average sharded weights: set callbacks.ema.decay=null, or trainer.strategy=ddp"
            )
        if trainer.precision in ("16-true", "bf16-true"):
            # A step moves an average by less than these can tell apart.
            raise InputError(
                f"callbacks.ema does not average weights in half precision, trainer.precision={trainer.precision}: "
                "set callbacks.ema.decay=null, or trainer.precision=bf16-mixed"
            )
        # Lightning sets callbacks up before the module, but what is averaged must have its pretrained and LoRA weights.
        pl_module.prepare_network()
        super().setup(trainer, pl_module, stage)
        # Lightning would keep the average on the host; it has no argument for that.
        assert self._average_model is not None
        self._average_model.to(trainer.strategy.root_device)

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: EoMTModule, *_: Any) -> None:
        """Take the weights of a step into the average: Lightning's own way takes the first ones for the average, and
        waits at each step for the device."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        assert self._average_model is not None
        average, decay = self._average_model.module, min(self.decay, (1 + self._step) / (10 + self._step))
        ours, theirs = ([weight.detach() for weight in model.parameters()] for model in (average, pl_module))
        get_ema_multi_avg_fn(decay)(ours, theirs, None)
        for own, buffer in zip(average.buffers(), pl_module.buffers(), strict=True):
            own.copy_(buffer)
