"""Both ways in which queries compete for pixels give the plain computation's result, bit for bit."""

from collections import Counter

import pytest
import torch
from torch.nn.functional import interpolate

from eomt.postprocess import compete as module
from eomt.postprocess.compete import _boxes, _compete_in_boxes, _compete_stacked
from eomt.postprocess.geometry import Placement, fit_size, undo_fit
from eomt.postprocess.panoptic import panoptic_segmentation
from tests.host_syncs import HostSyncs

SIZE = (160, 160)


def placed(height, width):
    return Placement(height, width, *fit_size(height, width, SIZE))


def objects(count, stride=4, seed=0):
    """Mask logits [count, h, w] of ellipses, as a trained network gives them, and scores; some queries twice."""
    generator = torch.Generator().manual_seed(seed)
    side = SIZE[0] // stride
    axis = (torch.arange(side) + 0.5) * stride
    y, x, a, b = (torch.rand(count, 1, 1, generator=generator) for _ in range(4))
    distance = ((axis[:, None] - y * 160) / (5 + 60 * a**2)) ** 2 + ((axis - x * 160) / (5 + 60 * b**2)) ** 2
    masks = (6 * (1 - distance.sqrt())).clamp(-9, 7) + torch.randn(count, side, side, generator=generator) * 0.3
    scores = 0.8 + 0.2 * torch.rand(count, generator=generator)
    masks[1::7], scores[1::7] = masks[::7][: len(masks[1::7])], scores[::7][: len(masks[1::7])]
    return masks, scores


def plainly(masks, scores, placement, threshold):
    """All masks at once, resized as a whole."""
    cropped = interpolate(masks[None], SIZE, mode="bilinear")[..., : placement.scaled_height, : placement.scaled_width]
    shape = (placement.height, placement.width)
    probability = torch.stack([interpolate(m[None, None], shape, mode="bilinear")[0, 0] for m in cropped[0]]).sigmoid()
    inside = probability >= threshold
    winner = (probability * scores[:, None, None]).argmax(0)
    return (2 * winner + inside.gather(0, winner[None])[0]).int(), inside.sum((1, 2))


# Scaled by 1, enlarged, made smaller, extremely long; and a part that ends within a tile, or within a logit.
SHAPES = [(160, 160), (120, 160), (160, 107), (301, 400), (50, 30), (7, 160), (1, 300), (133, 160)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("stride", "threshold"), [(4, 0.5), (4, 0.0), (8, 0.9), (5, 0.5), (1, 0.5)])
def test_both_ways_are_the_plain_computation(shape, stride, threshold):
    placement = placed(*shape)
    for seed, (masks, scores) in enumerate([objects(30, stride), objects(1, stride), objects(40, stride, seed=2)]):
        if seed == 2:  # masks of noise win everywhere a little
            masks = torch.randn(masks.shape, generator=torch.Generator().manual_seed(3)) * 4
        expected = plainly(masks, scores, placement, threshold)
        every = torch.arange(len(masks))
        arguments = masks, every, scores, placement, SIZE, threshold
        results = [_compete_in_boxes(*arguments)]
        results += [_compete_stacked(*arguments, max_bytes) for max_bytes in (2**30, 3 * 10**6, 1)]
        for code, counts, own_area in results:
            assert code.dtype == torch.int32
            assert torch.equal(counts, code.flatten().bincount(minlength=2 * len(masks)))
            assert torch.equal(code, expected[0])
            assert torch.equal(own_area, expected[1])


@pytest.mark.parametrize("value", [0.0, 30.0, -30.0, 200.0, -200.0, 1e30])
def test_of_equals_the_first_wins(value):
    # Sigmoids saturate at both ends: whole images are ties.
    masks, scores = torch.full((4, 40, 40), value), torch.tensor([0.9, 1.0, 1.0, 0.85])
    placement = placed(100, 150)
    for code, _, own_area in (
        _compete_in_boxes(masks, torch.arange(4), scores, placement, SIZE, 0.5),
        _compete_stacked(masks, torch.arange(4), scores, placement, SIZE, 0.5, 1),
        _compete_stacked(masks, torch.arange(4), scores, placement, SIZE, 0.5, 2**30),
    ):
        first = 0 if value == -200 else 1  # all products are 0
        assert (code == 2 * first + (value >= 0)).all()
        assert (own_area == (15000 if value >= 0 else 0)).all()


def test_only_the_kept_queries_take_part_and_small_masks_are_not_resized_whole(monkeypatch):
    masks, scores = objects(30)
    kept = torch.tensor([2, 3, 17, 29])
    pixels = []
    original = module.undo_fit

    def counted(*arguments):
        pixels.append(original(*arguments).numel())
        return original(*arguments)

    masks[2] = -9  # nowhere
    masks[3] = 9  # everywhere
    masks[17], masks[29] = -9, -9
    masks[29, 20:24, 20:24] = 9
    monkeypatch.setattr(module, "undo_fit", counted)
    code, _, own_area = _compete_in_boxes(masks, kept, scores[kept], placed(160, 160), SIZE, 0.5)
    expected = plainly(masks[kept], scores[kept], placed(160, 160), 0.5)
    assert torch.equal(code, expected[0])
    assert torch.equal(own_area, expected[1])
    assert len(pixels) == 2
    assert pixels[0] == 160 * 160
    assert pixels[1] < 70 * 70


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [4, 8, 5])
def test_a_box_is_cut_from_the_whole(shape, stride):
    masks, scores = objects(10, stride)
    placement = placed(*shape)
    whole = interpolate(masks[:, None], SIZE, mode="bilinear")[..., : placement.scaled_height, : placement.scaled_width]
    whole = interpolate(whole, shape, mode="bilinear")[:, 0]
    assert torch.equal(undo_fit(masks, placement, SIZE), whole)
    for rows, columns in [box for box in _boxes(masks, scores, placement, SIZE, 0.5) if box is not None]:
        assert torch.equal(undo_fit(masks, placement, SIZE, (rows, columns)), whole[:, rows, columns])


def waits_of(monkeypatch, queries):
    masks, _ = objects(queries)
    logits = torch.zeros(queries, 11)
    logits[torch.arange(queries), torch.arange(queries) % 10] = 9
    read = []  # what reads a CPU's memory without an operation
    monkeypatch.setattr(module, "_compete_in_boxes", lambda *arguments: _compete_stacked(*arguments, 2**20))
    for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *a, m=method, n=name, **k: (read.append(n), m(*a, **k))[1])
    with HostSyncs() as waits:
        result = panoptic_segmentation(masks, logits, placed(120, 160), SIZE, torch.arange(10) < 5, overlap_threshold=0)
    monkeypatch.undo()
    assert len(result.labels) > 1
    return waits.found, Counter(read)


def test_a_gpu_is_not_waited_for_by_query(monkeypatch):
    few, many = waits_of(monkeypatch, 5), waits_of(monkeypatch, 150)
    assert few == many
    found, read = many
    # The number of those kept, and what each has won.
    assert found == {"nonzero": 1}
    assert read == {"tolist": 1}
