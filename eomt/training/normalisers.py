"""Divisors of the loss's sums where ranks and accumulated batches make up one optimizer step."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from eomt.loss.mask_classification import MaskClassificationLoss, num_matched


def step_normalisers(
    loss: MaskClassificationLoss, num_queries: int, batch: Any, trainer: lightning.Trainer
) -> tuple[float | Tensor, float | Tensor | None]:
    """Return the divisors of the sums over masks and over classes.

    As published: the number of matched masks, averaged over ranks, at least 1; and None, the class weights of the
    batch. With `loss.global_normaliser`: the numbers of the whole step. Lightning takes the mean over accumulated
    batches and ranks where a big batch has the sum: each gets a share.

    Args:
        loss: the loss, which says which of the two.
        num_queries: Q of the network.
        batch: a `TrainBatch`, on its device.
        trainer: the trainer; all its ranks must call.

    Raises:
        ValueError: for a global normaliser, if the batch does not carry its step's counts.
    """
    device = batch.targets.labels.device
    if not loss.global_normaliser:
        matched = num_matched(num_queries, batch.targets.counts)
        return _at_least_one(_over_ranks(matched, "mean", trainer, device)), None
    if not batch.step_counts:
        raise ValueError("loss.global_normaliser=true needs batches that carry their step's counts")
    parts = trainer.world_size * trainer.accumulate_grad_batches
    matched = _over_ranks(num_matched(num_queries, batch.step_counts), "sum", trainer, device)
    weights = loss.class_weight_sum(num_queries, len(batch.step_counts) * trainer.world_size, matched)
    return _at_least_one(matched) / parts, weights / parts


def _over_ranks(number: int, reduction: str, trainer: lightning.Trainer, device: torch.device) -> float | Tensor:
    """Reduce a number of each rank, on the device: no host waits for it."""
    if trainer.world_size == 1:
        return float(number)
    return trainer.strategy.reduce(torch.full((), float(number), device=device), reduce_op=reduction)


def _at_least_one(number: float | Tensor) -> float | Tensor:
    return number.clamp(min=1) if isinstance(number, Tensor) else max(1.0, number)
