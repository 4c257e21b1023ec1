"""The matching cost against the plain formula."""

import math

import pytest
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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_matcher_never_sees_what_is_not_finite(value):
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(2, 6, 50, generator=generator)
    classes = torch.randn(2, 6, 4, generator=generator)
    truth = torch.rand(2, 3, 50, generator=generator).round()
    labels = torch.tensor([[0, 1, 2], [2, -1, -1]])
    masks[0, 0, 0] = masks[1] = value
    classes[0, 1, 2] = classes[1, :, 0] = value
    cost = matching_cost(masks, classes, truth, labels, 5.0, 5.0, 2.0)
    assert cost.isfinite().all()
    image, query, segment = match(cost[None], (3, 1))[0]
    assert image.tolist() == [0, 0, 0, 1]
    assert sorted(segment[:3].tolist()) == [0, 1, 2]
    if math.isnan(value):
        assert 0 not in query[:3], "another query has numbers"
