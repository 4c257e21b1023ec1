"""Random numbers by hashing: uniform, and independent of each other however near their keys are."""

import numpy as np
import pytest
import torch
from scipy import stats

from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.training.seeding import draw_dropped_masks, point_seeds

SEED, STEPS, IMAGES, OUTPUTS, MASKS = 3, 8, 6, 3, 4
# Fixed draws: these bounds would be left once in a million seeds.
LEAST = 1e-6


@pytest.fixture(scope="module")
def points():
    """Points of each purpose in [-1, 1]: [step, image, output, (mask,) point, 2]."""
    loss, found = MaskClassificationLoss(num_points=1000), []
    for step in range(STEPS):
        seeds = point_seeds(SEED, [(step, image) for image in range(IMAGES)])
        drawn = loss.draw(OUTPUTS, MASKS, (MASKS,) * IMAGES, seeds)
        masks = (part.unflatten(0, (OUTPUTS, IMAGES, MASKS)).transpose(0, 1) for part in drawn.of_masks(slice(None)))
        found.append((drawn.match().transpose(0, 1), *masks))
    match, candidates, extra = (torch.stack(parts).numpy() for parts in zip(*found, strict=True))
    return {"match": match, "candidates": candidates, "extra": extra}


def test_points_are_uniform(points):
    for values in points.values():
        numbers = values.astype(np.float64).ravel()
        assert -1 <= numbers.min() <= numbers.max() < 1
        assert stats.kstest((numbers + 1) / 2, "uniform").pvalue > LEAST
        whole = np.round((numbers + 1) * 2**23).astype(np.int64)
        assert np.array_equal(whole / 2**23 - 1, numbers)
        # Each of the 24 bits, and the bits of lowest and of highest weight together.
        ones = np.array([(whole >> bit & 1).sum() for bit in range(24)])
        assert stats.norm.sf(np.abs(ones - len(whole) / 2).max() / (len(whole) / 4) ** 0.5) * 48 > LEAST
        for bits in (whole & 255, whole >> 16):
            assert stats.chisquare(np.bincount(bits, minlength=256)).pvalue > LEAST
        x, y = np.floor((values.reshape(-1, 2).astype(np.float64) + 1) * 16).astype(np.int64).T
        assert stats.chisquare(np.bincount(32 * x + y, minlength=1024)).pvalue > LEAST


def test_neighbours_are_independent(points):
    """Neighbours in step, image, output, mask, point and coordinate: linearly, in magnitude, and in 8x8 bins."""
    for values in points.values():
        for axis in range(values.ndim):
            count = values.shape[axis]
            one, other = (np.take(values, range(first, count - 1 + first), axis).ravel() for first in (0, 1))
            for a, b in ((one, other), (np.abs(one), np.abs(other))):
                assert stats.pearsonr(a, b).pvalue > LEAST, axis
            bins = np.floor((one + 1) * 4) * 8 + np.floor((other + 1) * 4)
            assert stats.chisquare(np.bincount(bins.astype(np.int64), minlength=64)).pvalue > LEAST, axis
    match, candidates = points["match"].ravel(), points["candidates"][..., 0, :1000, :].ravel()
    assert stats.pearsonr(match, candidates).pvalue > LEAST


def test_no_two_rows_share_their_numbers(points):
    rows = points["candidates"].reshape(-1, 3000 * 2)
    firsts = np.sort(rows, axis=1)
    shared = [len(np.intersect1d(firsts[k], firsts[k + 1])) for k in range(len(firsts) - 1)]
    # 6000^2 / 2^24 are expected by chance.
    assert np.mean(shared) == pytest.approx(6000**2 / 2**24, rel=0.1)


def test_dropped_masks_follow_their_probability():
    keys = [(step, image) for step in range(50) for image in range(8)]
    drops = draw_dropped_masks(SEED, keys, (0.0, 0.3, 1.0), 100)
    assert drops.shape == (3, 400, 100)
    assert drops[0].all()
    assert not drops[2].any()
    assert drops[1].float().mean() == pytest.approx(0.7, abs=0.01)
    assert torch.equal(drops[:, 9:11], draw_dropped_masks(SEED, keys[9:11], (0.0, 0.3, 1.0), 100))
