"""Random points, and targets read at them."""

import torch

from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.loss.points import sample_all_targets, sample_targets, uncertain_points
from eomt.model.outputs import sample_maps
from eomt.targets import collate_targets
from tests.coco_objects import targets_from_masks


def test_points_are_drawn_anew_the_same_and_by_image():
    loss = MaskClassificationLoss(num_points=40)
    one, other = loss.draw(2, 5, (3, 0, 9), (7, 8, 9))
    assert one.match.shape == (3, 40, 2)
    assert one.candidates.shape == (8, 120, 2)
    assert one.extra.shape == (8, 10, 2)
    assert torch.equal(one.candidates, one.candidates)
    assert not torch.equal(one.match, other.match)
    assert one.match.unique().numel() > 0.99 * one.match.numel()
    alone = loss.draw(2, 5, (9,), (9,))[0]
    assert torch.equal(alone.match[0], one.match[2])
    assert torch.equal(alone.candidates, one.candidates[3:])


def test_targets_are_read_as_grid_sample_reads_masks():
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(t, 17, 23, generator=generator) > 0.4 for t in (3, 5)]
    targets = collate_targets([targets_from_masks(m.numpy(), range(len(m))) for m in masks])
    assert targets.ids.shape[1] > 1, "the masks overlap, so they need several planes"
    points = torch.rand(2, 400, 2, generator=generator)
    ours = sample_all_targets(targets, points)
    for b in range(2):
        plain = sample_maps(masks[b].float()[None], points[b : b + 1])[0]
        torch.testing.assert_close(ours[b, : len(masks[b])], plain, atol=1e-5, rtol=0)
    assert (ours[0, 3:] == 0).all()
    image, segment = torch.tensor([1, 0, 1]), torch.tensor([4, 2, 0])
    own_points = torch.rand(3, 300, 2, generator=generator)
    ours = sample_targets(targets, image, segment, own_points)
    chosen = torch.stack([masks[b][t] for b, t in zip(image, segment, strict=True)]).float()
    torch.testing.assert_close(ours, sample_maps(chosen[:, None], own_points)[:, 0], atol=1e-5, rtol=0)


def test_uncertain_points_are_the_nearest_to_zero():
    logits = torch.randn(2, 8, 8)
    candidates, extra = torch.rand(2, 60, 2), torch.rand(2, 5, 2)
    chosen = uncertain_points(logits, candidates, extra, 15)
    assert chosen.shape == (2, 20, 2)
    torch.testing.assert_close(chosen[:, 15:], extra)
    values = sample_maps(logits[:, None], candidates)[:, 0].abs()
    kept = sample_maps(logits[:, None], chosen[:, :15])[:, 0].abs()
    torch.testing.assert_close(kept.sort(1).values, values.sort(1).values[:, :15])
