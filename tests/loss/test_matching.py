"""The matching cost against the plain formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from eomt.loss.matching import Matcher, matching_cost
from tests.host_syncs import HostSyncs


def with_weights(masks):
    """Targets [B, T, P] as the cost takes them: points first, then their weight 1."""
    return F.pad(masks.mT, (1, 0), value=1.0)[None]


def test_cost_is_the_plain_formula():
    x, y = torch.randn(1, 4, 50), (torch.rand(1, 3, 50) > 0.5).float()
    classes, labels = torch.randn(1, 4, 6), torch.tensor([[2, 0, 4]])
    cost = matching_cost([x], classes[None], with_weights(y), labels, 5, 5, 2)[0, 0]
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
    cost = matching_cost([masks], classes[None], with_weights(truth), labels, 5.0, 5.0, 2.0)
    assert cost.isfinite().all()
    pairs = Matcher()(cost, (3, 1))
    assert pairs.image.tolist() == [0, 0, 0, 1]
    assert sorted(pairs.segment[0, :3].tolist()) == [0, 1, 2]
    if math.isnan(value):
        assert 0 not in pairs.query[0, :3], "another query has numbers"


def on_device(costs):
    """A stand-in for torch-linear-assignment: the target of each query, or -1."""
    target = torch.full(costs.shape[:2], -1)
    for own, cost in zip(target, costs, strict=True):
        query, segment = map(torch.from_numpy, linear_sum_assignment(cost))
        own[query] = segment
    return target


@pytest.mark.parametrize(
    "counts", [(3, 20, 0, 7), (1, 1, 1, 1), (17, 16, 2, 0), (5, 2, 2, 0), (0, 0, 0, 0), (25, 3, 0, 1)]
)
def test_a_device_matches_as_the_host_does(counts, caplog):
    costs = torch.randn(2, 4, 20, max(counts), generator=torch.Generator().manual_seed(0))
    host, device = Matcher()(costs, counts), Matcher(on_device)(costs, counts)
    for name in ("image", "query", "segment", "place"):
        assert torch.equal(getattr(host, name), getattr(device, name)), name
    for pairs in (host, device):
        assert torch.equal(pairs.table.flatten(1)[:, pairs.place], pairs.query)
    assert not caplog.messages, "it did not fall back"


def fails(costs):
    raise RuntimeError("no kernel")


@pytest.mark.parametrize("solver", [fails, lambda costs: torch.arange(costs.shape[1]).expand(len(costs), -1)])
def test_a_device_that_fails_or_differs_is_left(solver, caplog):
    costs = torch.randn(1, 2, 20, 9, generator=torch.Generator().manual_seed(0))
    matcher = Matcher(solver)
    for _ in range(2):
        assert torch.equal(matcher(costs, (9, 4)).query, Matcher()(costs, (9, 4)).query)
    assert len(caplog.messages) == 1
    assert "by SciPy" in caplog.text


def test_a_device_does_not_wait_after_its_first_costs():
    costs = torch.randn(1, 2, 20, 9)
    matcher = Matcher(lambda costs: (torch.arange(costs.shape[1]) % 64).expand(len(costs), -1))
    matcher._compared.add((20, 16))
    with HostSyncs() as waits:
        matcher(costs, (9, 4))
    assert not waits.found
