"""Loss, matching and point sampling against the original's numbers and plain computations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eomt.loss import mask_classification
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.loss.matching import matching_cost
from eomt.loss.points import TargetReader
from eomt.model.outputs import QueryOutput
from eomt.targets import collate_targets, targets_from_id_map
from tests.coco_objects import targets_from_masks
from tests.golden_numbers import LossPoints, golden_json, golden_tensors
from tests.host_syncs import HostSyncs


def batch_of(masks, labels):
    pairs = zip(masks, labels, strict=True)
    return collate_targets([targets_from_masks(m.numpy() > 0, y.tolist()) for m, y in pairs])


def output_of(mask_logits, class_logits):
    """The output whose masks are these: each query's embedding picks its own channel of the features."""
    batch, queries = mask_logits.shape[:2]
    embeddings = torch.eye(queries, dtype=mask_logits.dtype).expand(batch, -1, -1)
    return QueryOutput(embeddings, mask_logits.permute(0, 2, 3, 1), class_logits)


@pytest.fixture(scope="module")
def recorded():
    tensors = golden_tensors("loss")
    output = output_of(tensors["mask_logits"], tensors["class_logits"])
    targets = batch_of([tensors[f"masks.{b}"] for b in range(3)], [tensors[f"labels.{b}"] for b in range(3)])
    return output, targets, golden_json("loss")


def test_means_equal_the_originals(recorded):
    output, targets, expected = recorded
    loss = MaskClassificationLoss(num_points=expected["num_points"])
    draws, generator = 100, torch.Generator().manual_seed(0)
    sums = dict.fromkeys(("mask", "dice", "class"), 0.0)
    for _ in range(draws):
        seeds = torch.randint(2**62, (3,), generator=generator).tolist()
        points = loss.draw(1, 20, targets.counts, seeds)
        for name, value in loss([output], targets, points).items():
            sums[name] += value.item() / draws
    for name, ours in (("mask", "mask"), ("dice", "dice"), ("classification", "class")):
        margin = 4 * expected["std"][name] * (1 / 200 + 1 / draws) ** 0.5
        assert abs(sums[ours] - expected["mean"][name]) < margin, name


def test_matching_equals_the_originals(recorded):
    output, targets, expected = recorded
    loss = MaskClassificationLoss(num_points=60_000)
    points = loss.draw(1, 20, targets.counts, (1, 2, 3))
    pairs = loss.match([output], targets, points)
    for b, (queries, segments) in enumerate(expected["matched"]):
        assert pairs.query[0, pairs.image == b].tolist() == queries
        assert pairs.segment[0, pairs.image == b].tolist() == segments


def test_a_batch_equals_its_images_one_by_one():
    generator = torch.Generator().manual_seed(3)
    masks = [torch.rand(t, 16, 16, generator=generator) > 0.5 for t in (2, 0, 7)]
    labels = [torch.randint(0, 4, (len(m),), generator=generator) for m in masks]
    output = output_of(
        torch.randn(3, 5, 4, 4, generator=generator, dtype=torch.float64),
        torch.randn(3, 5, 5, generator=generator, dtype=torch.float64),
    )
    loss = MaskClassificationLoss(num_points=40)
    targets = batch_of(masks, labels)
    together = loss([output, output], targets, loss.draw(2, 5, targets.counts, (3, 4, 5)), 7)
    alone = {"mask": 0.0, "dice": 0.0}
    for b in range(3):
        single, own = QueryOutput(*(x[b : b + 1] for x in output)), batch_of(masks[b : b + 1], labels[b : b + 1])
        terms = loss([single, single], own, loss.draw(2, 5, own.counts, (3 + b,)), 7)
        for name in alone:
            alone[name] += terms[name]
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-10, rtol=0)
    assert together["mask"][0] != together["mask"][1], "each output has its own points"


@pytest.mark.parametrize("ignore_void", [False, True])
def test_points_that_are_chosen_in_parts_are_the_same(recorded, monkeypatch, ignore_void):
    output, targets, _ = recorded
    loss = MaskClassificationLoss(num_points=200, ignore_void=ignore_void)
    points = loss.draw(3, 20, targets.counts, (1, 2, 3))
    whole = loss([output] * 3, targets, points)
    monkeypatch.setattr(mask_classification, "_CANDIDATES", 1)
    parts = loss([output] * 3, targets, points)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


@pytest.mark.parametrize("counts", [(0, 0), (9, 0)])
def test_no_targets_and_more_targets_than_queries(counts):
    masks = [torch.rand(t, 12, 12) > 0.5 for t in counts]
    targets = batch_of(masks, [torch.zeros(t, dtype=torch.int64) for t in counts])
    mask_logits, class_logits = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    output = output_of(mask_logits, class_logits)
    loss = MaskClassificationLoss(num_points=20)
    terms = loss([output], targets, loss.draw(1, 4, targets.counts))
    total = loss.total(terms)
    total.backward()
    assert total.isfinite()
    assert mask_logits.grad is not None
    if sum(counts) == 0:
        assert terms["mask"] == 0
        assert terms["dice"] == 0


def test_it_stays_in_full_precision_under_autocast():
    targets = batch_of([torch.ones(1, 8, 8)], [torch.tensor([0])])
    output = output_of(torch.randn(1, 3, 4, 4).bfloat16(), torch.randn(1, 3, 2).bfloat16())
    loss = MaskClassificationLoss(num_points=16)
    points = loss.draw(1, 3, targets.counts)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss.total(loss([output], targets, points))
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, loss.total(loss([output], targets, points)))


@pytest.fixture
def half_void():
    """An image whose right half is void, with two segments on the left, and points at all pixels' centres."""
    id_map = np.zeros((8, 8), dtype=np.int64)
    id_map[:4, :4], id_map[4:, :4] = 1, 2
    targets = collate_targets([targets_from_id_map(id_map, [1, 2], [0, 1])])
    axis = (torch.arange(8) + 0.5) / 8
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(1, 64, 2)
    points = LossPoints((grid, torch.zeros(2, 0, 2), grid.expand(2, -1, -1)))
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return targets, points, logits, torch.zeros(1, 3, 3)


def test_void_can_be_left_out(half_void):
    targets, points, logits, class_logits = half_void
    loss = MaskClassificationLoss(num_points=64, importance_ratio=0, ignore_void=True)
    terms = loss([output_of(logits, class_logits)], targets, points)
    pairs = loss.match([output_of(logits, class_logits)], targets, points)
    mask = dice = 0
    for query, segment in zip(pairs.query[0].tolist(), pairs.segment[0].tolist(), strict=True):
        x, y = logits[0, query, :, :4], (targets.ids[0, 0, :, :4] == segment + 1).float()
        p = x.sigmoid()
        mask = mask + F.binary_cross_entropy_with_logits(x, y) / 2
        dice = dice + (1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)) / 2
    torch.testing.assert_close(terms["mask"][0], mask)
    torch.testing.assert_close(terms["dice"][0], dice)
    (terms["mask"] + terms["dice"]).backward()
    assert not logits.grad[..., 4:].any()
    assert logits.grad[..., :4].any()


def test_what_is_in_void_does_not_decide_the_matching(half_void):
    targets, points, logits, class_logits = half_void
    logits = logits.detach().clone()

    def cost(known):
        truth = TargetReader(targets, known).all_masks(points.match())
        return matching_cost([logits.flatten(2)], class_logits[None], truth, targets.labels, 5, 5, 2)

    before, counted = cost(True), cost(False)
    logits[..., 4:] += 3
    torch.testing.assert_close(cost(True), before)
    assert not torch.allclose(cost(False), counted)


class Operations(HostSyncs):
    """Counts all dispatched operations, and those that are more than a view."""

    def __init__(self):
        super().__init__()
        self.all = self.computing = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        views = [result.alias_info and not result.alias_info.is_write for result in func._schema.returns]
        self.all += 1
        self.computing += not any(views)
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("counts", [(3, 5), (60,) * 8, (60, 0, 1, 7, 0, 2, 30, 9), (0, 80), (0, 0)])
@pytest.mark.parametrize(("outputs", "ignore_void"), [(1, False), (5, False), (6, True)])
def test_a_step_takes_few_operations_and_waits_for_the_device_once(outputs, ignore_void, counts, monkeypatch):
    """However many images and targets: the costs of all outputs and images are copied to the host at once."""
    targets = batch_of(
        [torch.rand(t, 12, 12) > 0.5 for t in counts], [torch.zeros(t, dtype=torch.int64) for t in counts]
    )
    shapes = ((70, 8), (12, 12, 8), (70, 3))
    leaves = [[torch.randn(len(counts), *shape, requires_grad=True) for shape in shapes] for _ in range(outputs)]
    loss = MaskClassificationLoss(num_points=20, ignore_void=ignore_void)
    read = []  # reads of a CPU's memory that are no operation
    for name in ("tolist", "item", "cpu", "__bool__", "__int__", "__float__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, *a, plain=plain, name=name: read.append(name) or plain(x, *a))
    with Operations() as operations:
        points = loss.draw(outputs, 70, counts, range(len(counts)))
        total = loss.total(loss([QueryOutput(*parts) for parts in leaves], targets, points))
        torch.autograd.grad(total, [part for parts in leaves for part in parts])
    assert not operations.found
    assert read == ["cpu"] * any(counts)
    assert operations.computing <= 270
    assert ignore_void or operations.all <= 400
