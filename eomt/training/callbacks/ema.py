"""An exponential moving average of the weights, which is validated and kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from eomt.errors import InputError
from eomt.training.sharding import gather, part_like, reshard
from eomt.weights.checkpoint import TRAINED


class WeightAverage(Callback):
    """Averages the trainable weights after each optimizer step: `average = d * average + (1 - d) * weights`.

    Of step t, counted from 1, d is the smaller of `decay` and (1 + t) / (10 + t): the average of a young run is of
    its last steps, not of its random beginning.

    Validation, `best.ckpt` and whoever reads a checkpoint take the average; a run that goes on from it takes the
    weights themselves, which lie beside it under their own key. Lightning's own callback would mix the two up in a
    checkpoint that is saved within a validation, and knows no sharded weights.

    Args:
        decay: such as 0.9999; at least 0, below 1. A third of a run's steps is a long time for 1 / (1 - decay).

    Raises:
        InputError: for any other value.
    """

    def __init__(self, decay: float):
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise InputError(f"callbacks.ema.decay={decay} must be a number of at least 0 and below 1")
        self.decay = decay
        self._averages: dict[str, Tensor] = {}
        self._saved: dict[str, Tensor] = {}
        self._step = 0
        # Those that the network gets back after a validation.
        self._weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin with the weights as they are, or with the averages of the checkpoint."""
        self._step = trainer.global_step
        self._begin(pl_module)
        self._saved = {}

    def _begin(self, pl_module: lightning.LightningModule) -> None:
        # Half precision would swallow the small changes.
        self._averages = {
            name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for name, parameter in self._parameters(pl_module).items()
        }
        for name, average in self._averages.items():
            if name in self._saved:
                average.copy_(part_like(self._saved[name], average))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._step) / (10 + self._step))
        weights = [
            parameter.detach().to(self._averages[name].dtype) for name, parameter in self._parameters(pl_module).items()
        ]
        torch._foreach_lerp_(list(self._averages.values()), weights, 1 - decay)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._saved and not self._averages:
            # A run that had only this validation left: its training does not start again.
            self._begin(pl_module)
        if self._averages:
            reshard(pl_module)
            parameters = self._parameters(pl_module)
            self._weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            self._give(pl_module, self._averages)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        reshard(pl_module)
        self._give(pl_module, self._weights)
        self._weights = {}

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        # On every rank, for sharded weights are gathered; those other than the first may have nothing to save.
        averages, weights = (gather(part, keep=bool(state)) for part in (self._averages, self._weights))
        if averages:
            checkpoint[TRAINED] = weights or {name: state[name] for name in averages}
            checkpoint["state_dict"] = {**state, **averages}

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        """The network holds the averages by now; it gets its own weights back."""
        weights = checkpoint.get(TRAINED, {})
        self._saved = {name: checkpoint["state_dict"][name] for name in weights}
        self._give(pl_module, weights)

    def _give(self, pl_module: lightning.LightningModule, values: Mapping[str, Tensor]) -> None:
        # In place: optimizers, ranks and compiled networks hold on to the tensors.
        for name, parameter in self._parameters(pl_module).items():
            if name in values:
                parameter.detach().copy_(part_like(values[name], parameter))

    @staticmethod
    def _parameters(pl_module: lightning.LightningModule) -> dict[str, Tensor]:
        return {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
