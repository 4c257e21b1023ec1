"""The loss of a validation, see `data.validation_loss`."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import Strategy

from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.model.outputs import Logits, QueryOutput
from eomt.training.seeding import point_seeds


class ValidationLoss:
    """Means over a validation's inputs of the last output's loss and of its terms.

    Args:
        loss: the loss.
        seed: the seed of the run.
        rank: this rank, whose points are its own.
        device: the outputs' device.
    """

    def __init__(self, loss: MaskClassificationLoss, seed: int, rank: int, device: torch.device):
        self.loss = loss
        self.seed = seed
        self.rank = rank
        self._names = ["val/loss", *(f"val/loss_{name}" for name in loss.weights)]
        # The sum of each, and the number of inputs.
        self._sums = torch.zeros(len(self._names) + 1, device=device)

    def add(self, output: Logits, targets: Any, batch_idx: int) -> None:
        """Add the loss of a batch's inputs, but for those that fill it up.

        Args:
            output: the last output for B inputs.
            targets: the first inputs' segments.
            batch_idx: the number of the batch in this rank's share.
        """
        count, queries, device = len(targets.counts), output.mask_logits.shape[1], self._sums.device
        masks, classes = (logits[:count].float() for logits in output)
        # Masks that are multiplied out: their features are the masks themselves.
        same = torch.eye(queries, device=device).expand(count, -1, -1)
        keys = [(batch_idx, self.rank, k) for k in range(count)]
        points = self.loss.draw(1, queries, targets.counts, point_seeds(self.seed, keys), device)
        terms = self.loss([QueryOutput(same, masks.permute(0, 2, 3, 1), classes)], targets, points)
        losses = [self.loss.total(terms), *(terms[name].sum() for name in self.loss.weights)]
        self._sums += count * torch.stack([*losses, torch.ones_like(losses[0])])

    def means(self, strategy: Strategy) -> dict[str, float]:
        """The means over all ranks' inputs, by name."""
        *sums, inputs = strategy.reduce(self._sums, reduce_op="sum").tolist()
        return {name: value / max(1, inputs) for name, value in zip(self._names, sums, strict=True)}
