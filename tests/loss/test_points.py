"""Random points, and targets read at them."""

import torch

from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.loss.points import TargetReader, hash_keys, sample_maps, uncertain_points, uniform
from eomt.targets import collate_targets
from tests.coco_objects import targets_from_masks


def test_points_are_drawn_anew_the_same_and_by_image():
    loss = MaskClassificationLoss(num_points=40)
    points = loss.draw(2, 5, (3, 0, 9), (7, 8, 9))
    match, (candidates, extra) = points.match(), points.of_masks(slice(None))
    assert match.shape == (2, 3, 40, 2)
    assert candidates.shape == (2 * 8, 120, 2)
    assert extra.shape == (2 * 8, 10, 2)
    assert torch.equal(candidates[3:5], points.of_masks(slice(3, 5))[0])
    assert torch.cat((match.flatten(), candidates.flatten(), extra.flatten())).unique().numel() > 4600, "of 4640"
    alone = loss.draw(2, 5, (9,), (9,))
    assert torch.equal(alone.match()[:, 0], match[:, 2])
    assert torch.equal(alone.of_masks(slice(None))[0], torch.cat((candidates[3:8], candidates[11:])))


def test_targets_are_read_as_grid_sample_reads_masks():
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(t, 17, 23, generator=generator) > 0.4 for t in (3, 5)]
    targets = collate_targets([targets_from_masks(m.numpy(), range(len(m))) for m in masks])
    assert targets.ids.shape[1] > 1, "the masks overlap, so they need several planes"
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    points = torch.cat((2 * torch.rand(2, 2, 400, 2, generator=generator) - 1, corners.expand(2, 2, -1, -1)), dim=2)
    known = [m.any(0).float()[None] for m in masks]
    for with_known in (False, True):
        reader = TargetReader(targets, with_known)
        ours = reader.all_masks(points)
        for o in range(2):
            for b in range(2):
                plain = torch.cat((known[b], masks[b].float()))
                plain = sample_maps(plain, points[o, b].expand(len(plain), -1, -1)).T
                count = plain.shape[1]
                first = 0 if with_known else 1
                torch.testing.assert_close(ours[o, b, :, first:count], plain[:, first:], atol=1e-5, rtol=0)
                assert (ours[o, b, :, count:] == 0).all()
        assert with_known or (ours[..., 0] == 1).all()
        image, segment = torch.tensor([1, 0, 1]), torch.tensor([4, 2, 0])
        own = points.flatten(0, 1)[:3]
        truth, share = reader.masks(image, segment, own)
        chosen = torch.stack([masks[b][t] for b, t in zip(image, segment, strict=True)]).float()
        torch.testing.assert_close(truth, sample_maps(chosen, own), atol=1e-5, rtol=0)
        if with_known:
            plain = sample_maps(torch.cat([known[b] for b in image]), own)
            torch.testing.assert_close(share, plain, atol=1e-5, rtol=0)
        else:
            assert share is None


def test_uncertain_points_are_the_nearest_to_zero():
    logits = torch.randn(2, 8, 8)
    candidates, extra = 2 * torch.rand(2, 60, 2) - 1, torch.zeros(2, 5, 2)
    chosen = uncertain_points(logits, candidates, extra, 15)
    assert chosen.shape == (2, 20, 2)
    torch.testing.assert_close(chosen[:, 15:], extra)
    values = sample_maps(logits, candidates).abs()
    kept = sample_maps(logits, chosen[:, :15]).abs()
    torch.testing.assert_close(kept.sort(1).values, values.sort(1).values[:, :15])


def test_hash_is_the_plain_one_in_unbounded_integers():
    """So it is the same wherever integers wrap around."""

    def plain(key, index):
        x = (0x9E3779B9 * index + key[0]) % 2**32
        x = ((x ^ x >> 16) * 0x21F0AAAD + key[1]) % 2**32
        x = (x ^ x >> 16) * 0x735A2D97 % 2**32
        return ((x >> 8) + 2**23) % 2**24 / 2**23 - 1

    keys = hash_keys([0, 5, 2**64 - 1], [0, 2**40, 3])
    numbers = uniform(keys, 2000)
    assert numbers.dtype == torch.float32
    assert numbers.tolist() == [[plain(key, i) for i in range(2000)] for key in keys.tolist()]
