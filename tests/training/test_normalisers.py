"""Divisors of the loss over ranks."""

from types import SimpleNamespace

import torch

from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.training.normalisers import step_normalisers


def test_mask_terms_are_divided_by_the_mean_over_ranks():
    """Ranks with 9 and with 3 matched masks both divide by 6; a query can match one target only."""
    other_rank = 3.0

    class Strategy:
        def reduce(self, value, reduce_op):
            assert reduce_op == "mean"
            return (value + other_rank) / 2

    trainer = SimpleNamespace(world_size=2, strategy=Strategy())

    def normalisers(*counts):
        targets = SimpleNamespace(counts=counts, labels=torch.zeros(0))
        return step_normalisers(MaskClassificationLoss(), 12, SimpleNamespace(targets=targets), trainer)

    assert normalisers(4, 5) == (6, None)
    assert normalisers(400, 0) == ((12 + 3) / 2, None)
    other_rank = 0.0
    assert normalisers(0, 0) == (1, None)
