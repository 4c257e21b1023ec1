"""The matching cost against the plain formula."""

import torch
import torch.nn.functional as F

from eomt.loss.matching import match, matching_cost


def test_cost_is_the_plain_formula():
    x, y = torch.randn(1, 4, 50), (torch.rand(1, 3, 50) > 0.5).float()
    classes, labels = torch.randn(1, 4, 6), torch.tensor([[2, 0, 4]])
    cost = matching_cost(x, classes, y, labels, 5, 5, 2)[0]
    for q in range(4):
        for t in range(3):
            bce = F.binary_cross_entropy_with_logits(x[0, q], y[0, t])
            p = x[0, q].sigmoid()
            dice = 1 - (2 * (p * y[0, t]).sum() + 1) / (p.sum() + y[0, t].sum() + 1)
            probability = classes[0, q].softmax(0)[labels[0, t]]
            torch.testing.assert_close(cost[q, t], 5 * bce + 5 * dice - 2 * probability, atol=1e-5, rtol=0)


def test_non_finite_logits_do_not_reach_the_matcher():
    x = torch.randn(1, 4, 50)
    x[0, 1] = float("nan")
    x[0, 2] = float("inf")
    cost = matching_cost(x, torch.randn(1, 4, 3), torch.ones(1, 2, 50), torch.tensor([[0, 1]]), 5, 5, 2)
    assert cost.isfinite().all()
    assert match(cost[None], [2]).shape == (1, 3, 2)
