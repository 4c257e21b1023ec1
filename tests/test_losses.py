"""Loss, matching and point sampling against the original's numbers and plain computations."""

import pytest
import torch
import torch.nn.functional as F

from eomt.losses import MaskClassificationLoss
from eomt.matching import match, matching_cost
from eomt.network import Output
from eomt.points import sample_all_targets, sample_logits, sample_targets, uncertain_points
from eomt.targets import collate_targets, targets_from_masks
from tests.conftest import golden_json, golden_tensors


def batch_of(masks, labels):
    pairs = zip(masks, labels, strict=True)
    return collate_targets([targets_from_masks(m.numpy() > 0, y.tolist()) for m, y in pairs])


@pytest.fixture(scope="module")
def recorded():
    tensors = golden_tensors("loss")
    output = Output(tensors["mask_logits"], tensors["class_logits"])
    targets = batch_of([tensors[f"masks.{b}"] for b in range(3)], [tensors[f"labels.{b}"] for b in range(3)])
    return output, targets, golden_json("loss")


def test_means_equal_the_originals(recorded):
    output, targets, expected = recorded
    loss = MaskClassificationLoss(num_points=expected["num_points"])
    draws, generator = 100, torch.Generator().manual_seed(0)
    sums = dict.fromkeys(("mask", "dice", "class"), 0.0)
    for _ in range(draws):
        points = loss.draw(1, 20, targets.counts, generator)
        for name, value in loss([output], targets, points)[0].items():
            sums[name] += value.item() / draws
    for name, ours in (("mask", "mask"), ("dice", "dice"), ("classification", "class")):
        margin = 4 * expected["std"][name] * (1 / 200 + 1 / draws) ** 0.5
        assert abs(sums[ours] - expected["mean"][name]) < margin, name


def test_matching_equals_the_originals(recorded):
    output, targets, expected = recorded
    loss = MaskClassificationLoss(num_points=60_000)
    points = loss.draw(1, 20, targets.counts, torch.Generator().manual_seed(1))
    image, query, target = loss.match([output], targets, points)[0]
    for b, (queries, segments) in enumerate(expected["matched"]):
        assert query[image == b].tolist() == queries
        assert target[image == b].tolist() == segments


def test_targets_are_read_as_grid_sample_reads_masks():
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(t, 17, 23, generator=generator) > 0.4 for t in (3, 5)]
    targets = batch_of(masks, [torch.arange(3), torch.arange(5)])
    assert targets.ids.shape[1] > 1, "the masks overlap, so they need several planes"
    points = torch.rand(2, 400, 2, generator=generator)
    ours = sample_all_targets(targets, points)
    for b in range(2):
        plain = sample_logits(masks[b].float()[None], points[b : b + 1])[0]
        torch.testing.assert_close(ours[b, : len(masks[b])], plain, atol=1e-5, rtol=0)
    assert (ours[0, 3:] == 0).all()
    image, segment = torch.tensor([1, 0, 1]), torch.tensor([4, 2, 0])
    own_points = torch.rand(3, 300, 2, generator=generator)
    ours = sample_targets(targets, image, segment, own_points)
    chosen = torch.stack([masks[b][t] for b, t in zip(image, segment, strict=True)]).float()
    torch.testing.assert_close(ours, sample_logits(chosen[:, None], own_points)[:, 0], atol=1e-5, rtol=0)


def test_uncertain_points_are_the_nearest_to_zero():
    logits = torch.randn(2, 8, 8)
    candidates, extra = torch.rand(2, 60, 2), torch.rand(2, 5, 2)
    chosen = uncertain_points(logits, candidates, extra, 15)
    assert chosen.shape == (2, 20, 2)
    torch.testing.assert_close(chosen[:, 15:], extra)
    values = sample_logits(logits[:, None], candidates)[:, 0].abs()
    kept = sample_logits(logits[:, None], chosen[:, :15])[:, 0].abs()
    torch.testing.assert_close(kept.sort(1).values, values.sort(1).values[:, :15])


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


def test_a_batch_equals_its_images_one_by_one():
    generator = torch.Generator().manual_seed(3)
    masks = [torch.rand(t, 16, 16, generator=generator) > 0.5 for t in (2, 0, 7)]
    labels = [torch.randint(0, 4, (len(m),), generator=generator) for m in masks]
    output = Output(
        torch.randn(3, 5, 4, 4, generator=generator, dtype=torch.float64),
        torch.randn(3, 5, 5, generator=generator, dtype=torch.float64),
    )
    loss = MaskClassificationLoss(num_points=40)
    targets = batch_of(masks, labels)
    points = loss.draw(1, 5, targets.counts, generator)
    points = [type(p)(*(x.double() for x in p)) for p in points]
    together = loss([output], targets, points, 7)[0]
    first, alone = 0, {"mask": 0.0, "dice": 0.0}
    for b in range(3):
        count = min(5, len(masks[b]))
        own = [
            type(p)(p.match[b : b + 1], p.candidates[first : first + count], p.extra[first : first + count])
            for p in points
        ]
        single = Output(*(x[b : b + 1] for x in output))
        terms = loss([single], batch_of(masks[b : b + 1], labels[b : b + 1]), own, 7)[0]
        for name in alone:
            alone[name] += terms[name]
        first += count
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-10, rtol=0)


@pytest.mark.parametrize("counts", [(0, 0), (9, 0)])
def test_no_targets_and_more_targets_than_queries(counts):
    masks = [torch.rand(t, 12, 12) > 0.5 for t in counts]
    targets = batch_of(masks, [torch.zeros(t, dtype=torch.int64) for t in counts])
    output = Output(torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True))
    loss = MaskClassificationLoss(num_points=20)
    terms = loss([output], targets, loss.draw(1, 4, targets.counts))
    total = loss.total(terms)
    total.backward()
    assert total.isfinite()
    assert output.mask_logits.grad is not None
    if sum(counts) == 0:
        assert terms[0]["mask"] == 0
        assert terms[0]["dice"] == 0


def test_it_stays_in_full_precision_under_autocast():
    targets = batch_of([torch.ones(1, 8, 8)], [torch.tensor([0])])
    output = Output(torch.randn(1, 3, 4, 4).bfloat16(), torch.randn(1, 3, 2).bfloat16())
    loss = MaskClassificationLoss(num_points=16)
    points = loss.draw(1, 3, targets.counts)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss.total(loss([output], targets, points))
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, loss.total(loss([output], targets, points)))
