"""Scored objects that may overlap: held to the original's recorded ones, and their run lengths to pycocotools'."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from eomt.postprocess.geometry import Placement, undo_fit
from eomt.postprocess.instance import encode_masks, instance_segmentation
from tests.postprocess.cases import SETTINGS, fitted, golden


def random_logits(queries=20, classes=5, seed=0):
    """Blobs, one of them empty and one full, one equal to another."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(queries, 6, 6, generator=generator) * 4
    masks = torch.nn.functional.interpolate(masks[:, None], (24, 24), mode="bicubic")[:, 0] - 1
    masks[0], masks[1], masks[2] = -3, 3, masks[3]
    logits = torch.randn(queries, classes + 1, generator=generator) * 2
    logits[:2, 0] += 20
    logits[2] = logits[3]
    return masks, logits


def assert_equal(a, b):
    assert a.size == b.size
    assert a.rles == b.rles
    assert all(torch.equal(x, y) for x, y in zip(a[2:], b[2:], strict=True))


@pytest.mark.parametrize("case", SETTINGS["cases"], ids=lambda case: str(case["index"]))
def test_objects_are_the_originals(case):
    prefix, size = f"{case['index']}.", tuple(SETTINGS["img_size"])
    placement = fitted(case["height"], case["width"], size)
    masks = golden()[prefix + "mask_logits"][0]
    result = instance_segmentation(masks, golden()[prefix + "class_logits"][0], placement, size, SETTINGS["top_k"])
    assert result.size == (case["height"], case["width"])
    # The original's are by class probability.
    scores, order = golden()[prefix + "instance_scores"].sort(descending=True, stable=True)
    for name in ("labels", "areas", "queries"):
        assert torch.equal(getattr(result, name), golden()[f"{prefix}instance_{name}"][order]), name
    assert (result.scores - scores).abs().max() < 1e-5
    assert result.scores.diff().max() <= 0
    assert result.scores.dtype == torch.float32
    assert torch.equal(result.masks(), undo_fit(masks, placement, size)[result.queries] > 0)
    assert coco_mask.area(result.rles).tolist() == result.areas.tolist()


@pytest.mark.parametrize(("height", "width"), [(61, 83), (300, 200)])
def test_the_size_of_chunks_does_not_matter(height, width):
    masks, classes = random_logits()
    arguments = masks, classes, fitted(height, width, (96, 96)), (96, 96)
    whole = instance_segmentation(*arguments)
    assert len(whole.rles) == 100
    for max_bytes in (1, 10**6):
        assert_equal(instance_segmentation(*arguments, max_bytes=max_bytes), whole)


def test_empty_masks_stay_with_score_zero_and_full_ones_are_full():
    masks, classes = random_logits()
    result = instance_segmentation(masks, classes, fitted(40, 40, (96, 96)), (96, 96))
    first = result.queries.tolist()
    empty, full = first.index(0), first.index(1)
    assert result.areas[empty] == result.scores[empty] == 0
    assert result.areas[full] == 1600
    assert result.scores[full] == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=1e-5)


def test_of_equally_probable_pairs_the_first_query_and_class_come_first():
    masks = torch.ones(50, 8, 8)
    result = instance_segmentation(masks, torch.zeros(50, 4), fitted(20, 30, (32, 32)), (32, 32), top_k=20)
    assert result.queries.tolist() == [k // 3 for k in range(20)]
    assert result.labels.tolist() == [k % 3 for k in range(20)]
    assert len(result.above(0.0).rles) == 20


def test_fewer_pairs_than_asked_for_are_all_taken():
    result = instance_segmentation(torch.randn(3, 8, 8), torch.randn(3, 3), fitted(20, 30, (32, 32)), (32, 32))
    assert len(result.rles) == len(result.labels) == 6
    assert sorted(zip(result.queries.tolist(), result.labels.tolist(), strict=True)) == [
        (q, c) for q in range(3) for c in range(2)
    ]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4481), (4481, 1), (3, 2000)])
def test_extreme_sizes(height, width):
    masks, classes = random_logits()
    placement = fitted(height, width, (96, 96))
    result = instance_segmentation(masks, classes, placement, (96, 96))
    assert torch.equal(result.masks(), undo_fit(masks, placement, (96, 96))[result.queries] > 0)
    assert result.scores.isfinite().all()
    assert ((result.scores >= 0) & (result.scores <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_full(dtype):
    masks, classes = (logits.to(dtype) for logits in random_logits())
    arguments = fitted(50, 60, (96, 96)), (96, 96)
    full = instance_segmentation(masks.float(), classes.float(), *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(instance_segmentation(masks, classes, *arguments), full)
    assert full.scores.dtype == torch.float32


def test_the_logits_are_left_alone():
    # At the image's size nothing is upsampled, so nothing is copied on the way.
    masks, classes = torch.randn(3, 8, 8), torch.randn(3, 5)
    before = masks.clone()
    instance_segmentation(masks, classes, Placement(8, 8, 8, 8), (8, 8))
    assert torch.equal(masks, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 5), (40, 60)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_are_those_of_pycocotools(shape, density):
    masks = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)) < density
    masks[0, 0, 0] = True
    masks[1, -1, -1] = True
    expected = [coco_mask.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8)) for mask in masks]
    assert encode_masks(masks) == expected
